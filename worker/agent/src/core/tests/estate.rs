//! Objects of dead owners.

use mobula_proto::{
    head::Between,
    peer::{CLAIMS_MAX, CONTAINS_MAX, RECORD_REFS_MAX, Record},
};

use super::*;

/// A node with a driver and a host that sealed two objects of the driver's, the first inside of the second.
fn estate() -> (Rig, HostId) {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, Class::default());
    rig.host(host, ToAgent::RegionWanted { request: 1, bytes: MIB, wait_ms: 0 });
    rig.host_with(host, ToAgent::RegionAdded { request: 1, seq: 1, bytes: MIB }, vec![fd()]);
    rig.host(host, ToAgent::Contains { object: object(2), attempt: 1, refs: vec![object(1)] });
    for seq in [2, 1] {
        let (object, offset) = (object(seq), seq * 128);
        rig.host(host, ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: 100, site: 0 });
    }
    (rig, host)
}

fn died() -> Failure {
    Failure::new(FailureKind::HostDied, "killed by signal 9")
}

/// What a host here, or another agent, is told of a claim.
fn answers(rig: &mut Rig) -> Vec<(ObjectId, Option<Record>)> {
    let answers = rig.take().into_iter().find_map(|effect| match effect {
        Effect::Tell(_, ToHost::Claimed { answers }, _)
        | Effect::Peer(_, Between::Claimed { answers, .. }) => Some(answers),
        _ => None,
    });
    answers.expect("an answer")
}

#[test]
fn what_is_claimed_outlives_its_owner_and_goes_with_the_last_claim() {
    let (mut rig, host) = estate();
    rig.core.host_ended(id(1), died(), rig.now);
    assert_eq!(rig.lines(), ["head HostEnded", "host-2 < HostDied host-1", "head JobEnd"]);
    // A host here holds the one, one elsewhere the other.
    let claim = ToAgent::Claim { objects: vec![(object(2), Some(NodeId::EMBEDDED)), (object(9), None)] };
    rig.core.from_host(host, claim, vec![], rig.now);
    let copy = copy(NodeId::EMBEDDED, 1);
    let record = Record { copy, at: 0, contains: vec![object(1)], more: false };
    let effects = rig.take();
    assert_eq!(effects.iter().map(line).collect::<Vec<_>>(), ["node-2 Claim", "host-2 < Claimed"]);
    let Effect::Tell(_, ToHost::Claimed { answers: here }, _) = &effects[1] else { panic!("{effects:?}") };
    assert_eq!(*here, [(object(2), Some(record))]);
    let there = other_node().node;
    let none = vec![(object(9), None)];
    rig.core.from_peer(Between::Claimed { host, number: 1, by: there, answers: none.clone() });
    assert_eq!(answers(&mut rig), none, "no node has it");
    let theirs = HostId { node: there, seq: 4 };
    rig.core.from_peer(Between::Claim { host: theirs, number: 7, objects: vec![object(1)], gone: vec![] });
    assert_eq!(answers(&mut rig), [(object(1), Some(Record { copy, at: 0, contains: vec![], more: false }))]);
    // Nothing goes before everybody was heard.
    assert_eq!(rig.host(host, ToAgent::Mourned { host: id(1) }), ["head Mourned"]);
    assert_eq!(rig.host(host, ToAgent::Unclaim { object: object(2), node: NodeId::EMBEDDED }), [""; 0]);
    assert_eq!(rig.core.usage().objects, 2);
    assert_eq!(rig.head(FromHead::Buried { host: id(1) }), ["host-2 < Buried", "host-2 < Reclaim 1"]);
    assert_eq!(rig.core.usage().objects, 1);
    rig.core.from_peer(Between::Unclaim { host: theirs, object: object(1) });
    assert_eq!(rig.lines(), ["host-2 < Reclaim 1"]);
    // What is sealed only then is of no use to anybody.
    let late = sealed(3, 512, 100);
    assert_eq!(rig.host(host, late), ["host-2 < Reclaim 1"]);
    assert_eq!(rig.core.usage().objects, 0);
}

#[test]
fn a_host_that_begins_hears_of_the_dead_that_are_not_buried() {
    let (mut rig, _) = estate();
    let (theirs, other) = (HostId { node: other_node().node, seq: 9 }, other_node().node);
    let ended = FromHead::HostEnded { host: theirs, job: JobId { number: 99 }, failure: died() };
    assert_eq!(rig.head(ended), ["host-1 < HostDied host-9", "host-2 < HostDied host-9"]);
    assert_eq!(rig.head(reserve(2, own())), ["launch host-3"]);
    let said = rig.host(id(3), hello(Role::Host, None, REGISTRY));
    let told = ["ready host-3", "host-3 < Welcome", "host-3 < HostDied host-9", "head LeaseReady host-3"];
    assert_eq!(said, told);
    // It held nothing, so nobody waits for it; who ends has nothing to claim.
    assert_eq!(rig.host(id(1), ToAgent::Mourned { host: theirs }), [""; 0]);
    rig.core.host_ended(id(2), died(), rig.now);
    assert_eq!(
        rig.lines(),
        ["head Mourned", "head HostEnded", "host-1 < HostDied host-2", "host-3 < HostDied host-2"]
    );
    // A node takes along what it was asked for.
    let claim = ToAgent::Claim { objects: vec![(object(8), Some(other))] };
    assert_eq!(rig.host(id(3), claim), ["node-2 Claim"]);
    let down = FromHead::NodeDown { node: other, failure: died() };
    assert_eq!(rig.head(down), ["host-1 < NodeDied", "host-3 < NodeDied", "host-3 < Claimed"]);
}

