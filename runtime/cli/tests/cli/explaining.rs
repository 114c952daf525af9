//! `mobula why`, of a job that waits.

use std::process::Command;

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
