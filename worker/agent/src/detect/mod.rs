//! What this machine offers: processors, memory, devices, labels.
//!
//! - **CPU**: the processors that are online, in the affinity mask and in the cpuset, or the cgroup's quota
//!   where that is less. A quota of one and a half is one and a half.
//! - **Memory**: all of the machine's, or the cgroup's limit where that is less. Nothing is held back here: the
//!   agent takes the object store's share, and what it wants to keep for itself, from this total.
//! - **GPU**: what NVIDIA's library finds and `CUDA_VISIBLE_DEVICES` leaves, else what AMD's compute driver lists and
//!   `HIP_VISIBLE_DEVICES` leaves. One vendor's for each node, since both count from 0.
//! - **TPU**: one for each device file that `TPU_VISIBLE_CHIPS` leaves; what the environment says of the slice are
//!   labels, and worker 0 also offers one `TPU-<type>-head`.
//! - **Labels**: host name, architecture, system, and how many memory nodes there are.
//! - What an operator states takes the place of what is found. Stated devices are believed: the first of those found,
//!   and where more are stated, others that are numbered on from there.
//!
//! Files that are absent or malformed are passed over with a warning: a strange kernel makes for a strange
//! estimate, not for a node that will not start.

use std::path::{Path, PathBuf};

use mobula_proto::{
    Quantity, Resources,
    resource::{self, Device, Kind, Label},
};
use tracing::warn;

mod amd;
pub(crate) mod cgroup;
mod cpus;
pub(crate) mod files;
mod gpu;
mod numa;
mod tpu;

pub use amd::is_amd;
pub use gpu::{DEVICES_MAX, GpuProbe, NvmlProbe};
pub use numa::LABEL_NODES;
pub use tpu::{LABEL_SLICE, LABEL_TYPE, LABEL_WORKER};

/// The variables with which operators hide devices from programs, of which the agent is one: GPUs of NVIDIA and of
/// AMD, TPU chips. Set to nothing, each hides all from the agent.
pub const VISIBLE_VARIABLES: [&str; 3] =
    [gpu::VISIBLE_VARIABLE, amd::VISIBLE_VARIABLE, tpu::VISIBLE_VARIABLE];

/// The label that carries the host name, with what no label may hold replaced by `-`.
pub const LABEL_HOSTNAME: &str = "mobula.io/hostname";
/// The label that carries the processor architecture, for example `x86_64`.
pub const LABEL_ARCH: &str = "mobula.io/arch";
/// The label that carries the operating system, for example `linux`.
pub const LABEL_OS: &str = "mobula.io/os";

/// What to look at, and what an operator states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder that holds `dev`, `proc` and `sys`. Default `/`; anything else is a recorded machine, for tests, and
    /// has no GPUs of NVIDIA, which no file tells of.
    pub root: PathBuf,
    /// Stated resources, by name. `cpu`, `memory` (bytes), `gpu` and `tpu` (whole numbers) take the place of what
    /// is found. Default none.
    pub extra_resources: Vec<(String, Quantity)>,
    /// Labels to carry beside the automatic ones. Default none.
    pub labels: Vec<(String, String)>,
    /// Processors to offer in place of those found; zero is allowed. Default what is found.
    pub cpu: Option<Quantity>,
    /// Bytes of memory to offer in place of what is found. Default what is found.
    pub memory: Option<u64>,
    /// Whether to look for GPUs and TPUs; costs the time that their drivers take. Default yes.
    pub devices: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            extra_resources: Vec::new(),
            labels: Vec::new(),
            cpu: None,
            memory: None,
            devices: true,
        }
    }
}

/// What a machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The amounts; one GPU or TPU for each device.
    pub total: Resources,
    /// The devices, GPUs first, each kind by index.
    pub devices: Vec<Device>,
    /// How many TPU chips the machine has, those that are hidden or not offered among them.
    pub tpu_chips: u32,
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
    /// So many devices cannot be stated.
    #[error("{amount} {kind} cannot be stated: devices are a whole number, at most {DEVICES_MAX} on a node")]
    Device {
        /// The kind.
        kind: Kind,
        /// What was stated.
        amount: Quantity,
    },
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
    detect_with(options, &NvmlProbe, &|name| std::env::var(name).ok())
}

