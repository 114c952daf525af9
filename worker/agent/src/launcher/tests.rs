//! Real processes: scripts of `/bin/sh`.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use mobula_proto::Quantity;
use tokio::io::AsyncReadExt;

use super::*;

/// How long anything here may take before it has hung.
const DEADLINE: Duration = Duration::from_secs(30);

fn shell(script: &str) -> (Spec, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let spec = Spec {
        program: "/bin/sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: Vec::new(),
        device_env: Vec::new(),
        boot_fd: theirs.into(),
        cwd: None,
        user: None,
        memory: None,
    };
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    (spec, ours)
}

async fn ended(exit: Exited) -> Exit {
    tokio::time::timeout(DEADLINE, exit).await.expect("the end is reported")
}

async fn all(mut output: Output) -> String {
    let mut text = String::new();
    tokio::time::timeout(DEADLINE, output.read_to_string(&mut text)).await.expect("output ends").unwrap();
    text
}

/// Runs to the end; exit, output and errors.
async fn run(spec: Spec) -> (Exit, String, String) {
    let Launched { stdout, stderr, exit, killer, .. } = ProcessLauncher.launch(spec).unwrap();
    let done = tokio::join!(ended(exit), all(stdout), all(stderr));
    drop(killer);
    done
}

#[tokio::test]
async fn ends_are_reported_by_code_and_by_signal() {
    let check = async |script: &str, want: Exit, text: &str| {
        let (exit, ..) = run(shell(script).0).await;
        assert_eq!(exit, want);
        assert_eq!(exit.to_string(), text);
    };
    check("exit 0", Exit::Code(0), "exited with code 0").await;
    check("exit 7", Exit::Code(7), "exited with code 7").await;
    check("kill -9 $$", Exit::Signal(9), "killed by signal 9 (SIGKILL)").await;
    check("kill -TERM $$", Exit::Signal(15), "killed by signal 15 (SIGTERM)").await;
}

#[tokio::test]
async fn output_is_captured_and_the_folder_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let (mut spec, _ours) = shell("pwd; echo wrong >&2");
    spec.cwd = Some(folder.path().to_owned());
    let (exit, stdout, stderr) = run(spec).await;
    let want = folder.path().canonicalize().unwrap();
    assert_eq!((exit, stdout.trim(), stderr.as_str()), (Exit::Code(0), want.to_str().unwrap(), "wrong\n"));
}

#[tokio::test]
async fn the_environment_is_scrubbed() {
    // Cargo sets this one for every test: it stands for whatever an agent may have in its environment.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let (mut spec, _ours) = shell("env");
    spec.env = vec![
        ("MINE".to_owned(), "1".to_owned()),
        ("GPUS".to_owned(), "all".to_owned()),
        (BOOT_VARIABLE.to_owned(), "99".to_owned()),
    ];
    spec.device_env = vec![("GPUS".to_owned(), "one".to_owned())];
    let (_, stdout, _) = run(spec).await;
    let lines: Vec<&str> = stdout.lines().collect();
    for want in ["MINE=1", "GPUS=one", "MOBULA_BOOT_FD=0"] {
        assert!(lines.contains(&want), "{want} not in {stdout}");
    }
    // What a shell sets by itself.
    let own = ["MINE", "GPUS", "MOBULA_BOOT_FD", "PWD", "OLDPWD", "SHLVL", "_"];
    for line in lines {
        let name = line.split('=').next().unwrap_or_default();
        assert!(
            own.contains(&name) || KEPT.contains(&name) || name.starts_with(KEPT_PREFIX),
            "{line} leaked"
        );
    }
}

#[tokio::test]
async fn the_boot_socket_is_descriptor_zero_and_goes_both_ways() {
    let (spec, mut ours) = shell("read line; echo \"got $line\" >&0");
    let launched = ProcessLauncher.launch(spec).unwrap();
    ours.write_all(b"hello\n").unwrap();
    assert_eq!(ended(launched.exit).await, Exit::Code(0));
    // The agent kept no copy of the other end: reading comes to an end.
    let mut answer = String::new();
    ours.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "got hello\n");
}

