//! Google's tensor processors, by their device files and by what the environment says of the slice.
//!
//! A *slice* is several machines whose chips are connected; one of them is worker 0. What is not in the environment
//! (some machines tell it only through their cloud's metadata service) is not known here: an operator may set the
//! variables, or state labels.

use std::path::Path;

use mobula_proto::{
    Quantity,
    resource::{Device, Kind, Label, check_name},
};
use tracing::{debug, warn};

use super::{
    files,
    gpu::{DEVICES_MAX, visible},
};

/// The variable with which operators hide chips; the agent keeps to it as the TPU's library does.
pub const VISIBLE_VARIABLE: &str = "TPU_VISIBLE_CHIPS";
/// The label that carries the accelerator type, such as `v4-16`.
pub const LABEL_TYPE: &str = "mobula.io/tpu-type";
/// The label that carries the name of the slice.
pub const LABEL_SLICE: &str = "mobula.io/tpu-slice";
/// The label that carries the number of this worker in its slice, from 0.
pub const LABEL_WORKER: &str = "mobula.io/tpu-worker";

/// The variables that say what slice this is.
const TYPE_VARIABLE: &str = "TPU_ACCELERATOR_TYPE";
const SLICE_VARIABLE: &str = "TPU_NAME";
const WORKER_VARIABLE: &str = "TPU_WORKER_ID";
/// The vendor's number on the bus.
const VENDOR: &str = "0x1ae0";
/// Most device files, and most devices of one of them, that are looked at.
const FILES_MAX: usize = 1024;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The chips, by index.
    pub(super) devices: Vec<Device>,
    /// What is known of the slice.
    pub(super) labels: Vec<Label>,
    /// `TPU-<type>-head` on worker 0: whoever holds it may lead a job on the slice.
    pub(super) extra: Option<(Kind, Quantity)>,
}

/// What is known of the machine's `count` chips; `variable` reads the environment.
pub(super) fn detect(count: u32, variable: &dyn Fn(&str) -> Option<String>) -> Found {
    if count == 0 {
        return Found::default();
    }
    let said = |name: &str| {
        let text = variable(name)?.trim().to_owned();
        if text.is_empty() {
            return None;
        }
        let fine = check_name(&text).is_ok();
        if !fine {
            warn!(name, text, "cannot be a label: ignored");
        }
        fine.then_some(text)
    };
    let kind = said(TYPE_VARIABLE);
    let worker = said(WORKER_VARIABLE).filter(|text| {
        let number = text.parse::<u32>().is_ok();
        if !number {
            warn!(text, "{WORKER_VARIABLE} is no number: ignored");
        }
        number
    });
    let model = kind
        .as_deref()
        .and_then(|kind| kind.split('-').next())
        .map_or_else(|| "TPU".to_owned(), |generation| format!("TPU {generation}"));
    let devices = (0..count)
        .map(|index| Device {
            kind: Kind::Tpu,
            index,
            model: model.clone(),
            memory_bytes: 0,
            uuid: String::new(),
        })
        .collect();
    let devices = visible(devices, variable(VISIBLE_VARIABLE).as_deref(), VISIBLE_VARIABLE);
    if devices.is_empty() {
        return Found::default();
    }
    let head = kind.as_ref().filter(|_| worker.as_deref().is_some_and(|worker| worker.parse() == Ok(0_u32)));
    let extra =
        head.and_then(|kind| Kind::parse(&format!("TPU-{kind}-head")).ok()).map(|kind| (kind, Quantity::ONE));
    let labels = [(LABEL_TYPE, kind.clone()), (LABEL_SLICE, said(SLICE_VARIABLE)), (LABEL_WORKER, worker)];
    let labels = labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    Found { devices, labels, extra }
}

/// How many chips the machine under `root` has: `/dev/accel0`, `/dev/accel1`, … with one driver, `/dev/vfio/0`, … with the other. The
/// library counts them in this order, whatever their numbers.
pub(super) fn chips(root: &Path) -> u32 {
    let accel = files::numbered(&root.join("dev"), "accel", FILES_MAX).len();
    let count = match accel {
        0 => files::numbered(&root.join("dev/vfio"), "", FILES_MAX)
            .into_iter()
            .filter(|group| is_ours(root, *group))
            .count(),
        some => some,
    };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    if count > DEVICES_MAX {
        warn!(count, "only the first {DEVICES_MAX} TPU chips are offered");
    }
    count.min(DEVICES_MAX)
}

/// Whether a group of devices that was handed to programs is a chip. Other devices are handed over in the same way:
/// those that say that they are another vendor's are none. In a container that hides them, they all count.
fn is_ours(root: &Path, group: u64) -> bool {
    let folder = root.join("sys/kernel/iommu_groups").join(group.to_string()).join("devices");
    let vendors: Vec<String> = files::names(&folder, FILES_MAX)
        .into_iter()
        .filter_map(|device| files::text(&folder.join(device).join("vendor")))
        .map(|vendor| vendor.trim().to_owned())
        .collect();
    let ours = vendors.is_empty() || vendors.iter().any(|vendor| vendor == VENDOR);
    if !ours {
        debug!(group, ?vendors, "a device of another vendor, no TPU");
    }
    ours
}