/// [`detect`] with another way to find NVIDIA's graphics processors, and to read the environment. The probe is asked
/// only where `options.root` is `/` and `options.devices` is set.
///
/// # Errors
/// As for [`detect`].
pub fn detect_with(
    options: &Options,
    probe: &dyn GpuProbe,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Detected, Error> {
    let stated = stated(options)?;
    let hostname = hostname(&options.root);
    let limits = cgroup::limits(&options.root);
    let processors = processors(&options.root, &limits);
    let has = |kind: &Kind| stated.iter().any(|(stated, _)| stated == kind);

    let mut list = Vec::new();
    if !has(&Kind::Cpu) {
        let count = Quantity::whole(processors.len() as u64);
        list.push((Kind::Cpu, limits.cpu.map_or(count, |quota| quota.min(count))));
    }
    if !has(&Kind::Memory) {
        list.push((Kind::Memory, memory(&options.root, &limits)));
    }
    let tpu_chips = tpu::chips(&options.root);
    let (gpus, tpus) = if options.devices {
        (gpus(options, probe, variable), tpu::detect(tpu_chips, variable))
    } else {
        (Vec::new(), tpu::Found::default())
    };
    let mut found = tpus.labels;
    found.extend(
        numa::count(&options.root, &processors).map(|nodes| (LABEL_NODES.to_owned(), nodes.to_string())),
    );
    let labels = labels(&hostname, found, &options.labels)?;
    let mut devices = Vec::new();
    for (kind, found) in [(Kind::Gpu, gpus), (Kind::Tpu, tpus.devices)] {
        let wanted = stated.iter().find(|(stated, _)| *stated == kind).map(|(_, amount)| *amount);
        devices.extend(believed(&kind, found, wanted));
        let count = devices.iter().filter(|device| device.kind == kind).count();
        list.push((kind, Quantity::whole(count as u64)));
    }
    list.extend(tpus.extra.filter(|(kind, _)| !has(kind)));
    list.extend(stated.into_iter().filter(|(kind, _)| !kind.is_device()));
    Ok(Detected { total: Resources::from_list(list)?, devices, tpu_chips, labels, hostname })
}

/// The graphics processors, of one vendor.
fn gpus(options: &Options, probe: &dyn GpuProbe, variable: &dyn Fn(&str) -> Option<String>) -> Vec<Device> {
    let machine = options.root == Path::new("/");
    let found = if machine { probe.probe() } else { Vec::new() };
    let nvidia = gpu::visible(found, variable(gpu::VISIBLE_VARIABLE).as_deref(), gpu::VISIBLE_VARIABLE);
    let amd = amd::detect(&options.root, variable(amd::VISIBLE_VARIABLE).as_deref());
    if nvidia.is_empty() {
        return amd;
    }
    if !amd.is_empty() {
        warn!(
            not_offered = amd.len(),
            "GPUs of two vendors, which both count from 0: AMD's are not offered; to offer those instead, hide \
             NVIDIA's with an empty {}",
            gpu::VISIBLE_VARIABLE
        );
    }
    nvidia
}

/// As many devices as are stated: the first of those found, and more, of which nothing is known, where they are fewer.
fn believed(kind: &Kind, mut found: Vec<Device>, stated: Option<Quantity>) -> Vec<Device> {
    let Some(stated) = stated else { return found };
    let count = usize::try_from(stated.times(Quantity::ONE)).unwrap_or(usize::MAX);
    found.truncate(count);
    let next = found.last().map_or(0, |last| last.index.saturating_add(1));
    let more = u32::try_from(count - found.len()).unwrap_or(0);
    found.extend((0..more).map(|n| Device {
        kind: kind.clone(),
        index: next.saturating_add(n),
        model: "stated".to_owned(),
        memory_bytes: 0,
        uuid: String::new(),
    }));
    found
}

/// The stated amounts, checked. Those of zero are kept, since they hide what would be found.
fn stated(options: &Options) -> Result<Vec<(Kind, Quantity)>, Error> {
    let mut list = Vec::new();
    list.extend(options.cpu.map(|amount| (Kind::Cpu, amount)));
    list.extend(options.memory.map(|bytes| (Kind::Memory, whole_bytes(bytes))));
    for (name, amount) in &options.extra_resources {
        let kind = Kind::parse(name)?;
        let whole = amount.units() % Quantity::PER_ONE == 0;
        if kind.is_device() && (!whole || *amount > Quantity::whole(DEVICES_MAX.into())) {
            return Err(Error::Device { kind, amount: *amount });
        }
        list.push((kind, *amount));
    }
    Resources::from_list(list.iter().cloned())?;
    Ok(list)
}

/// The processors that the agent may use.
fn processors(root: &Path, limits: &cgroup::Limits) -> cpus::Set {
    let online = cpus::online(root);
    match &limits.cpus {
        Some(allowed) => cpus::narrow(online, allowed, "the cgroup's cpuset"),
        None => online,
    }
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

/// The automatic labels, those found and the given ones, checked, sorted by key.
fn labels(hostname: &str, found: Vec<Label>, given: &[Label]) -> Result<Vec<Label>, Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let host: String =
        hostname.chars().take(resource::NAME_BYTES_MAX).map(|c| if fits(c) { c } else { '-' }).collect();
    let mut all = vec![
        (LABEL_HOSTNAME.to_owned(), host),
        (LABEL_ARCH.to_owned(), std::env::consts::ARCH.to_owned()),
        (LABEL_OS.to_owned(), std::env::consts::OS.to_owned()),
    ];
    all.extend(found);
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
