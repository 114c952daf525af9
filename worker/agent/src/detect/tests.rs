//! Recorded machines, written to temporary folders.

use std::fs;

use mobula_proto::resource::DeviceGrant;

use super::*;
use crate::launcher::device_env;

/// Writes a machine and looks at it.
fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let options = Options { root: folder.path().to_owned(), ..Options::default() };
    (folder, options)
}

const EIGHT: (&str, &str) = ("sys/devices/system/cpu/online", "0-7\n");
const MEMORY: (&str, &str) = ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  1 kB\n");

#[track_caller]
fn check(files: &[(&str, &str)], cpu: &str, memory_mib: u64) {
    let mut all = vec![EIGHT, MEMORY];
    all.extend_from_slice(files);
    let (_folder, options) = machine(&all);
    let got = detect(&options).unwrap().total;
    assert_eq!(got.get(&Kind::Cpu).to_string(), cpu);
    assert_eq!(got.get(&Kind::Memory), Quantity::whole(memory_mib << 20));
}

#[test]
fn without_groups_all_is_offered() {
    check(&[], "8", 16384);
    check(&[("proc/self/cgroup", "0::/\n")], "8", 16384);
}

#[test]
fn version_two_takes_the_least_on_the_way_up() {
    let group = ("proc/self/cgroup", "0::/pod/box\n");
    check(
        &[
            group,
            ("sys/fs/cgroup/pod/box/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/pod/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/pod/memory.max", "max\n"),
        ],
        "2.5",
        8192,
    );
    // The quota is more than there are processors, the memory limit more than there is.
    check(
        &[
            group,
            ("sys/fs/cgroup/pod/cpu.max", "6400000 100000\n"),
            ("sys/fs/cgroup/pod/memory.max", "1099511627776\n"),
        ],
        "8",
        16384,
    );
    // In a container the groups above are out of sight, and its own is what is mounted.
    check(&[group, ("sys/fs/cgroup/cpu.max", "50000 100000\n")], "0.5", 16384);
}

#[test]
fn version_one_takes_the_least_on_the_way_up() {
    check(
        &[
            ("proc/self/cgroup", "5:memory:/a/b\n4:cpu,cpuacct:/a/b\n3:cpuset:/a\n1:name=systemd:/a\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "30000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "20000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/cpuset/a/cpuset.cpus", "0-5\n"),
        ],
        "1.5",
        2048,
    );
}

#[test]
fn mounts_are_where_the_kernel_says() {
    // The container's own group is mounted, at an unusual place, and the process is in one below it.
    check(
        &[
            ("proc/self/cgroup", "4:cpu:/box/7/sub\n0::/box/7/sub\n"),
            (
                "proc/self/mountinfo",
                "30 25 0:26 /box/7 /mnt/cg rw,nosuid - cgroup2 cgroup rw\n\
                 31 25 0:27 /box/7 /mnt/v1 rw - cgroup cgroup rw,cpu,cpuacct\n",
            ),
            ("mnt/cg/sub/memory.max", "1073741824\n"),
            ("mnt/v1/sub/cpu.cfs_quota_us", "400000\n"),
            ("mnt/v1/sub/cpu.cfs_period_us", "100000\n"),
        ],
        "4",
        1024,
    );
}