#[tokio::test]
async fn the_agents_end_is_not_inherited() {
    // `cat` ends only when the last copy of the agent's end is closed.
    let (spec, ours) = shell("exec cat");
    let launched = ProcessLauncher.launch(spec).unwrap();
    drop(ours);
    assert_eq!(ended(launched.exit).await, Exit::Code(0));
}

/// A host with a grandchild that holds the output open; both are there once the line is read.
async fn with_grandchild(script: &str) -> (Launched, UnixStream) {
    let (spec, ours) = shell(script);
    let mut launched = ProcessLauncher.launch(spec).unwrap();
    let mut line = [0; 3];
    tokio::time::timeout(DEADLINE, launched.stdout.read_exact(&mut line)).await.unwrap().unwrap();
    assert_eq!(&line, b"up\n");
    (launched, ours)
}

#[tokio::test]
async fn killing_reaches_the_whole_group() {
    let (launched, _ours) = with_grandchild("sleep 1000 & echo up; wait").await;
    let Launched { stdout, exit, killer, .. } = launched;
    killer.kill();
    killer.kill();
    assert_eq!(ended(exit).await, Exit::Signal(9));
    assert_eq!(all(stdout).await, "", "the grandchild is gone: nobody holds the pipe");
    killer.kill();
}

#[tokio::test]
async fn what_a_host_leaves_behind_is_killed_when_it_ends() {
    let (launched, ours) = with_grandchild("sleep 1000 & echo up; read line; exit 3").await;
    let Launched { stdout, exit, killer, .. } = launched;
    drop(ours);
    assert_eq!(ended(exit).await, Exit::Code(3));
    assert_eq!(all(stdout).await, "");
    drop(killer);
}

#[tokio::test]
async fn dropping_kills() {
    let (Launched { exit, killer, .. }, _ours) = with_grandchild("echo up; sleep 1000").await;
    drop(killer);
    assert_eq!(ended(exit).await, Exit::Signal(9));

    let (launched, mut ours) = with_grandchild("echo up; sleep 1000").await;
    drop(launched);
    let mut nothing = Vec::new();
    ours.read_to_end(&mut nothing).expect("the host's end is closed");
}

#[tokio::test]
async fn a_host_leads_its_own_group() {
    let (spec, _ours) = shell("cut -d' ' -f5 /proc/$$/stat; echo $$");
    let (_, stdout, _) = run(spec).await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], lines[1], "group and process have one number");
}

#[tokio::test]
async fn what_cannot_start_is_an_error() {
    let check = |change: &dyn Fn(&mut Spec), want: &str| {
        let (mut spec, mut ours) = shell("true");
        change(&mut spec);
        let error = ProcessLauncher.launch(spec).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
        assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the boot socket is closed");
    };
    check(&|spec| spec.program = "/no/such/program".into(), "/no/such/program cannot be started");
    check(&|spec| spec.args.push("a\0b".to_owned()), "cannot be an argument");
    check(&|spec| spec.env.push(("A=B".to_owned(), String::new())), "\"A=B\" cannot be");
    check(&|spec| spec.env.push(("A".to_owned(), "x".repeat(ARGUMENT_BYTES_MAX))), "too many");
}

#[test]
fn outside_of_a_runtime_is_an_error() {
    assert!(matches!(ProcessLauncher.launch(shell("true").0), Err(Error::NoRuntime)));
}

#[tokio::test]
async fn an_abandoned_report_is_still_a_report() {
    let (report, exit) = Exited::channel();
    drop(report);
    assert!(matches!(ended(exit).await, Exit::Unknown(_)));
}