/// One that is stopped keeps nothing of others for ever.
#[test]
fn r4_a_host_that_never_says_what_it_holds_is_not_waited_for() {
    let (mut rig, silent) = estate();
    assert_eq!(rig.head(reserve(2, own())), ["launch host-3"]);
    rig.host(id(3), hello(Role::Host, None, REGISTRY));
    rig.core.host_ended(id(1), died(), rig.now);
    let told = ["head HostEnded", "host-2 < HostDied host-1", "host-3 < HostDied host-1", "head JobEnd"];
    assert_eq!(rig.lines(), told);
    assert_eq!(rig.host(id(3), ToAgent::Claim { objects: vec![(object(2), None)] }), ["host-3 < Claimed"]);
    assert_eq!(rig.host(id(3), ToAgent::Mourned { host: id(1) }), [""; 0]);
    let due = rig.core.next_deadline().expect("it does not wait for ever");
    rig.core.tick(due - Duration::from_millis(1));
    assert_eq!(rig.lines(), [""; 0], "it has time");
    rig.now = due;
    rig.core.tick(due);
    assert_eq!(rig.lines(), ["head Mourned"]);
    assert_eq!(rig.core.next_deadline(), None);
    assert_eq!(rig.host(silent, ToAgent::Mourned { host: id(1) }), [""; 0], "it is late");
    // What others have claimed stays, and whoever was late may still have it.
    let buried = ["host-2 < Buried", "host-3 < Buried", "host-2 < Reclaim 1"];
    assert_eq!(rig.head(FromHead::Buried { host: id(1) }), buried);
    let late = ToAgent::Claim { objects: vec![(object(2), None), (object(1), None)] };
    rig.core.from_host(silent, late, vec![], rig.now);
    let found = answers(&mut rig);
    assert!(matches!(&found[..], [(first, Some(_))] if *first == object(2)), "{found:?}");
}

#[test]
fn a_host_that_claims_too_much_at_once_is_ended() {
    let (mut rig, host) = estate();
    let objects = vec![(object(2), None); CLAIMS_MAX + 1];
    assert_eq!(rig.host(host, ToAgent::Claim { objects }), ["kill host-2"]);
    let contains = |refs| ToAgent::Contains { object: object(3), attempt: 1, refs };
    assert_eq!(rig.host(host, contains(vec![object(1); CONTAINS_MAX])), [""; 0]);
    assert_eq!(rig.host(host, contains(vec![object(1)])), ["kill host-2"], "one too many");
}

#[test]
fn a_claim_that_nobody_answers_is_made_again() {
    let (mut rig, host) = estate();
    let there = other_node().node;
    let claim = ToAgent::Claim { objects: vec![(object(9), Some(there))] };
    assert_eq!(rig.host(host, claim), ["node-2 Claim"]);
    let mut numbers = Vec::new();
    for again in [0, 1, 1] {
        let due = rig.core.next_deadline().expect("it looks after its claims");
        rig.now = due;
        rig.core.tick(due);
        let asked: Vec<u64> = rig.take().into_iter().filter_map(number).collect();
        assert_eq!(asked.len(), again, "not what was claimed a moment ago");
        numbers.extend(asked);
    }
    // The first two answers were late, and stand for a claim each.
    let record = Record { copy: copy(there, 1), at: 0, contains: vec![], more: false };
    for (number, told) in
        [(numbers[0], "node-2 Unclaim"), (numbers[1], "host-2 < Claimed"), (numbers[1], "node-2 Unclaim")]
    {
        let answers = vec![(object(9), Some(record.clone()))];
        rig.core.from_peer(Between::Claimed { host, number, by: there, answers });
        assert_eq!(rig.lines(), [told]);
    }
    rig.core.tick(rig.core.next_deadline().expect("once more"));
    assert_eq!(rig.take().into_iter().filter_map(number).count(), 0);
}

fn number(effect: Effect) -> Option<u64> {
    match effect {
        Effect::Peer(_, Between::Claim { number, .. }) => Some(number),
        _ => None,
    }
}

#[test]
fn refs_in_a_value_are_told_in_parts() {
    let (mut rig, host) = estate();
    let refs: Vec<ObjectId> = (10..10_010).map(object).collect();
    for (at, refs) in refs.chunks(CLAIMS_MAX).enumerate() {
        rig.host(host, ToAgent::Contains { object: object(3), attempt: 1, refs: refs.to_vec() });
        // Another thread seals something without refs meanwhile.
        let (object, offset) = (object(20_000 + at as u64), 1024 + 128 * at as u64);
        let other = ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: 100, site: 0 };
        assert_eq!(rig.host(host, other), [""; 0]);
    }
    let value = sealed(3, 512, 100);
    rig.host(host, value);
    let there = other_node().node;
    let theirs = HostId { node: there, seq: 4 };
    rig.core.from_peer(Between::Claim {
        host: theirs,
        number: 7,
        objects: vec![object(3), object(2)],
        gone: vec![],
    });
    let (mut named, mut parts) = (Vec::new(), 0);
    for effect in rig.take() {
        let Effect::Peer(_, Between::Claimed { number: 7, answers, .. }) = effect else { continue };
        let records = answers.iter().filter_map(|(_, record)| record.as_ref());
        assert!(records.map(|record| record.contains.len()).sum::<usize>() <= RECORD_REFS_MAX);
        parts += 1;
        for (of, record) in answers {
            let record = record.expect("it is here");
            let last = named.len() + record.contains.len() == refs.len() || of == object(2);
            assert_eq!(record.more, !last);
            if of == object(3) {
                assert_eq!(record.at as usize, named.len());
                named.extend(record.contains);
            }
        }
    }
    assert_eq!((named, parts), (refs, 3));
}