#[test]
fn both_versions_side_by_side() {
    check(
        &[
            ("proc/self/cgroup", "4:memory:/x\n1:cpu:/\n0::/y\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4294967296\n"),
            ("sys/fs/cgroup/unified/y/cpu.max", "300000 100000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ],
        "2",
        4096,
    );
}

#[test]
fn cpusets_and_affinity_narrow_the_processors() {
    check(
        &[
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/cpuset.cpus.effective", "0-3\n"),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t1-2,7\n"),
        ],
        "2",
        16384,
    );
    // Neither may leave nothing.
    check(&[("proc/self/status", "Cpus_allowed_list:\t100\n")], "8", 16384);
}

#[test]
fn garbage_is_passed_over() {
    check(
        &[
            ("proc/self/cgroup", "\nnonsense\n0::/a\n7:cpu\n4:memory,cpu,cpuset:/a\n"),
            ("proc/self/mountinfo", "x - \n - cgroup2\n1 2 3 /\n"),
            ("proc/self/status", "Cpus_allowed_list:\tall of them\n"),
            ("sys/fs/cgroup/a/cpu.max", "lots and lots\n"),
            ("sys/fs/cgroup/a/memory.max", "\u{0}\u{ff}\n"),
            ("sys/fs/cgroup/a/cpuset.cpus.effective", "9-1\n"),
            ("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100\n"),
            ("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "0\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "-5\n"),
        ],
        "8",
        16384,
    );
    let (_folder, options) = machine(&[
        ("sys/devices/system/cpu/online", "?"),
        ("proc/cpuinfo", "processor\t: 0\nprocessor\t: 1\nmodel name: x\nprocessor\t: many\n"),
        ("proc/meminfo", "MemTotal: plenty\n"),
    ]);
    let got = detect(&options).unwrap();
    assert_eq!(got.total, Resources::cpu(Quantity::whole(2)));
    assert_eq!(got.hostname, "unknown");
}

#[test]
fn stated_amounts_replace_what_is_found() {
    let (_folder, mut options) = machine(&[EIGHT, MEMORY]);
    options.extra_resources = vec![
        ("CPU".to_owned(), Quantity::whole(3)),
        ("memory".to_owned(), Quantity::whole(1 << 20)),
        ("licence".to_owned(), Quantity::whole(2)),
    ];
    assert_eq!(detect(&options).unwrap().total.to_string(), "3 CPU, 1.0 MiB memory, 2 licence");
    options.extra_resources.clear();
    options.cpu = Some(Quantity::ZERO);
    options.memory = Some(0);
    assert!(detect(&options).unwrap().total.is_empty());
}

#[test]
fn what_cannot_be_stated_is_an_error_that_says_why() {
    let check = |resources: &[&str], labels: &[(&str, &str)], want: &str| {
        let (_folder, mut options) = machine(&[EIGHT, MEMORY]);
        options.cpu = Some(Quantity::ONE);
        options.extra_resources = resources.iter().map(|name| ((*name).to_owned(), Quantity::ONE)).collect();
        options.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let error = detect(&options).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    check(&["no spaces"], &[], "\"no spaces\" is not allowed");
    check(&["x", "x"], &[], "resource x is given twice");
    check(&["cpu"], &[], "resource CPU is given twice");
    check(&[], &[("zone", "a"), ("zone", "b")], "label \"zone\" is given twice");
    check(&[], &[(LABEL_OS, "other")], "label \"mobula.io/os\" is given twice");
    check(&[], &[("zone", "")], "label \"zone\"=\"\" is not allowed");
    check(&[], &[("bad key", "x")], "label \"bad key\"=\"x\" is not allowed");
    check(&[], &[("k", "v"); 70], "73 labels are too many");
}

#[test]
fn labels_are_sorted_and_the_host_name_fits() {
    let (_folder, mut options) = machine(&[EIGHT, MEMORY, ("proc/sys/kernel/hostname", "node é 1\n")]);
    options.labels = vec![("zone".to_owned(), "eu-1".to_owned()), ("a".to_owned(), "b".to_owned())];
    let got = detect(&options).unwrap();
    assert_eq!(got.hostname, "node é 1");
    let keys: Vec<&str> = got.labels.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["a", LABEL_ARCH, LABEL_HOSTNAME, LABEL_OS, "zone"]);
    assert_eq!(got.labels[2].1, "node---1");
}

struct Fixed(u32);

impl GpuProbe for Fixed {
    fn probe(&self) -> Vec<Device> {
        (0..self.0)
            .map(|index| Device {
                kind: Kind::Gpu,
                index,
                model: "Fixed".to_owned(),
                memory_bytes: 1 << 34,
                uuid: format!("GPU-{index}"),
            })
            .collect()
    }
}

/// An environment of these variables alone.
fn environment<'a>(variables: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
    |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
}

#[test]
fn graphics_processors_are_counted_one_each_and_nvidias_only_on_the_machine_itself() {
    let variables = [("CUDA_VISIBLE_DEVICES", "2,GPU-0")];
    let here = detect_with(&Options::default(), &Fixed(3), &environment(&variables)).unwrap();
    assert_eq!(here.total.get(&Kind::Gpu), Quantity::whole(2));
    assert_eq!(here.devices.iter().map(|d| d.index).collect::<Vec<_>>(), [0, 2]);
    let not_asked = Options { devices: false, ..Options::default() };
    assert!(detect_with(&not_asked, &Fixed(3), &environment(&[])).unwrap().devices.is_empty());
    let (_folder, recorded) = machine(&[EIGHT, MEMORY]);
    let recorded = detect_with(&recorded, &Fixed(3), &environment(&[])).unwrap();
    assert!(recorded.devices.is_empty());
    assert!(recorded.total.get(&Kind::Gpu).is_zero());
}

