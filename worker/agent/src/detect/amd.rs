//! AMD's graphics processors, as the kernel's compute driver lists them.

use std::path::Path;

use mobula_proto::resource::{Device, Kind};
use tracing::warn;

use super::{
    files,
    gpu::{DEVICES_MAX, visible},
};

/// The variable with which operators hide AMD's processors; the agent keeps to it as HIP does.
pub const VISIBLE_VARIABLE: &str = "HIP_VISIBLE_DEVICES";
/// The topology of the compute driver. It lists processors of both sorts; HIP counts the graphics ones, in this order.
const NODES: &str = "sys/class/kfd/kfd/topology/nodes";
/// Most nodes of the topology, and most banks of memory of one, that are looked at.
const NODES_MAX: usize = 1024;
/// How the model of each begins.
const MODEL_PREFIX: &str = "AMD ";
/// Of a memory bank: the device's own memory, which the processor sees too or does not.
const HEAPS: [u64; 2] = [1, 2];

/// Whether this is one of AMD's.
pub fn is_amd(device: &Device) -> bool {
    device.kind == Kind::Gpu && device.model.starts_with(MODEL_PREFIX)
}

/// Those of the machine under `root` that `variable` leaves, by index.
pub(super) fn detect(root: &Path, variable: Option<&str>) -> Vec<Device> {
    let nodes = files::numbered(&root.join(NODES), "", NODES_MAX);
    let mut devices = Vec::new();
    for number in nodes {
        let folder = root.join(NODES).join(number.to_string());
        // A graphics processor has a number here, and a plain one 0.
        let Some(id) = files::parsed(&folder.join("gpu_id"), |text| text.parse::<u64>().ok()) else {
            continue;
        };
        if id == 0 {
            continue;
        }
        let Ok(index) = u32::try_from(devices.len()) else { break };
        if index >= DEVICES_MAX {
            warn!("only the first {DEVICES_MAX} GPUs are offered");
            break;
        }
        devices.push(describe(&folder, index));
    }
    visible(devices, variable, VISIBLE_VARIABLE)
}

/// What cannot be read about one that is there is left out: it still counts, or those behind it would change their
/// numbers.
fn describe(folder: &Path, index: u32) -> Device {
    let properties = files::text(&folder.join("properties")).unwrap_or_default();
    let name = files::text(&folder.join("name")).unwrap_or_default();
    let model = match (name.trim(), property(&properties, "gfx_target_version")) {
        ("", None | Some(0)) => format!("{MODEL_PREFIX}GPU"),
        ("", Some(version)) => format!("{MODEL_PREFIX}gfx{}", target(version)),
        (name, _) => format!("{MODEL_PREFIX}{}", name.chars().take(64).collect::<String>()),
    };
    let uuid = match property(&properties, "unique_id") {
        None | Some(0) => String::new(),
        Some(id) => format!("GPU-{id:016x}"),
    };
    let banks = folder.join("mem_banks");
    let memory_bytes = files::numbered(&banks, "", NODES_MAX)
        .into_iter()
        .filter_map(|bank| files::text(&banks.join(bank.to_string()).join("properties")))
        .filter(|bank| property(bank, "heap_type").is_some_and(|heap| HEAPS.contains(&heap)))
        .filter_map(|bank| property(&bank, "size_in_bytes"))
        .fold(0, u64::saturating_add);
    Device { kind: Kind::Gpu, index, model, memory_bytes, uuid }
}

/// `90402` is gfx942 in the vendor's other words: 9, 4, 2, the last two in hexadecimal.
fn target(version: u64) -> String {
    format!("{}{:x}{:x}", version / 10_000, version / 100 % 100, version % 100)
}

/// The value in a line `key value`.
fn property(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}
