//! A job on a cluster that an operator started by hand, as the README says.

use std::{collections::BTreeMap, process::Command};

use crate::harness::{Home, digits, node, said};

/// The table of losses, and the value of each `key=value` in the last line.
fn learn(mut command: Command) -> (String, BTreeMap<String, f64>) {
    command.env("MOBULA_HOME", "/nonexistent");
    let text = said(command).ok();
    let pairs = text.lines().last().unwrap().split(' ').map(|pair| pair.split_once('=').unwrap());
    let values = pairs.map(|(key, value)| (key.to_owned(), value.parse().unwrap())).collect();
    (text.split("node").next().unwrap().to_owned(), values)
}

#[test]
fn a_job_runs_on_nodes_that_were_started_by_hand() {
    let home = Home::new();
    let (head, address) = home.head();
    let address = address.to_string();
    let homes = [Home::new(), Home::new()];
    let nodes = homes.each_ref().map(|other| {
        let token = home.token();
        let more = ["--join", token.as_str(), "--cpus", "2"];
        let mut running = other.run(&node(&address, &more));
        running.line("Node ");
        running
    });

    let mut alone = Command::new(digits());
    alone.env_remove("MOBULA_ADDRESS");
    let (losses, values) = learn(alone);
    assert!(values["accuracy"] >= 0.96 && values["nodes"] == 1.0, "{values:?}");

    let token = home.say(&["token", "create", "--role", "driver"]).ok();
    let mut remote = Command::new(digits());
    remote.env("MOBULA_ADDRESS", &address).env("MOBULA_TOKEN", token.trim());
    let (losses_there, values) = learn(remote);
    assert_eq!(losses, losses_there, "what is learnt does not depend on where");
    assert!(values["accuracy"] >= 0.96, "{values:?}");
    assert_eq!(values["nodes"], 2.0, "work ran on both");

    for node in nodes {
        node.end();
    }
    head.end();
}
