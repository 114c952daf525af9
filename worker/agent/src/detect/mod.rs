//! What this machine offers: processors, memory, devices, labels.
//!
//! - **CPU**: the processors that are online, in the affinity mask and in the cpuset, or the cgroup's quota
//!   where that is less. A quota of one and a half is one and a half.
//! - **Memory**: all of the machine's, or the cgroup's limit where that is less. Nothing is held back here: the
//!   agent takes the object store's share, and what it wants to keep for itself, from this total.
//! - **GPU**: what NVIDIA's library finds and `CUDA_VISIBLE_DEVICES` leaves.
//! - What an operator states takes the place of what is found; devices can't be stated, since they have to be
//!   there.
//!
//! Files that are absent or malformed are passed over with a warning: a strange kernel makes for a strange
//! estimate, not for a node that will not start.

use std::path::{Path, PathBuf};

use mobula_proto::{
    Quantity, Resources,
    resource::{self, Device, Kind, Label},
};
use tracing::warn;

mod cgroup;
mod cpus;
mod files;
mod gpu;

pub use gpu::{DEVICES_MAX, GpuProbe, NvmlProbe, VISIBLE_VARIABLE, visible};

/// The label that carries the host name, with what no label may hold replaced by `-`.
pub const LABEL_HOSTNAME: &str = "mobula.io/hostname";
/// The label that carries the processor architecture, for example `x86_64`.
pub const LABEL_ARCH: &str = "mobula.io/arch";
/// The label that carries the operating system, for example `linux`.
pub const LABEL_OS: &str = "mobula.io/os";

/// What to look at, and what an operator states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder that holds `sys` and `proc`. Default `/`; anything else is a recorded machine, for tests, and
    /// has no devices.
    pub root: PathBuf,
    /// Stated resources, by name. `cpu` and `memory` (bytes) take the place of what is found; `gpu` and `tpu` are
    /// refused. Default none.
    pub extra_resources: Vec<(String, Quantity)>,
    /// Labels to carry beside the automatic ones. Default none.
    pub labels: Vec<(String, String)>,
    /// Processors to offer in place of those found; zero is allowed. Default what is found.
    pub cpu: Option<Quantity>,
    /// Bytes of memory to offer in place of what is found. Default what is found.
    pub memory: Option<u64>,
    /// Whether to look for graphics processors; costs the time that their driver takes. Default yes.
    pub gpus: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            extra_resources: Vec::new(),
            labels: Vec::new(),
            cpu: None,
            memory: None,
            gpus: true,
        }
    }
}

/// What a machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The amounts; one GPU for each device.
    pub total: Resources,
    /// The devices, by index.
    pub devices: Vec<Device>,
    /// The labels, sorted by key, each key once.
    pub labels: Vec<Label>,
    /// The host's name as it calls itself; `unknown` where it has none.
    pub hostname: String,
}

/// What an operator stated that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name or an amount is not allowed, or a resource is stated twice.
    #[error(transparent)]
    Resource(#[from] resource::Error),
    /// A device was stated.
    #[error(
        "{0} cannot be stated as a resource: devices have to be found, so that each can be given to one host; hide \
         some with {VISIBLE_VARIABLE}, and give what is not a device another name"
    )]
    Device(Kind),
    /// A label's key or value is not allowed.
    #[error("label {key:?}={value:?} is not allowed: {source}")]
    Label {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        source: resource::Error,
    },
    /// The same label twice, or one that every node carries by itself.
    #[error("label {0:?} is given twice, or is one that every node carries by itself: leave it out")]
    DuplicateLabel(String),
    /// Too many labels.
    #[error("{0} labels are too many: at most {max}", max = resource::ENTRIES_MAX)]
    TooManyLabels(usize),
}

/// Looks at the machine. Blocks for some milliseconds, and longer where a GPU driver has to wake.
///
/// # Errors
/// Only what an operator stated can be wrong; see [`Error`]. None is worth a retry.
pub fn detect(options: &Options) -> Result<Detected, Error> {
    let visible = std::env::var(VISIBLE_VARIABLE).ok();
    detect_with(options, &NvmlProbe, visible.as_deref())
}