/// A machine with one processor and two of AMD's GPUs, one of which says little about itself.
const AMD: [(&str, &str); 8] = [
    ("sys/class/kfd/kfd/topology/nodes/0/gpu_id", "0\n"),
    ("sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 64\nsimd_count 0\n"),
    ("sys/class/kfd/kfd/topology/nodes/1/gpu_id", "51140\n"),
    ("sys/class/kfd/kfd/topology/nodes/1/name", "mi300x\n"),
    (
        "sys/class/kfd/kfd/topology/nodes/1/properties",
        "simd_count 1216\ngfx_target_version 90402\nunique_id 11457612874509830\n",
    ),
    (
        "sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties",
        "heap_type 1\nsize_in_bytes 206141652992\nflags 0\n",
    ),
    ("sys/class/kfd/kfd/topology/nodes/10/gpu_id", "7\n"),
    ("sys/class/kfd/kfd/topology/nodes/10/properties", "gfx_target_version 90010\nunique_id 0\n"),
];

#[test]
fn amds_are_found_in_the_order_in_which_they_are_counted() {
    let (_folder, options) = machine(&[&[EIGHT, MEMORY], AMD.as_slice()].concat());
    let got = detect_with(&options, &Fixed(0), &environment(&[])).unwrap();
    let told: Vec<_> =
        got.devices.iter().map(|d| (d.index, d.model.as_str(), d.memory_bytes, d.uuid.as_str())).collect();
    assert_eq!(told, [(0, "AMD mi300x", 206_141_652_992, "GPU-0028b4a3615bee06"), (1, "AMD gfx90a", 0, "")]);
    assert!(got.devices.iter().all(is_amd));
    assert_eq!(got.total.get(&Kind::Gpu), Quantity::whole(2));
    for (variable, want) in [("1", vec![1]), ("1,0", vec![0, 1]), ("-1", vec![]), ("GPU-0028", vec![0])] {
        let variables = [("HIP_VISIBLE_DEVICES", variable), ("CUDA_VISIBLE_DEVICES", "")];
        let got = detect_with(&options, &Fixed(0), &environment(&variables)).unwrap();
        assert_eq!(got.devices.iter().map(|d| d.index).collect::<Vec<_>>(), want, "{variable}");
    }
}

#[test]
fn what_amds_driver_garbles_is_left_out() {
    let broken = [
        ("sys/class/kfd/kfd/topology/nodes/2/gpu_id", "a GPU\n"),
        ("sys/class/kfd/kfd/topology/nodes/3/gpu_id", "-1\n"),
        ("sys/class/kfd/kfd/topology/nodes/4/name", "no number\n"),
        ("sys/class/kfd/kfd/topology/nodes/x/gpu_id", "9\n"),
        ("sys/class/kfd/kfd/topology/nodes/5/gpu_id", "99999999999999999999999\n"),
        ("sys/class/kfd/kfd/topology/nodes/10/mem_banks/0/properties", "heap_type 2\nsize_in_bytes much\n"),
    ];
    let (_folder, options) = machine(&[&[EIGHT, MEMORY], AMD.as_slice(), broken.as_slice()].concat());
    let got = detect_with(&options, &Fixed(0), &environment(&[])).unwrap();
    assert_eq!(
        got.devices.iter().map(|d| d.model.as_str()).collect::<Vec<_>>(),
        ["AMD mi300x", "AMD gfx90a"]
    );
    let (folder, options) = machine(&[EIGHT, MEMORY]);
    fs::create_dir_all(folder.path().join("sys/class/kfd/kfd/topology")).unwrap();
    fs::write(folder.path().join("sys/class/kfd/kfd/topology/nodes"), "no folder").unwrap();
    assert!(detect_with(&options, &Fixed(0), &environment(&[])).unwrap().devices.is_empty());
}