#[test]
fn hosts_see_only_the_devices_they_were_granted() {
    let grant = |kind: Kind, index| DeviceGrant { kind, index, share: Quantity::ONE };
    let device = |kind, index, model: &str, uuid: &str| Device {
        kind,
        index,
        model: model.to_owned(),
        memory_bytes: 0,
        uuid: uuid.to_owned(),
    };
    let check_of = |chips, devices: &[Device], grants: &[DeviceGrant], want: &[&str]| {
        let got: Vec<String> =
            device_env(grants, devices, chips).iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(got[0], "CUDA_DEVICE_ORDER=PCI_BUS_ID");
        assert_eq!(got[1..], *want);
    };
    let check =
        |devices: &[Device], grants: &[DeviceGrant], want: &[&str]| check_of(0, devices, grants, want);
    let gpus = [("GPU-a", 0), ("", 1), ("GPU-c", 2)];
    let nvidia = gpus.map(|(uuid, index)| device(Kind::Gpu, index, "NVIDIA X", uuid));
    let amd = gpus.map(|(uuid, index)| device(Kind::Gpu, index, "AMD X", uuid));
    check(&nvidia, &[], &["CUDA_VISIBLE_DEVICES=", "HIP_VISIBLE_DEVICES=-1"]);
    let two = [grant(Kind::Gpu, 2), grant(Kind::Gpu, 1)];
    check(&nvidia, &two, &["CUDA_VISIBLE_DEVICES=GPU-c,1", "HIP_VISIBLE_DEVICES=-1"]);
    check(&amd, &two, &["CUDA_VISIBLE_DEVICES=", "HIP_VISIBLE_DEVICES=2,1"]);
    let none = ["CUDA_VISIBLE_DEVICES=", "HIP_VISIBLE_DEVICES=-1"];
    // Each variable by its new name and its old one.
    let chips = |has: u32, offered: &[u32], granted: &[u32], visible: &str, bounds: &str| {
        let tpus: Vec<_> = offered.iter().map(|index| device(Kind::Tpu, *index, "TPU v4", "")).collect();
        let grants: Vec<_> = granted.iter().map(|index| grant(Kind::Tpu, *index)).collect();
        let mut want = none.map(str::to_owned).to_vec();
        want.extend(["CHIPS", "DEVICES"].map(|what| format!("TPU_VISIBLE_{what}={visible}")));
        if !bounds.is_empty() {
            want.extend(["PROCESS", "HOST"].map(|whose| format!("TPU_CHIPS_PER_{whose}_BOUNDS={bounds}")));
            want.extend(["PROCESS", "HOST"].map(|whose| format!("TPU_{whose}_BOUNDS=1,1,1")));
        }
        check_of(has, &tpus, &grants, &want.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let four = [0, 1, 2, 3];
    chips(4, &four, &[3], "3", "1,1,1");
    chips(4, &four, &[0, 3], "0,3", "1,2,1");
    chips(8, &[0, 1, 2, 3, 4, 5, 6, 7], &four, "0,1,2,3", "2,2,1");
    // All of them may be a part of something larger.
    chips(4, &four, &four, "0,1,2,3", "");
    chips(1, &[0], &[0], "0", "");
    // All that the node offers are not all that there are.
    chips(4, &[1, 3], &[1, 3], "1,3", "1,2,1");
    chips(4, &[2], &[2], "2", "1,1,1");
    // More than there are are believed.
    chips(1, &[0, 1], &[0], "0", "1,1,1");
    // Without a grant none are seen, whatever the node offers.
    chips(4, &four, &[], "-1", "");
    chips(4, &[], &[], "-1", "");
    chips(0, &four, &[], "-1", "");
}

#[tokio::test]
async fn a_host_of_another_user_has_no_rights_of_roots() {
    if !rustix::process::geteuid().is_root() {
        return crate::skipped::skipped("it takes root to become another user");
    }
    const USER: u32 = 1_900_000_040;
    let (mut spec, _ours) = shell(
        "grep -E '^(Uid|Gid|Groups|NoNewPrivs|CapEff|CapPrm):' /proc/self/status; tr '\\0' ' ' < /proc/$$/cmdline",
    );
    spec.user = Some(USER);
    spec.cwd = Some("/".into());
    let (exit, stdout, stderr) = run(spec).await;
    assert_eq!((exit, stderr.as_str()), (Exit::Code(0), ""));
    let found: Vec<String> =
        stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let same = [USER.to_string(), USER.to_string(), USER.to_string(), USER.to_string()].join(" ");
    let none = "0000000000000000";
    assert_eq!(found[0], format!("Uid: {same}"));
    assert_eq!(found[1], format!("Gid: {same}"));
    assert_eq!(found[2], "Groups:");
    assert_eq!(
        found[3..6],
        [format!("CapPrm: {none}"), format!("CapEff: {none}"), "NoNewPrivs: 1".to_owned()]
    );
    assert!(found[6].starts_with("mobula-host -c"), "{found:?}");
}
