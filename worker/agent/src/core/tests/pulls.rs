//! Pulls that nobody waits for any more.

use super::*;

/// What is said of pulls when a host dies.
fn dies(rig: &mut Rig, host: HostId) -> Vec<String> {
    rig.core.host_ended(host, Failure::new(FailureKind::HostDied, "killed"), rig.now);
    let mut lines = rig.lines();
    lines.retain(|line| line.contains("pull"));
    lines
}

#[test]
fn tr5_a_pull_ends_with_its_last_reader() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let (one, other) = (rig.launched(1, own()), rig.launched(2, own()));
    let there = Copy { bytes: MIB, ..copy(other_node().node, 3) };
    let open = |seq| ToAgent::Open { ahead: false, request: 1, object: object(seq), copy: there };
    rig.host(one, open(1));
    rig.host(other, open(1));
    let region = began(&mut rig, 1);
    rig.host(other, open(2));
    assert_eq!(dies(&mut rig, one), [""; 0], "another reads it");
    assert_eq!(dies(&mut rig, other), [format!("end the pull of {}", object(1))]);
    // One more comes before it has ended; and nobody wants what had not even begun.
    rig.host(id(1), open(1));
    let unwanted = || Err(Failure::new(FailureKind::Unreachable, "nobody waited"));
    assert!(!rig.core.pulled((object(1), 3, JOB), unwanted()));
    assert_eq!(rig.lines(), [""; 0], "it waits for its turn");
    rig.core.pull_left(region, MIB);
    assert_eq!(rig.lines(), [format!("pull {} from node-2", object(1))]);
    assert!(!rig.core.pulled((object(1), 3, JOB), unwanted()));
    assert_eq!(rig.lines(), ["host-1 < OpenFailed Unreachable"]);
    assert!(rig.core.queue.is_empty());
}

/// The other way round from there: another node that gets a part of it is the last one that it is pulled for.
#[test]
fn tr5_a_pull_ends_with_the_last_node_that_is_served_of_it() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, own());
    let there = Copy { bytes: MIB, ..copy(other_node().node, 3) };
    let key = (object(1), 3, JOB);
    rig.host(host, ToAgent::Open { ahead: false, request: 1, object: object(1), copy: there });
    began(&mut rig, 1);
    let nodes = [3, 4].map(|number| NodeId { number, incarnation: 1 });
    for by in nodes {
        let wish = Wish { object: object(1), copy: there, by, tried: vec![], whole: false };
        assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Part(_)));
    }
    assert_eq!(dies(&mut rig, host), [""; 0], "others get it");
    rig.core.served(key, nodes[0], 10);
    assert_eq!(rig.lines(), [""; 0], "one more does");
    rig.core.served(key, nodes[1], 10);
    assert_eq!(rig.lines(), [format!("end the pull of {}", object(1))]);
}

/// One that this node cannot read any more is fetched back for whoever reads it here, which no part of it says.
#[test]
fn tr5_what_is_fetched_back_does_not_end_with_who_is_served_of_it() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let key = (object(1), 3, JOB);
    rig.core.fetch_back(key);
    rig.take();
    let copy = copy(NodeId::EMBEDDED, 3);
    let by = NodeId { number: 3, incarnation: 1 };
    let wish = Wish { object: object(1), copy, by, tried: vec![], whole: false };
    assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Part(_)));
    rig.core.served(key, by, 10);
    assert_eq!(rig.lines(), [""; 0]);
}