/// The variables of the first worker of a slice.
const SLICE: [(&str, &str); 3] =
    [("TPU_ACCELERATOR_TYPE", "v4-16"), ("TPU_NAME", "research-3"), ("TPU_WORKER_ID", "0")];

#[track_caller]
fn check_tpu(files: &[(&str, &str)], variables: &[(&str, &str)], chips: &[u32], want: &str) {
    let (_folder, options) = machine(&[&[EIGHT, MEMORY], files].concat());
    let got = detect_with(&options, &Fixed(0), &environment(variables)).unwrap();
    let found: Vec<u32> = got.devices.iter().filter(|d| d.kind == Kind::Tpu).map(|d| d.index).collect();
    assert_eq!(found, chips);
    assert_eq!(got.total.get(&Kind::Tpu), Quantity::whole(chips.len() as u64));
    let labels = got.labels.iter().filter(|(key, _)| key.contains("tpu"));
    let mut told: Vec<String> = labels.map(|(key, value)| format!("{key}={value}")).collect();
    told.extend(
        got.total
            .iter()
            .filter(|(kind, _)| kind.to_string().contains("head"))
            .map(|(k, n)| format!("{n} {k}")),
    );
    assert_eq!(told.join(" "), want);
}

#[test]
fn tensor_processors_are_their_device_files() {
    let accel = [("dev/accel0", ""), ("dev/accel1", ""), ("dev/accel2", ""), ("dev/accel3", "")];
    let first =
        "mobula.io/tpu-slice=research-3 mobula.io/tpu-type=v4-16 mobula.io/tpu-worker=0 1 TPU-v4-16-head";
    check_tpu(&accel, &SLICE, &[0, 1, 2, 3], first);
    check_tpu(&accel, &[], &[0, 1, 2, 3], "");
    check_tpu(
        &accel,
        &[SLICE[0], SLICE[1], ("TPU_WORKER_ID", "1")],
        &[0, 1, 2, 3],
        "mobula.io/tpu-slice=research-3 mobula.io/tpu-type=v4-16 mobula.io/tpu-worker=1",
    );
    check_tpu(&accel, &[("TPU_VISIBLE_CHIPS", "3,1")], &[1, 3], "");
    // Hidden chips are another's, and so is their slice.
    check_tpu(&accel, &[SLICE[0], SLICE[2], ("TPU_VISIBLE_CHIPS", "")], &[], "");
    // Numbers with gaps are counted without: so does the library.
    check_tpu(&[("dev/vfio/vfio", ""), ("dev/vfio/12", ""), ("dev/vfio/7", "")], &[], &[0, 1], "");
    check_tpu(&[], &SLICE, &[], "");
}

#[test]
fn hidden_chips_are_counted_and_hosts_see_none_of_them() {
    let accel = [("dev/accel0", ""), ("dev/accel1", ""), ("dev/accel2", ""), ("dev/accel3", "")];
    for (visible, granted, want) in [
        (None, &[1, 3][..], "1,3 in 1,2,1"),
        (Some("1,3"), &[1, 3][..], "1,3 in 1,2,1"),
        (Some("1,3"), &[3][..], "3 in 1,1,1"),
        (Some("0,1,2,3"), &[0, 1, 2, 3][..], "0,1,2,3 in nothing"),
        (Some("1,3"), &[][..], "-1 in nothing"),
        (Some(""), &[][..], "-1 in nothing"),
        (None, &[][..], "-1 in nothing"),
    ] {
        let (_folder, mut options) = machine(&[&[EIGHT, MEMORY], &accel[..]].concat());
        let variables: Vec<_> = visible.map(|visible| ("TPU_VISIBLE_CHIPS", visible)).into_iter().collect();
        let got = detect_with(&options, &Fixed(0), &environment(&variables)).unwrap();
        let grant = |index: &u32| DeviceGrant { kind: Kind::Tpu, index: *index, share: Quantity::ONE };
        let grants: Vec<DeviceGrant> = granted.iter().map(grant).collect();
        let set = device_env(&grants, &got.devices, got.tpu_chips);
        let of = |name: &str| {
            set.iter().find(|(key, _)| key == name).map_or("nothing", |(_, value)| value.as_str())
        };
        assert_eq!(format!("{} in {}", of("TPU_VISIBLE_CHIPS"), of("TPU_CHIPS_PER_PROCESS_BOUNDS")), want);
        options.devices = false;
        assert_eq!(detect_with(&options, &Fixed(0), &environment(&variables)).unwrap().tpu_chips, 4);
    }
    let (_folder, options) = machine(&[EIGHT, MEMORY]);
    let got = detect_with(&options, &Fixed(0), &environment(&[])).unwrap();
    let set = device_env(&[], &got.devices, got.tpu_chips);
    assert!(set.iter().all(|(name, _)| !name.starts_with("TPU_")), "{set:?}");
}

