//! Clusters that come up, and go.

use mobula::{Cluster, Result, Tensor, private};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Home, gone, node, private, run, said, wait_for};

#[test]
fn a_node_joins_is_shown_leaves_and_comes_back_without_a_token() {
    let (here, there) = (Home::new(), Home::new());
    let (head, address) = here.head();
    let address = address.to_string();
    assert!(private(&here.path()));

    let token = here.token();
    let more = [
        "--name",
        "left",
        "--cpus",
        "3",
        "--memory",
        "2GiB",
        "--resource",
        "licence=1.5",
        "--label",
        "zone=a",
    ];
    let mut command = there.command(&node(&address, &more));
    // Not on the command line, where other users of the machine would see it.
    command.env("MOBULA_JOIN", &token);
    let mut first = run(command);
    first.line("Node left");
    let socket = there.path().join("node/agent.sock");
    first.line(&format!("MOBULA_ADDRESS=unix:{}", socket.display()));
    assert!(socket.exists());

    let status = here.status();
    let shown = &status["nodes"][0];
    assert_eq!(shown["name"], "left");
    assert_eq!(shown["total"]["CPU"], 3.0);
    assert_eq!(shown["total"]["memory"], 2.0 * 1024.0 * 1024.0 * 1024.0);
    assert_eq!(shown["available"]["licence"], 1.5);
    assert_eq!(shown["labels"]["zone"], "a");
    assert_eq!(shown["store_bytes"], 16 * 1024 * 1024);
    let number = shown["node"].clone();
    let text = here.say(&["status"]).ok();
    for part in ["left", "3 of 3", "2.0 GiB of 2.0 GiB", "1.5 of 1.5", "zone=a", "16.0 MiB", "single-tenant"]
    {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }

    let text = here.say(&["memory"]).ok();
    assert!(text.contains("of 16.0 MiB") && text.contains("No objects."), "{text}");
    assert!(here.say(&["memory", "--json"]).ok().contains("\"silent\":[]"));

    first.end();
    assert!(!socket.exists());
    wait_for("the node to be gone from the status", || {
        here.status()["nodes"].as_array().unwrap().is_empty().then_some(())
    });

    let mut again = there.run(&node(&address, &[]));
    again.line("Node left");
    let back = here.status()["nodes"][0]["node"].as_str().unwrap().to_owned();
    assert!(back.starts_with(number.as_str().unwrap()), "{back} is not {number} of a later incarnation");
    again.end();

    // The same command line as the first time must do too: a service starts again with it.
    let mut command = there.command(&node(&address, &["--join", &token]));
    command.env_remove("MOBULA_JOIN");
    let mut third = run(command);
    third.line("Node left");

    head.end();
    assert!(!here.path().join("head.json").exists());
    let (status, errors) = third.wait("the node to end with its head");
    assert!(status.success(), "{status}: {errors}");
}

#[test]
fn memory_shows_what_a_driver_put_whose_it_is_and_where_it_was_made() {
    let (here, there) = (Home::new(), Home::new());
    let (head, address) = here.head();
    let node = there.run(&node(&address.to_string(), &["--join", &here.token()]));
    let socket = there.path().join("node/agent.sock");
    wait_for("the node's socket", || socket.exists().then_some(()));
    let driver = Cluster::connect(&format!("unix:{}", socket.display())).quiet();
    let (outcome, left) = private::drive(driver, async |_: Cluster| -> Result<()> {
        let value = Tensor::from_vec(&[1 << 20], vec![7u8; 1 << 20])?;
        let place = format!("{}:{}", file!(), line!() + 1);
        let held = mobula::put(&value)?;
        let text = wait_for("the object to be shown", || {
            let text = here.say(&["memory"]).ok();
            text.contains(&place).then_some(text)
        });
        let status = here.status();
        let [job, owner] = ["job", "driver"].map(|key| status["jobs"][0][key].as_str().unwrap().to_owned());
        let line = text.lines().find(|line| line.starts_with(&place)).unwrap();
        for part in [job.as_str(), &owner, "node-1", "held by its owner", "1.0 MiB"] {
            assert!(line.contains(part), "no {part:?} in {line:?}");
        }
        let json: Value = serde_json::from_str(&here.say(&["memory", "--json"]).ok()).unwrap();
        let groups = &json["stores"][0]["groups"];
        let group = &groups[0];
        for (key, told) in [("site", &place), ("job", &job), ("owner", &owner)] {
            assert_eq!(group[key], told.as_str(), "{groups}");
        }
        assert!(group["objects"] == 1 && group["why"] == "held" && groups[1].is_null(), "{groups}");
        assert_eq!(group["by"], serde_json::json!(["owner"]), "{groups}");
        drop(held);
        wait_for("it to be gone", || here.say(&["memory"]).ok().contains("No objects.").then_some(()));
        Ok(())
    })
    .unwrap();
    outcome.unwrap();
    assert!(left.is_empty(), "{left:?}");
    node.end();
    head.end();
}

