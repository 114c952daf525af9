//! `mobula simulate`.

use crate::harness::Home;

#[test]
fn a_trace_is_replayed_and_what_is_wrong_with_it_is_named() {
    let home = Home::new();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let head = "arrival,duration,resources,job,priority,queue";
    let good =
        write("good.csv", &format!("{head}\n0,10,2 cpu,a,0,prod\n0,10,2 cpu,b,0,prod\n5,5,1 gpu,c,0,prod\n"));
    let cluster = ["--nodes", "1x 2 cpu", "--queue", "prod=2"];
    let said = home.say(&[&["simulate", &good][..], &cluster].concat()).ok();
    for part in [
        "2 of 3 tasks finished, in 20.0 s",
        "1 refused, the first because no node has 1 GPU",
        "100.0% of CPU in use",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let json = home.say(&[&["simulate", &good, "--json"][..], &cluster].concat()).ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["finished"], &json["queueing_delay"][0]["max_s"]), (&2.into(), &10.0.into()));
    let again = home.say(&[&["simulate", &good, "--json"][..], &cluster].concat()).ok();
    assert_eq!(json, serde_json::from_str::<serde_json::Value>(&again).unwrap(), "the same hash, too");

    // A node that is lost takes what runs on it with it.
    let cluster = ["--nodes", "2x 2 cpu", "--queue", "prod=2"];
    let said = home.say(&[&["simulate", &good, "--lose", "2@4"][..], &cluster].concat()).ok();
    for part in
        ["2 of 3 tasks finished, in 20.0 s", "1 nodes were lost", "1 tasks were stopped, which had run 4.0 s"]
    {
        assert!(said.contains(part), "{said}");
    }
    home.say(&[&["simulate", &good, "--lose", "3@4"][..], &cluster].concat())
        .failed(2, &["--lose names node 3, but --nodes gives 2", "[MOB5001]"]);

    let bad = write("bad.csv", &format!("{head}\n0,soon,2 cpu,a,0,prod\n"));
    home.say(&[&["simulate", &bad][..], &cluster].concat()).failed(
        2,
        &["bad.csv: line 2: duration is \"soon\": give seconds", "[MOB5001]", "mobula simulate --help"],
    );
    // Arguments that say nothing that can be understood.
    for (arguments, parts) in [
        (&[][..], ["--nodes", "required"]),
        (&["--nodes", "2 cpu"], ["are no nodes", "4x 16 cpu"]),
        (&["--nodes", "0x 2 cpu"], ["0 nodes are not possible", "1 to 100000"]),
        (&["--nodes", "1x 1.5 gpu"], ["1.5 GPU are not allowed", "whole number"]),
        (&["--nodes", "1x 2 cpu", "--queue", "a=0"], ["weight 0", "above 0"]),
        (&["--nodes", "1x 2 cpu", "--lose", "1@soon"], ["is no loss of a node", "3@600"]),
    ] {
        let said = home.say(&[&["simulate", &good][..], arguments].concat());
        assert_eq!(said.code, Some(2), "{said:?}");
        for part in parts.into_iter().chain(["[MOB5001]"]) {
            assert!(said.err.contains(part), "no {part:?} in {said:?}");
        }
    }
    home.say(&["simulate", &good, "--nodes", "1x 2 cpu", "--queue", "a", "--queue", "a"])
        .failed(2, &["listed twice", "[MOB5001]"]);
    let missing = folder.path().join("missing.csv");
    home.say(&["simulate", missing.to_str().unwrap(), "--nodes", "1x 2 cpu"])
        .failed(1, &["missing.csv", "[MOB5002]"]);
}