#[test]
fn what_is_no_tensor_processor_is_not_taken_for_one() {
    let others = [
        ("dev/accel/accel0", ""),
        ("dev/accelerator", ""),
        ("dev/accel-1", ""),
        ("dev/vfio/vfio", ""),
        ("dev/vfio/5", ""),
        ("sys/kernel/iommu_groups/5/devices/0000:01:00.0/vendor", "0x10de\n"),
    ];
    check_tpu(&others, &SLICE, &[], "");
    let ours = [("dev/vfio/6", ""), ("sys/kernel/iommu_groups/6/devices/0000:02:00.0/vendor", "0x1ae0\n")];
    check_tpu(&[others.as_slice(), &ours].concat(), &[], &[0], "");
    let nonsense = [("TPU_ACCELERATOR_TYPE", "v4 of mine"), ("TPU_NAME", " "), ("TPU_WORKER_ID", "first")];
    check_tpu(&ours, &nonsense, &[0], "");
}

#[test]
fn memory_nodes_are_counted_where_the_agent_may_run() {
    let two = [
        ("sys/devices/system/node/node0/cpulist", "0-3\n"),
        ("sys/devices/system/node/node1/cpulist", "4-7\n"),
        ("sys/devices/system/node/node2/cpulist", "\n"),
        ("sys/devices/system/node/node3/cpulist", "7-4\n"),
    ];
    for (more, want) in [
        (vec![], Some("2")),
        (vec![("proc/self/status", "Cpus_allowed_list:\t1-2\n")], Some("1")),
        (vec![("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpuset.cpus.effective", "4-7")], Some("1")),
    ] {
        let (_folder, options) = machine(&[&[EIGHT, MEMORY], two.as_slice(), &more].concat());
        let labels = detect(&options).unwrap().labels;
        let got = labels.iter().find(|(key, _)| key == LABEL_NODES).map(|(_, value)| value.as_str());
        assert_eq!(got, want);
    }
    let (_folder, options) = machine(&[EIGHT, MEMORY]);
    assert!(detect(&options).unwrap().labels.iter().all(|(key, _)| key != LABEL_NODES));
}

#[test]
fn stated_devices_are_believed() {
    let (_folder, mut options) = machine(&[&[EIGHT, MEMORY, ("dev/accel0", "")], AMD.as_slice()].concat());
    let stated = |name: &str, amount: &str| (name.to_owned(), amount.parse::<Quantity>().unwrap());
    options.extra_resources = vec![stated("gpu", "1"), stated("TPU", "3")];
    let got = detect_with(&options, &Fixed(0), &environment(&SLICE)).unwrap();
    let told: Vec<String> =
        got.devices.iter().map(|d| format!("{} {} {}", d.kind, d.index, d.model)).collect();
    assert_eq!(told, ["GPU 0 AMD mi300x", "TPU 0 TPU v4", "TPU 1 stated", "TPU 2 stated"]);
    assert_eq!(got.total.get(&Kind::Tpu), Quantity::whole(3));
    options.extra_resources = vec![stated("gpu", "0"), stated("TPU-v4-16-head", "0")];
    let got = detect_with(&options, &Fixed(0), &environment(&SLICE)).unwrap();
    assert_eq!(got.total.to_string(), "8 CPU, 16.0 GiB memory, 1 TPU");
    for (amount, want) in [("0.5", "0.5 GPU cannot be stated"), ("257", "257 GPU cannot be stated")] {
        options.extra_resources = vec![stated("gpu", amount)];
        let error = detect(&options).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn this_machine_offers_something() {
    let here = detect(&Options::default()).unwrap();
    assert!(!here.total.get(&Kind::Cpu).is_zero());
    assert!(!here.total.get(&Kind::Memory).is_zero());
    assert!(!here.hostname.is_empty());
}
