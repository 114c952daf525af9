//! What the control groups that this process is in leave it: versions 1 and 2, alone or side by side.
//!
//! A limit anywhere above the process's own group binds it too, so each one is the minimum on the way from
//! that group up to the mount. Inside a container the groups above the mount are out of sight; the runtime
//! puts the container's limits on the group that is mounted, which is why that one is always read.

use std::path::{Component, Path, PathBuf};

use mobula_proto::Quantity;
use tracing::warn;

use super::{cpus, files};

/// Version 1 says "no limit" with a huge number; at or above this many bytes there is none.
const UNLIMITED_BYTES: u64 = 1 << 60;
/// The kernel's period where `cpu.max` names none, in microseconds.
const PERIOD_US: u64 = 100_000;
/// Deepest nesting of groups that is followed.
const DEPTH_MAX: usize = 64;

/// What the groups allow; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Processor time for each unit of time, rounded down to a ten-thousandth.
    pub(super) cpu: Option<Quantity>,
    /// Bytes of memory.
    pub(super) memory_bytes: Option<u64>,
    /// The processors to run on.
    pub(super) cpus: Option<cpus::Set>,
}

/// Reads the limits of the process that is `proc/self` under `root`.
pub(super) fn limits(root: &Path) -> Limits {
    let mut limits = Limits::default();
    let Some(groups) = files::text(&root.join("proc/self/cgroup")) else {
        return limits;
    };
    let mounts = Mounts::read(root);
    for line in groups.lines().filter(|line| !line.is_empty()) {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            warn!(line, "malformed line in proc/self/cgroup: ignored");
            continue;
        };
        if id == "0" && controllers.is_empty() {
            for level in mounts.unified(root).iter().flat_map(|mount| mount.levels(group)) {
                limits.lower_cpu(files::parsed(&level.join("cpu.max"), cpu_max).flatten());
                limits.lower_memory(files::parsed(&level.join("memory.max"), memory_max).flatten());
                limits.lower_cpus(files::parsed(&level.join("cpuset.cpus.effective"), cpus::parse));
            }
            continue;
        }
        for controller in controllers.split(',') {
            let Some(mount) = mounts.of_controller(root, controller, controllers) else { continue };
            for level in mount.levels(group) {
                match controller {
                    "cpu" => limits.lower_cpu(cfs_quota(&level)),
                    "memory" => {
                        let path = level.join("memory.limit_in_bytes");
                        limits.lower_memory(files::parsed(&path, memory_max).flatten());
                    }
                    "cpuset" => {
                        limits.lower_cpus(files::parsed(&level.join("cpuset.effective_cpus"), cpus::parse));
                        limits.lower_cpus(files::parsed(&level.join("cpuset.cpus"), cpus::parse));
                    }
                    _ => {}
                }
            }
        }
    }
    limits
}

/// The group that counts this process's memory, as a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MemoryGroup {
    /// Of version 1, where each controller has groups of its own.
    One(PathBuf),
    /// Of version 2.
    Two(PathBuf),
}

/// The group that counts the memory of the process that is `proc/self` under `root`; `None` where there is none, or it is
/// out of sight.
pub(crate) fn memory_group(root: &Path) -> Option<MemoryGroup> {
    let groups = files::text(&root.join("proc/self/cgroup"))?;
    let mounts = Mounts::read(root);
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|controller| controller == "memory") {
            let mount = mounts.of_controller(root, "memory", controllers)?;
            return Some(MemoryGroup::One(mount.own(group)?));
        }
        if id == "0" && controllers.is_empty() {
            unified = mounts.unified(root).iter().find_map(|mount| mount.own(group)).map(MemoryGroup::Two);
        }
    }
    unified
}

impl Limits {
    fn lower_cpu(&mut self, limit: Option<Quantity>) {
        self.cpu = self.cpu.into_iter().chain(limit).min();
    }

    fn lower_memory(&mut self, limit: Option<u64>) {
        self.memory_bytes = self.memory_bytes.into_iter().chain(limit).min();
    }

    fn lower_cpus(&mut self, limit: Option<cpus::Set>) {
        // An empty list is a group that was never given any of its own.
        let Some(limit) = limit.filter(|set| !set.is_empty()) else { return };
        self.cpus = Some(match self.cpus.take() {
            Some(have) => cpus::narrow(have, &limit, "a cgroup's cpuset"),
            None => limit,
        });
    }
}

/// One mounted hierarchy: where it is, and which group of it is mounted there.
#[derive(Clone, Debug)]
struct Mount {
    folder: PathBuf,
    group: PathBuf,
}

impl Mount {
    /// The folder of `group` itself, if it can be seen.
    fn own(&self, group: &str) -> Option<PathBuf> {
        let inside = Path::new(group).strip_prefix(&self.group).ok()?;
        let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
        Some(self.folder.join(inside)).filter(|folder| plain && folder.is_dir())
    }

    /// The folders of `group` and of all above it, down to what is mounted.
    fn levels(&self, group: &str) -> Vec<PathBuf> {
        let group = Path::new(group);
        let inside = group.strip_prefix(&self.group).unwrap_or(group);
        let names: Vec<_> = inside.components().filter(|part| *part != Component::RootDir).collect();
        // A group outside of what is visible is shown with `..`: only the mount itself can be read.
        let visible =
            names.len() <= DEPTH_MAX && names.iter().all(|part| matches!(part, Component::Normal(_)));
        let depth = if visible { names.len() } else { 0 };
        (0..=depth).rev().map(|n| self.folder.join(names[..n].iter().collect::<PathBuf>())).collect()
    }
}