#[test]
fn up_detached_runs_until_down() {
    let home = Home::new();
    let text = home.say(&["up", "--nodes", "2", "--cpus", "1", "--store", "16MiB", "--detach"]).ok();
    for part in
        ["A head and 2 nodes run", "MOBULA_ADDRESS=unix:", "mobula token create --role driver", "mobula down"]
    {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let pids = home.up_pids();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| !gone(*pid)));
    let status = home.status();
    let names: Vec<&str> =
        status["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&"local-1") && names.contains(&"local-2"), "{names:?}");

    home.say(&["up", "--detach"]).failed(1, &["a cluster already runs", "mobula down"]);
    home.say(&["head", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"]).failed(1, &["a head already runs"]);

    let text = home.say(&["down"]).ok();
    assert_eq!(text.lines().count(), 3, "{text}");
    for pid in pids {
        assert!(gone(pid), "process {pid} outlived `down`, which said {text}");
    }
    assert!(!home.path().join("up.json").exists());
    assert!(home.say(&["down"]).ok().contains("Nothing runs"));
    home.say(&["status"]).failed(1, &["no head runs", "mobula up"]);

    // The cluster is the same the next time, and its nodes keep their names.
    home.say(&["up", "--nodes", "1", "--store", "16MiB", "--detach"]).ok();
    let again = home.status();
    assert_eq!(again["cluster"], status["cluster"]);
    assert_eq!(again["nodes"][0]["name"], "local-1");
    home.say(&["down"]).ok();
}

#[test]
fn up_in_the_foreground_takes_its_processes_with_it() {
    for (signal, orderly) in [(Signal::TERM, true), (Signal::KILL, false)] {
        let home = Home::new();
        let mut up = home.run(&["up", "--store", "16MiB"]);
        up.line("Ctrl-C ends it");
        let pids = home.up_pids();
        assert_eq!(pids.len(), 2);
        up.signal(signal);
        let (status, errors) = up.wait("`up` to end");
        assert_eq!(status.success(), orderly, "{status}: {errors}");
        for pid in pids {
            wait_for(&format!("process {pid} to end with `up`"), || gone(pid).then_some(()));
        }
    }
}

#[test]
fn up_that_is_interrupted_while_it_starts_ends_soon_and_in_order() {
    for wait_for_head in [false, true] {
        let home = Home::new();
        let mut up = home.run(&["up", "--nodes", "2", "--store", "16MiB"]);
        let begun = if wait_for_head { "head.json" } else { "run/up.json" };
        wait_for("the start to begin", || home.path().join(begun).exists().then_some(()));
        let asked = std::time::Instant::now();
        up.signal(Signal::INT);
        let (_, errors) = up.wait("`up` to end");
        assert!(!errors.contains("ended at once"), "{errors}");
        assert!(asked.elapsed() < std::time::Duration::from_millis(900), "{:?}: {errors}", asked.elapsed());
    }
}

#[test]
fn down_ends_what_runs_in_the_foreground() {
    let home = Home::new();
    let mut up = home.run(&["up", "--store", "16MiB"]);
    up.line("Ctrl-C ends it");
    let pids = home.up_pids();
    home.say(&["down"]).ok();
    let (status, errors) = up.wait("`up` to end");
    assert!(status.success(), "{status}: {errors}");
    assert!(pids.into_iter().all(gone));

    let (mut head, _) = home.head();
    home.say(&["down"]).ok();
    let (status, errors) = head.wait("the head to end");
    assert!(status.success(), "{status}: {errors}");
}

#[test]
fn up_that_loses_its_head_says_so_and_ends() {
    let home = Home::new();
    let mut up = home.run(&["up", "--store", "16MiB"]);
    up.line("Ctrl-C ends it");
    let pids = home.up_pids();
    let head = rustix::process::Pid::from_raw(pids[0].try_into().unwrap()).unwrap();
    rustix::process::kill_process(head, Signal::KILL).unwrap();
    let (status, errors) = up.wait("`up` to end without its head");
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("the head ended by itself"), "{errors}");
    assert!(pids.into_iter().all(gone));
}

#[test]
fn down_never_ends_a_process_that_only_has_the_number() {
    let home = Home::new();
    let mut stranger = std::process::Command::new("sleep");
    stranger.arg("600");
    let mut stranger = run(stranger);
    let mark =
        serde_json::json!({ "name": "head", "pid": stranger.child.id(), "start": 1, "boot": "another" });
    let up = serde_json::json!({ "head": mark, "nodes": [], "quic": "127.0.0.1:1", "http": "127.0.0.1:1" });
    std::fs::create_dir_all(home.path()).unwrap();
    std::fs::write(home.path().join("up.json"), up.to_string()).unwrap();
    assert!(home.say(&["down"]).ok().contains("Nothing runs"));
    assert!(stranger.child.try_wait().unwrap().is_none(), "a stranger was ended");
}

#[test]
fn the_home_is_the_option_then_the_variable_then_the_users() {
    let home = Home::new();
    let elsewhere = home.path().with_file_name("elsewhere");
    let option = ["down", "--home", elsewhere.to_str().unwrap()];
    assert!(home.say(&option).ok().contains(elsewhere.to_str().unwrap()));
    assert!(home.say(&["down"]).ok().contains(home.path().to_str().unwrap()));
    let mut command = home.command(&["down"]);
    command.env_remove("MOBULA_HOME");
    assert!(said(command).ok().contains("/.mobula"));
}
