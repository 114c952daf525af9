//! Which processors this process may run on.

use std::{collections::BTreeSet, path::Path};

use tracing::warn;

use super::files;

/// Processor numbers at or above this are garbage, not processors.
const CPU_NUMBER_LIMIT: u32 = 65_536;

/// A set of processor numbers.
pub(super) type Set = BTreeSet<u32>;

/// Reads the kernel's list format: `0-3,8,10-11`. `None` where it is malformed.
pub(super) fn parse(text: &str) -> Option<Set> {
    let mut set = Set::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        if first > last || last >= CPU_NUMBER_LIMIT {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// The processors that are online and in this process's affinity mask, and no fewer than one.
///
/// From `sys/devices/system/cpu/online`, else `proc/cpuinfo`, else (for the machine itself) the standard
/// library; less whatever `proc/self/status` says the scheduler will not use.
pub(super) fn online(root: &Path) -> Set {
    let online = from_sys(root).or_else(|| from_cpuinfo(root)).unwrap_or_else(|| {
        let count = if root == Path::new("/") {
            std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
        } else {
            1
        };
        warn!(root = %root.display(), count, "no list of processors found");
        (0..u32::try_from(count).unwrap_or(1).min(CPU_NUMBER_LIMIT)).collect()
    });
    match affinity(root) {
        Some(allowed) => narrow(online, &allowed, "the affinity mask"),
        None => online,
    }
}

/// `have` without what `allowed` lacks; `have` unchanged, with a warning, where nothing would remain.
pub(super) fn narrow(have: Set, allowed: &Set, what: &str) -> Set {
    let both: Set = have.intersection(allowed).copied().collect();
    if both.is_empty() {
        warn!("{what} leaves no processor: ignored");
        return have;
    }
    both
}

fn from_sys(root: &Path) -> Option<Set> {
    let path = root.join("sys/devices/system/cpu/online");
    files::parsed(&path, parse).filter(|set| !set.is_empty())
}

fn from_cpuinfo(root: &Path) -> Option<Set> {
    let text = files::text(&root.join("proc/cpuinfo"))?;
    let set: Set = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "processor")
        .filter_map(|(_, number)| number.trim().parse().ok())
        .filter(|number| *number < CPU_NUMBER_LIMIT)
        .collect();
    (!set.is_empty()).then_some(set)
}

fn affinity(root: &Path) -> Option<Set> {
    let path = root.join("proc/self/status");
    let text = files::text(&path)?;
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let set = parse(list);
    if set.is_none() {
        warn!(path = %path.display(), list, "malformed affinity mask: ignored");
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_garbage_is_refused() {
        let check = |text: &str, want: Option<&[u32]>| {
            assert_eq!(parse(text), want.map(|w| w.iter().copied().collect()), "{text:?}");
        };
        check("0-3,8,10-11\n", Some(&[0, 1, 2, 3, 8, 10, 11]));
        check("5", Some(&[5]));
        check("\n", Some(&[]));
        check("3-1", None);
        check("0-4294967295", None);
        check("0-99999999999999999999", None);
        check("a-b", None);
        check("-1", None);
    }

    #[test]
    fn a_mask_that_leaves_nothing_is_ignored() {
        let have: Set = [0, 1].into();
        assert_eq!(narrow(have.clone(), &[1, 2].into(), "test"), [1].into());
        assert_eq!(narrow(have.clone(), &[7].into(), "test"), have);
    }
}