/// The hierarchies that `proc/self/mountinfo` lists.
#[derive(Debug, Default)]
struct Mounts {
    unified: Vec<Mount>,
    /// With the mount options, among which are the controllers.
    separate: Vec<(String, Mount)>,
}

impl Mounts {
    fn read(root: &Path) -> Self {
        let mut mounts = Self::default();
        let text = files::text(&root.join("proc/self/mountinfo")).unwrap_or_default();
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
            let (Some(group), Some(point), Some(kind)) = (left.next(), left.next(), right.next()) else {
                continue;
            };
            let mount =
                Mount { folder: root.join(point.trim_start_matches('/')), group: PathBuf::from(group) };
            match kind {
                "cgroup2" => mounts.unified.push(mount),
                "cgroup" => mounts.separate.push((right.nth(1).unwrap_or_default().to_owned(), mount)),
                _ => {}
            }
        }
        mounts
    }

    /// Where version 2 is mounted; the usual places where the mounts are not known.
    fn unified(&self, root: &Path) -> Vec<Mount> {
        if !self.unified.is_empty() {
            return self.unified.clone();
        }
        ["sys/fs/cgroup/unified", "sys/fs/cgroup"].into_iter().map(|at| usual(root, at)).collect()
    }

    /// Where one controller of version 1 is mounted; `together` is the list it is mounted with.
    fn of_controller(&self, root: &Path, controller: &str, together: &str) -> Option<Mount> {
        let listed = |options: &str| options.split(',').any(|option| option == controller);
        if let Some((_, mount)) = self.separate.iter().find(|(options, _)| listed(options)) {
            return Some(mount.clone());
        }
        let places = [format!("sys/fs/cgroup/{together}"), format!("sys/fs/cgroup/{controller}")];
        places.iter().map(|at| usual(root, at)).find(|mount| mount.folder.is_dir())
    }
}

fn usual(root: &Path, at: &str) -> Mount {
    Mount { folder: root.join(at), group: PathBuf::from("/") }
}

/// `cpu.max`: `max 100000`, or a quota and a period in microseconds. The outer `None` is malformed.
fn cpu_max(text: &str) -> Option<Option<Quantity>> {
    let mut words = text.split_whitespace();
    let (quota, period) = (words.next()?, words.next());
    let period = period.map_or(Ok(PERIOD_US), str::parse).ok()?;
    if quota == "max" { Some(None) } else { share(quota.parse().ok()?, period).map(Some) }
}

/// Version 1: two files, and -1 for no limit.
fn cfs_quota(folder: &Path) -> Option<Quantity> {
    let quota = files::parsed(&folder.join("cpu.cfs_quota_us"), |text| text.parse::<i64>().ok())?;
    if quota < 0 {
        return None;
    }
    files::parsed(&folder.join("cpu.cfs_period_us"), |text| share(quota.unsigned_abs(), text.parse().ok()?))
}

/// Rounded down, so that no more is promised than the kernel gives, but never to nothing.
fn share(quota_us: u64, period_us: u64) -> Option<Quantity> {
    let per_one = u128::from(Quantity::PER_ONE.unsigned_abs());
    let units = (u128::from(quota_us) * per_one).checked_div(u128::from(period_us))?;
    let units = i64::try_from(units).unwrap_or(i64::MAX).clamp(1, Quantity::MAX.units());
    if quota_us == 0 { None } else { Quantity::from_units(units).ok() }
}

/// `max`, or bytes; a limit of nothing at all is malformed. The outer `None` is malformed.
fn memory_max(text: &str) -> Option<Option<u64>> {
    if text == "max" || text == "-1" {
        return Some(None);
    }
    let bytes: u64 = text.parse().ok()?;
    (bytes > 0).then_some((bytes < UNLIMITED_BYTES).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_max_is_exact_and_garbage_is_refused() {
        let check = |text: &str, want: Option<Option<&str>>| {
            assert_eq!(
                cpu_max(text).map(|q| q.map(|q| q.to_string())),
                want.map(|q| q.map(str::to_owned)),
                "{text:?}"
            );
        };
        check("max 100000", Some(None));
        check("max", Some(None));
        check("150000 100000", Some(Some("1.5")));
        check("50000", Some(Some("0.5")));
        check("100000 300000", Some(Some("0.3333")));
        check("1 1000000", Some(Some("0.0001")));
        check("100000 0", None);
        check("0 100000", None);
        check("-1 100000", None);
        check("", None);
        check("many", None);
        check("18446744073709551615 1", Some(Some(&Quantity::MAX.to_string())));
    }

    #[test]
    fn levels_go_up_to_the_mount_and_no_further() {
        let check = |mounted: &str, group: &str, want: &[&str]| {
            let mount = Mount { folder: PathBuf::from("/cg"), group: PathBuf::from(mounted) };
            let want: Vec<PathBuf> = want.iter().map(PathBuf::from).collect();
            assert_eq!(mount.levels(group), want, "{group} with {mounted} mounted");
        };
        check("/", "/a/b", &["/cg/a/b", "/cg/a", "/cg/"]);
        check("/", "/", &["/cg/"]);
        check("/docker/1", "/docker/1/job", &["/cg/job", "/cg/"]);
        check("/", "/../other", &["/cg/"]);
    }
}
