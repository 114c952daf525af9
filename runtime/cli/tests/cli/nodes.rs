//! Nodes that come when they are needed and leave when they are not.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use mobula::{Cluster, ErrorKind, PlacementGroup};

use crate::harness::{Home, digits, gone, node, said, wait_for};

/// The numbers of the processes of nodes that the head started: what claims the homes it made for them.
fn started(home: &Home) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(home.path().join("auto")) else { return Vec::new() };
    let claim = |folder: PathBuf| {
        let text = std::fs::read_to_string(folder.join("run/node.json")).ok()?;
        let mark: serde_json::Value = serde_json::from_str(&text).ok()?;
        u32::try_from(mark["pid"].as_u64()?).ok()
    };
    entries.filter_map(|entry| claim(entry.ok()?.path())).filter(|pid| !gone(*pid)).collect()
}

#[test]
fn nodes_come_when_work_waits_and_leave_when_they_are_idle() {
    let home = Home::new();
    let mut head = home.run(&[
        "head",
        "--quic",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--node-type",
        "worker=0..2 2 cpu 256MiB memory pool=auto idle 1s",
        "--node-type",
        "huge=0..1 64 cpu idle 1s",
    ]);
    head.line("Ctrl-C ends the head");
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(home.path().join("head.json")).unwrap()).unwrap();
    let status = home.status();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 0, "nothing is needed yet: {status}");

    let token = home.say(&["token", "create", "--role", "driver"]).ok();
    let mut remote = Command::new(digits());
    remote.env("MOBULA_ADDRESS", told["quic"].as_str().unwrap()).env("MOBULA_TOKEN", token.trim());
    remote.env("MOBULA_HOME", "/nonexistent");
    let text = said(remote).ok();
    let last = text.lines().last().unwrap().to_owned();
    assert!(last.contains("accuracy=0.9"), "{text}");
    assert!(last.contains("nodes=1") || last.contains("nodes=2"), "{text}");

    let text = home.say(&["status"]).ok();
    assert!(text.contains("NODE TYPE") && text.contains("worker") && text.contains("0 to 2"), "{text}");
    wait_for("the nodes to leave", || {
        let status = home.status();
        let workers = &status["scaling"]["types"][0];
        assert_eq!(workers["name"], "worker", "{status}");
        (status["nodes"].as_array().unwrap().is_empty() && workers["nodes"] == 0).then_some(())
    });
    wait_for("their processes to end", || started(&home).is_empty().then_some(()));
    head.end();
}

struct Idler;

#[mobula::actor]
impl Idler {
    fn new() -> Self {
        Self
    }
}

