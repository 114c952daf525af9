//! `mobula why`, of a job that waits.

use std::process::Command;

use mobula::{Cluster, PlacementGroup};

use crate::harness::{Home, digits, run, wait_for};

#[test]
fn what_waits_is_explained_to_people_and_programs() {
    let home = Home::new();
    let (head, address) = home.head();
    let token = home.say(&["token", "create", "--role", "driver"]).ok();
    let mut driver = Command::new(digits());
    driver.env("MOBULA_ADDRESS", address.to_string()).env("MOBULA_TOKEN", token.trim());
    driver.env("MOBULA_HOME", "/nonexistent");
    // There is no node that could run what it asks for.
    let driver = run(driver);
    let waiting = wait_for("its tasks to wait", || Some(home.status()["waiting"].get(0)?.clone()));
    let [owner, function] = ["owner", "function"].map(|part| waiting[part].as_str().unwrap().to_owned());

    // The first of them has one of the first numbers.
    let id = wait_for("one of its tasks to say that it waits", || {
        let ids = (0..8).map(|number| format!("{owner}#{number}"));
        ids.into_iter().find(|id| home.say(&["why", id]).out.contains("waits for a lease"))
    });
    let text = home.say(&["why", &id]).ok();
    let json: serde_json::Value = serde_json::from_str(&home.say(&["why", &id, "--json"]).ok()).unwrap();
    let what = json["what"].as_str().unwrap();
    assert!(what.starts_with("task ") && text.starts_with(what), "{json} {text}");
    let reasons = json["reasons"].as_array().unwrap();
    assert_eq!(reasons.len(), 2, "what its owner knows, and what the scheduler does: {json}");
    for (reason, part) in reasons.iter().zip(["waits for a lease", "first node"]) {
        let reason = reason.as_str().unwrap();
        assert!(reason.contains(part) && text.contains(reason), "{part:?} is not in {reason} or {text}");
    }
    for name in [function.as_str(), "job-1"] {
        let said = home.say(&["why", name]).ok();
        assert!(said.contains(&function) && said.contains("first node"), "{said}");
    }
    // The page of the cluster is made from this.
    assert!(waiting["why"].as_str().unwrap().contains("first node"), "{waiting}");
    let unmet = &home.status()["unmet"][0];
    assert!(unmet["resources"]["CPU"] == 1.0 && unmet["count"].as_u64().unwrap() > 0, "{unmet}");
    drop(driver);
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
async fn an_actor_and_a_group_that_wait_are_explained() {
    let home = Home::new();
    let (head, address) = home.head();
    let token = home.say(&["token", "create", "--role", "driver"]).ok();
    let cluster = Cluster::connect(&address.to_string()).token(token.trim()).quiet().start().await.unwrap();
    let actor = Idler::spawn().options(|options| options.cpu(2.0)).start();
    let group = PlacementGroup::strict_spread().bundles(2, &[("cpu", 3.0)]).create().await.unwrap();

    let id = actor.id().to_string();
    let said = wait_for("the scheduler to have a reason for the actor", || {
        let said = home.say(&["why", &id]).ok();
        said.contains("first node").then_some(said)
    });
    assert!(said.starts_with("actor ") && said.contains("explaining::Idler#"), "{said}");
    assert!(said.contains("waits for a lease"), "{said}");
    let json: serde_json::Value = serde_json::from_str(&home.say(&["why", &id, "--json"]).ok()).unwrap();
    assert_eq!(json["reasons"].as_array().unwrap().len(), 2, "{json}");

    let said = home.say(&["why", &group.id().to_string()]).ok();
    assert!(said.starts_with(&format!("placement group {}", group.id())), "{said}");
    assert!(said.contains("first node"), "{said}");
    let unmet = home.status()["unmet"].clone();
    let counts: Vec<u64> =
        unmet.as_array().unwrap().iter().map(|unmet| unmet["count"].as_u64().unwrap()).collect();
    assert_eq!(counts.iter().sum::<u64>(), 3, "the actor and two bundles: {unmet}");
    drop((actor, group));
    cluster.shutdown();
    head.end();
}