/// [`detect`] with another way to find graphics processors, and with `visible` in place of
/// `CUDA_VISIBLE_DEVICES`. The probe is asked only where `options.root` is `/` and `options.gpus` is set.
///
/// # Errors
/// As for [`detect`].
pub fn detect_with(
    options: &Options,
    probe: &dyn GpuProbe,
    visible: Option<&str>,
) -> Result<Detected, Error> {
    let stated = stated(options)?;
    let hostname = hostname(&options.root);
    let labels = labels(&hostname, &options.labels)?;
    let limits = cgroup::limits(&options.root);
    let has = |kind: Kind| stated.iter().any(|(stated, _)| *stated == kind);

    let mut list = Vec::new();
    if !has(Kind::Cpu) {
        list.push((Kind::Cpu, cpu(&options.root, &limits)));
    }
    if !has(Kind::Memory) {
        list.push((Kind::Memory, memory(&options.root, &limits)));
    }
    let machine = options.root == Path::new("/");
    let devices = if options.gpus && machine { gpu::visible(probe.probe(), visible) } else { Vec::new() };
    list.push((Kind::Gpu, Quantity::whole(devices.len() as u64)));
    list.extend(stated);
    Ok(Detected { total: Resources::from_list(list)?, devices, labels, hostname })
}

/// The stated amounts, checked. Those of zero are kept, since they hide what would be found.
fn stated(options: &Options) -> Result<Vec<(Kind, Quantity)>, Error> {
    let mut list = Vec::new();
    list.extend(options.cpu.map(|amount| (Kind::Cpu, amount)));
    list.extend(options.memory.map(|bytes| (Kind::Memory, whole_bytes(bytes))));
    for (name, amount) in &options.extra_resources {
        let kind = Kind::parse(name)?;
        if kind.is_device() {
            return Err(Error::Device(kind));
        }
        list.push((kind, *amount));
    }
    Resources::from_list(list.iter().cloned())?;
    Ok(list)
}

fn cpu(root: &Path, limits: &cgroup::Limits) -> Quantity {
    let mut set = cpus::online(root);
    if let Some(allowed) = &limits.cpus {
        set = cpus::narrow(set, allowed, "the cgroup's cpuset");
    }
    let count = Quantity::whole(set.len() as u64);
    limits.cpu.map_or(count, |quota| quota.min(count))
}

fn memory(root: &Path, limits: &cgroup::Limits) -> Quantity {
    let total = files::parsed(&root.join("proc/meminfo"), mem_total);
    let bytes = total.into_iter().chain(limits.memory_bytes).min();
    if bytes.is_none() {
        warn!(root = %root.display(), "no amount of memory found: none is offered; state it to offer some");
    }
    whole_bytes(bytes.unwrap_or(0))
}

/// `MemTotal: 16384 kB`, where a kB is 1024 bytes.
fn mem_total(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).filter(|bytes| *bytes > 0)
}

fn whole_bytes(bytes: u64) -> Quantity {
    let amount = Quantity::whole(bytes);
    if amount == Quantity::MAX {
        warn!(bytes, offered = %amount, "more memory than a quantity can count: the rest is not offered");
    }
    amount
}

fn hostname(root: &Path) -> String {
    let recorded = files::text(&root.join("proc/sys/kernel/hostname")).map(|text| text.trim().to_owned());
    let named = recorded.filter(|name| !name.is_empty());
    let machine = || if root == Path::new("/") { sysinfo::System::host_name().ok() } else { None };
    named.or_else(machine).unwrap_or_else(|| "unknown".to_owned())
}

/// The automatic labels and the given ones, checked, sorted by key.
fn labels(hostname: &str, given: &[(String, String)]) -> Result<Vec<Label>, Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let host: String =
        hostname.chars().take(resource::NAME_BYTES_MAX).map(|c| if fits(c) { c } else { '-' }).collect();
    let mut all = vec![
        (LABEL_HOSTNAME.to_owned(), host),
        (LABEL_ARCH.to_owned(), std::env::consts::ARCH.to_owned()),
        (LABEL_OS.to_owned(), std::env::consts::OS.to_owned()),
    ];
    all.extend(given.iter().cloned());
    if all.len() > resource::ENTRIES_MAX {
        return Err(Error::TooManyLabels(all.len()));
    }
    for (key, value) in &all {
        resource::check_name(key)
            .and_then(|_| resource::check_name(value))
            .map_err(|source| Error::Label { key: key.clone(), value: value.clone(), source })?;
    }
    all.sort();
    match all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(Error::DuplicateLabel(pair[0].0.clone())),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests;