/// This process is the driver.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_node_has_starts_one_that_has_it_or_is_shown() {
    let (home, other) = (Home::new(), Home::new());
    let mut head = home.run(&[
        "head",
        "--quic",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--node-type",
        "big=0..1 4 cpu 256MiB memory pool=auto idle 60s",
    ]);
    head.line("Ctrl-C ends the head");
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(home.path().join("head.json")).unwrap()).unwrap();
    let address = told["quic"].as_str().unwrap();
    let mut member = other.run(&node(address, &["--join", &home.token(), "--cpus", "1"]));
    member.line("Node ");
    let token = home.say(&["token", "create", "--role", "driver"]).ok();
    let cluster = Cluster::connect(address).token(token.trim()).quiet().start().await.unwrap();

    // One CPU is there; a type of nodes has four.
    let group = PlacementGroup::strict_pack().bundles(2, &[("cpu", 2.0)]).create().await.unwrap();
    group.ready().await.unwrap();
    let status = home.status();
    let big = status["nodes"].as_array().unwrap().iter().find(|node| node["labels"]["pool"] == "auto");
    assert_eq!(big.map(|big| &big["total"]["CPU"]), Some(&4.0.into()), "{status}");

    // No type has nine.
    let error = Idler::spawn().options(|options| options.cpu(9.0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    let status = home.status();
    let refused = &status["refused"][0];
    assert_eq!((&refused["times"], &refused["shapes"][0]["resources"]["CPU"]), (&1.into(), &9.0.into()));
    assert!(status["unmet"].as_array().unwrap().is_empty(), "it does not wait: {status}");
    let text = home.say(&["status"]).ok();
    assert!(text.contains("Refused once ") && text.contains("Idler, 1 x 9 CPU"), "{text}");
    let text = home.say(&["why", refused["what"].as_str().unwrap()]).ok();
    assert!(text.contains("waits no more: no node has 9 CPU: the most any node has is 4"), "{text}");
    // Unless it waits for such a node.
    let patient = Idler::spawn().options(|options| options.cpu(9.0).wait_for_node(true)).start();
    let id = patient.id().to_string();
    wait_for("the scheduler to say why it waits", || {
        home.say(&["why", &id]).ok().contains("no node that may be started could hold it").then_some(())
    });
    wait_for("the autoscaler to have seen it", || {
        let left = &home.status()["scaling"]["left"][0];
        (left["resources"]["CPU"] == 9.0).then_some(())
    });
    assert_eq!(home.status()["unmet"][0]["resources"]["CPU"], 9.0);
    drop((patient, group));
    cluster.shutdown();
    member.end();
    head.end();
}

#[test]
fn a_node_is_drained_by_name_and_may_stay_after_all() {
    let home = Home::new();
    let (head, address) = home.head();
    let address = address.to_string();
    let other = Home::new();
    let token = home.token();
    let mut member = other.run(&node(&address, &["--join", token.as_str(), "--cpus", "1", "--name", "box"]));
    member.line("Node ");
    home.say(&["drain", "nobody"])
        .failed(1, &["there is no node \"nobody\"", "[MOB4005]", "mobula explain MOB4005"]);
    home.say(&["drain", "box", "--undo"]).failed(1, &["does not drain", "[MOB4005]"]);
    let said = home.say(&["drain", "box", "--within", "never"]);
    assert!(said.code == Some(2) && said.err.contains("--within"), "{said:?}");
    let text = home.say(&["drain", "node-1"]).ok();
    assert!(text.contains("node-1 has left."), "{text}");
    member.line("The node has drained, and left the cluster.");
    let (status, text) = member.wait("the node to end by itself");
    assert!(status.success(), "{text}");
    // It may come back, and is as good as new.
    let mut member = other.run(&node(&address, &["--cpus", "1"]));
    member.line("Node ");
    let status = home.status();
    assert!(status["nodes"][0]["draining"].is_null() && status["nodes"][0]["name"] == "box", "{status}");
    member.end();
    head.end();
}

#[test]
fn a_node_gives_jobs_users_only_where_that_keeps_them_apart() {
    let (here, there) = (Home::new(), Home::new());
    let (_head, address) = here.head();
    let address = address.to_string();
    let uids = ["--job-uids", "1960000000-1960000003", "--join", &here.token()];
    let refused = |parts: &[&str]| there.say(&node(&address, &uids)).failed(1, parts);
    if !rustix::process::geteuid().is_root() {
        return refused(&["job_uids", "must run as root", "[MOB5001]", "--job-uids"]);
    }
    let above = there.path().parent().unwrap().to_owned();
    let open = |mode| std::fs::set_permissions(&above, std::fs::Permissions::from_mode(mode)).unwrap();
    open(0o700);
    refused(&["is closed to the users of jobs", "chmod o+x", "[MOB5002]", "--job-uids"]);
    open(0o711);
    let mut node = there.run(&node(&address, &uids));
    node.line("is up");
    assert_eq!(here.status()["nodes"][0]["multi_tenant"], true);
    let text = here.say(&["status"]).ok();
    assert!(!text.contains("single-tenant"), "{text}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let home = there.path();
    for passed in ["", "node", "node/jobs", "node/binaries"] {
        assert_eq!(mode(&home.join(passed)), 0o711, "{passed}");
    }
    for closed in ["run", "node/identity", "node/spill"] {
        assert_eq!(mode(&home.join(closed)), 0o700, "{closed}");
    }
    assert_eq!(mode(&home.join("node/agent.sock")), 0o600);
    node.end();
}
