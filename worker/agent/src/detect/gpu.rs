//! NVIDIA's graphics processors, and which of them the environment lets this process see.

use mobula_proto::resource::{Device, Kind};
use nvml_wrapper::{Nvml, error::NvmlError};
use tracing::{debug, warn};

/// The variable with which operators hide processors from programs; the agent keeps to it as CUDA does.
pub const VISIBLE_VARIABLE: &str = "CUDA_VISIBLE_DEVICES";
/// Most processors that are looked at on one node.
pub const DEVICES_MAX: u32 = 256;

/// Finds the graphics processors of this machine.
pub trait GpuProbe: Send + Sync {
    /// All that there are, in the order of their index; none where there is no driver. Never fails: what
    /// cannot be read is left out.
    fn probe(&self) -> Vec<Device>;
}

/// Asks NVIDIA's management library, where there is one. Without a driver there are no processors, which is no
/// error. Blocks for as long as the driver takes: a second and more where it has to be woken.
#[derive(Clone, Copy, Debug, Default)]
pub struct NvmlProbe;

impl GpuProbe for NvmlProbe {
    fn probe(&self) -> Vec<Device> {
        let counted = Nvml::init().and_then(|nvml| nvml.device_count().map(|count| (nvml, count)));
        let (nvml, count) = match counted {
            Ok(found) => found,
            Err(error) => {
                debug!(%error, "no NVIDIA driver: no GPU is offered");
                return Vec::new();
            }
        };
        if count > DEVICES_MAX {
            warn!(count, "only the first {DEVICES_MAX} GPUs are offered");
        }
        let device = |index| match describe(&nvml, index) {
            Ok(device) => Some(device),
            Err(error) => {
                warn!(index, %error, "this GPU does not answer and is not offered");
                None
            }
        };
        (0..count.min(DEVICES_MAX)).filter_map(device).collect()
    }
}

fn describe(nvml: &Nvml, index: u32) -> Result<Device, NvmlError> {
    let device = nvml.device_by_index(index)?;
    Ok(Device {
        kind: Kind::Gpu,
        index,
        model: device.name()?,
        // Where memory is shared with the processor the library knows no size for it.
        memory_bytes: device.memory_info().map_or(0, |memory| memory.total),
        uuid: device.uuid()?,
    })
}

/// The devices that an operator's `variable` of this `name` leaves, by index; all where it is not set. As in CUDA, an
/// entry is an index or the start of a UUID, and one that names nothing hides itself and all that follow.
pub fn visible(devices: Vec<Device>, variable: Option<&str>, name: &str) -> Vec<Device> {
    let Some(variable) = variable else { return devices };
    let mut seen: Vec<Device> = Vec::new();
    for entry in variable.split(',').map(str::trim) {
        if entry.is_empty() {
            break;
        }
        let Some(device) = devices.iter().find(|device| names(entry, device)) else {
            debug!(entry, "names no device: it and what follows in {name} is hidden");
            break;
        };
        if seen.contains(device) {
            warn!(entry, "named twice in {name}");
        } else {
            seen.push(device.clone());
        }
    }
    seen.sort_by_key(|device| device.index);
    seen
}

fn names(entry: &str, device: &Device) -> bool {
    match entry.parse::<u32>() {
        Ok(index) => device.index == index,
        Err(_) => entry.len() > "GPU-".len() && entry.starts_with("GPU-") && device.uuid.starts_with(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Vec<Device> {
        (0..3)
            .map(|index| Device {
                kind: Kind::Gpu,
                index,
                model: "Model".to_owned(),
                memory_bytes: 1 << 30,
                uuid: format!("GPU-{index}{index}-aa"),
            })
            .collect()
    }

    #[test]
    fn the_environment_hides_devices_as_cuda_does() {
        let check = |variable: Option<&str>, want: &[u32]| {
            let got: Vec<u32> =
                visible(devices(), variable, VISIBLE_VARIABLE).iter().map(|d| d.index).collect();
            assert_eq!(got, want, "{variable:?}");
        };
        check(None, &[0, 1, 2]);
        check(Some(""), &[]);
        check(Some("-1"), &[]);
        check(Some("NoDevFiles"), &[]);
        check(Some("2, 0"), &[0, 2]);
        check(Some("1,1"), &[1]);
        check(Some("0,7,2"), &[0]);
        check(Some("GPU-22,GPU-00-aa"), &[0, 2]);
        check(Some("GPU-"), &[]);
        check(Some("GPU-99"), &[]);
    }

    #[test]
    fn probing_without_a_driver_is_no_error() {
        // Whatever this machine has, asking does not fail, and indices are in order.
        let found = NvmlProbe.probe();
        assert!(found.is_sorted_by_key(|device| device.index));
    }
}
