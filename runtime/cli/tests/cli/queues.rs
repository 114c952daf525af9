//! Queues that an operator defines.

use crate::harness::Home;

#[test]
fn queues_are_defined_shown_kept_and_removed() {
    let home = Home::new();
    let (head, _) = home.head();
    assert!(home.say(&["queue", "list"]).ok().contains("No queues"));
    home.say(&["queue", "set", "research", "--weight", "2", "--guarantee", "cpu=4,memory=2GiB"]).ok();
    home.say(&["queue", "set", "vision", "--parent", "research", "--limit", "cpu=8,gpu=2"]).ok();
    // What is not said stays.
    home.say(&["queue", "set", "vision", "--weight", "0.5", "--guarantee", "cpu=1"]).ok();
    let text = home.say(&["queue", "list"]).ok();
    for part in ["(default)", "research", "  vision", "0.5", "4 CPU, 2.0 GiB memory", "8 CPU, 2 GPU"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert_eq!(home.status()["queues"][2]["parent"], "research");

    for (wrong, parts) in [
        (&["research", "--parent", "vision"][..], &["own ancestor", "MOB4002"][..]),
        (&["other", "--parent", "nobody"], &["nobody", "MOB4002"]),
        (&["other", "--weight", "0"], &["weight 0", "MOB4002"]),
        (&["other", "--weight", "-1"], &["weight", "out of range", "MOB4002"]),
        (&["other", "--limit", "cpu=NaN"], &["limit", "NaN", "MOB4002"]),
        (&["other", "--guarantee", "cpu=1e300"], &["guarantee", "1e300", "MOB4002"]),
        (&["vision", "--guarantee", "cpu=5"], &["children of queue research", "MOB4002"]),
    ] {
        home.say(&[&["queue", "set"], wrong].concat()).failed(1, parts);
    }
    home.say(&["queue", "remove", "research"]).failed(1, &["in use", "1 queue is a part of it", "MOB4002"]);
    home.say(&["queue", "remove", "nobody"]).failed(1, &["no queue", "MOB4002"]);
    assert!(home.say(&["groups"]).ok().contains("No placement groups"));
    assert_eq!(home.say(&["groups", "--json"]).ok().trim(), "[]");
    home.say(&["why", "nobody"]).failed(1, &["nothing is called", "MOB4003"]);
    home.say(&["why", "node-7/host-1#3"]).failed(1, &["node-7 is not in the cluster", "MOB4003"]);
    assert!(home.say(&["why", "queue:vision"]).ok().contains("nothing of it waits"));
    let before = home.say(&["queue", "list", "--json"]).ok();
    head.end();

    let (head, _) = home.head();
    assert_eq!(home.say(&["queue", "list", "--json"]).ok(), before, "queues outlive a restart of the head");
    home.say(&["queue", "remove", "vision"]).ok();
    home.say(&["queue", "remove", "research"]).ok();
    assert!(home.say(&["queue", "list"]).ok().contains("No queues"));
    head.end();
}
