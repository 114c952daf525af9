//! What is held of a cluster's means, as the system says it: for tests, which hold that against what agents say.

use std::{collections::BTreeMap, fs, path::Path};

use mobula_proto::head::{Snapshot, Usage};
use mobula_store::spill::Folder;

/// What anybody holds of a cluster, as its head says it: nothing where a program has let go of everything. What ends with
/// its job by itself does not count as long as that goes on: placement groups, and what hosts keep for reuse.
pub fn in_cluster(snapshot: &Snapshot) -> Vec<String> {
    let mut held = Vec::new();
    if snapshot.leases > 0 {
        held.push(format!("{} leases are held", snapshot.leases));
    }
    held.extend(snapshot.waiting.iter().map(|class| format!("{} waits: {}", class.function, class.why)));
    let actors = snapshot.names.iter();
    held.extend(actors.map(|name| format!("the actor {} ({}) lives", name.name, name.actor_type)));
    let (of_jobs, detached): (Vec<_>, Vec<_>) =
        snapshot.groups.iter().partition(|group| !group.job.is_empty());
    held.extend(detached.iter().map(|group| format!("the placement group {} is there", group.name)));
    for node in &snapshot.nodes {
        if of_jobs.is_empty() && node.available != node.total {
            held.push(format!("{} has {:?} of {:?} left", node.name, node.available, node.total));
        }
        held.extend(in_store(&node.name, &node.usage));
    }
    held
}

/// What lies in a node's store.
pub fn in_store(node: &str, usage: &Usage) -> Option<String> {
    let Usage { objects, pinned, waiting, spill_used_bytes, .. } = usage;
    let none = [objects, pinned, waiting, spill_used_bytes].into_iter().all(|amount| *amount == 0);
    (!none).then(|| {
        format!(
            "{node} has {objects} objects, {pinned} of them read, {spill_used_bytes} bytes of files of spilled ones, and \
             {waiting} requests that wait for room"
        )
    })
}

/// How many descriptors of each kind a process has open. Sockets are one kind, and so are pipes; of everything else each
/// name is one.
pub fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    // A process that is gone has none.
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    for target in entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()) {
        let target = target.to_string_lossy();
        let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
        *counted.entry(kind.to_owned()).or_default() += 1;
    }
    counted
}

/// How many bytes of the store's memory a process has mapped, of regions that others made included.
pub fn mapped_bytes(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let len = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
    };
    maps.lines().filter(|line| line.contains("/memfd:mobula-region")).filter_map(len).sum()
}

/// What lies in a folder; nothing in one that is not there.
pub fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path().display().to_string())).collect()
}

/// The files of spilled objects in an agent's folder for them.
pub(super) fn spilled(folder: &Path) -> Vec<String> {
    files(folder)
        .into_iter()
        .filter(|file| !Path::new(file).file_name().is_some_and(Folder::is_mark))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use mobula_store::region::Writer;

    use super::*;

    #[test]
    fn descriptors_are_counted_by_kind_and_mapped_memory_by_bytes() {
        let me = std::process::id();
        let (before, mapped) = (descriptors(me), mapped_bytes(me));
        let pair = UnixStream::pair().unwrap();
        let program = [(); 2].map(|()| fs::File::open("/proc/self/exe").unwrap());
        let region = Writer::create(1 << 20).unwrap();
        let now = descriptors(me);
        let more = |kind: &str| now[kind] - before.get(kind).copied().unwrap_or(0);
        let name = std::env::current_exe().unwrap();
        let found = ["socket", name.to_str().unwrap(), "/memfd:mobula-region (deleted)"].map(more);
        assert_eq!((found, mapped_bytes(me) - mapped), ([2, 2, 1], 1 << 20));
        // Where only the mapping is left, no descriptor shows it.
        let mapping = mobula_store::region::Reader::map(region.share().unwrap(), 1 << 20).unwrap();
        drop((pair, program, region));
        assert_eq!((descriptors(me), mapped_bytes(me) - mapped), (before, 1 << 20));
        drop(mapping);
        assert_eq!(mapped_bytes(me), mapped);
    }
}
