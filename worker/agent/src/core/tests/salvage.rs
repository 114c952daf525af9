//! What was pulled from nodes that are gone.

use mobula_proto::head::Between;

use super::*;

const DEAD: NodeId = NodeId { number: 3, incarnation: 1 };
const FOURTH: NodeId = NodeId { number: 4, incarnation: 1 };

/// A node with two others, whose host pulled these from a third one. What an owner elsewhere has of an odd number has a ref
/// inside that is known.
fn with_pulled(objects: &[ObjectId]) -> Rig {
    let mut rig = Rig::new(false);
    rig.driver(false);
    for node in [DEAD, FOURTH] {
        rig.core.node_up(Node { node, ..other_node() });
    }
    let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: 1 };
    rig.core.want_region(region.writer, 1, MIB, Duration::ZERO, rig.now);
    rig.core.objects.add_region(region, 1, JOB, MIB, Arc::new(fd())).unwrap();
    rig.take();
    for (at, object) in objects.iter().enumerate() {
        let open = ToAgent::Open { ahead: false, request: 1, object: *object, copy: copy(DEAD, 3) };
        assert_eq!(rig.host(id(1), open), [format!("pull {object} from node-3")]);
        let key = (*object, 3, JOB);
        if object.seq % 2 == 1 {
            rig.core.pull_names(key, vec![TaskId::numbered(FOURTH.agent(), 9).object(0)]);
        }
        assert!(rig.core.pulled(key, Ok((region, 128 * at as u64, 100))));
        rig.host(id(1), ToAgent::Unpin { object: *object });
    }
    rig.take();
    rig
}

fn theirs(seq: u64) -> ObjectId {
    TaskId::numbered(HostId { node: other_node().node, seq: 1 }, seq).object(0)
}

fn died(rig: &mut Rig, node: NodeId) -> Vec<String> {
    rig.head(FromHead::NodeDown { node, failure: Failure::new(FailureKind::NodeDied, "no power") })
}

/// What is said to others about copies.
fn salvages(rig: &mut Rig) -> Vec<(NodeId, Vec<u64>, bool)> {
    let said = rig.take().into_iter().filter_map(|effect| match effect {
        Effect::Peer(to, Between::Salvaged { copies, more, .. }) => {
            assert!(copies.iter().all(|(_, copy)| (copy.node, copy.attempt) == (NodeId::EMBEDDED, 3)));
            Some((to, copies.iter().map(|(object, _)| object.seq).collect(), more))
        }
        _ => None,
    });
    said.collect()
}

#[test]
fn who_lost_its_copies_is_told_of_all_others() {
    let mut rig = with_pulled(&[object(1), object(2), theirs(1)]);
    died(&mut rig, DEAD);
    let told = rig.host(id(1), ToAgent::Salvage { node: DEAD });
    assert_eq!(told, ["host-1 < Salvaged", "node-2 Salvage", "node-4 Salvage"], "its own come first");
    assert_eq!(rig.core.objects.primaries(), (2, 200), "they count from now on; another's do not");
    let answer = |by, copies: Vec<(ObjectId, Copy)>, more| Between::Salvaged {
        owner: id(1),
        node: DEAD,
        by,
        copies,
        more,
    };
    rig.core.from_peer(answer(
        FOURTH,
        vec![(object(3), copy(FOURTH, 1)), (theirs(3), copy(FOURTH, 1))],
        true,
    ));
    match &rig.take()[..] {
        [Effect::Tell(host, ToHost::Salvaged { node: DEAD, copies, more: true }, _)] => {
            assert_eq!(
                (*host, &copies[..]),
                (id(1), &[(object(3), copy(FOURTH, 1))][..]),
                "not what is another's"
            );
        }
        other => panic!("{other:?}"),
    }
    rig.core.from_peer(answer(FOURTH, vec![], false));
    assert_eq!(rig.lines(), [""; 0]);
    // Who does not answer is asked again, until it is gone, too.
    rig.now += Duration::from_secs(5);
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["node-2 Salvage"]);
    rig.core.from_peer(answer(FOURTH, vec![], false));
    assert_eq!(rig.lines(), [""; 0]);
    let told = died(&mut rig, other_node().node);
    assert_eq!(told, ["host-1 < NodeDied", "host-1 < Salvaged"]);
    rig.now += Duration::from_secs(60);
    assert_eq!(rig.core.salvages.next_deadline(), None);
}

#[test]
fn a_node_that_is_not_known_to_be_gone_is_asked_itself() {
    let mut rig = with_pulled(&[object(1)]);
    let salvage = || ToAgent::Salvage { node: DEAD };
    // It lives.
    assert_eq!(rig.host(id(1), salvage()), ["node-3 Salvage"]);
    let lives = Between::Salvaged { owner: id(1), node: DEAD, by: DEAD, copies: vec![], more: false };
    rig.core.from_peer(lives);
    assert_eq!(rig.lines(), ["host-1 < Salvaged"]);
    assert_eq!(rig.core.objects.primaries(), (0, 0), "what was pulled from there stays what it is");
    // It is declared gone: others are asked.
    assert_eq!(rig.host(id(1), salvage()), ["node-3 Salvage"]);
    let told = died(&mut rig, DEAD);
    assert_eq!(told, ["host-1 < NodeDied", "host-1 < Salvaged", "node-2 Salvage", "node-4 Salvage"]);
    assert_eq!(rig.core.objects.primaries(), (1, 100));
    // Of a node that is unknown, and of this one, there is nothing to ask.
    for node in [NodeId { number: 9, incarnation: 1 }, NodeId::EMBEDDED] {
        assert_eq!(rig.host(id(1), ToAgent::Salvage { node }), ["host-1 < Salvaged"]);
    }
    rig.core.from_peer(Between::Salvage { owner: theirs(1).owner, node: NodeId::EMBEDDED });
    assert_eq!(salvages(&mut rig), [(other_node().node, vec![], false)], "this one lives");
    rig.core.host_ended(id(1), Failure::new(FailureKind::HostDied, "killed"), rig.now);
    assert_eq!(rig.core.salvages.next_deadline(), None);
}

#[test]
fn what_is_kept_for_an_owner_is_said_as_often_as_it_asks() {
    let mut rig = with_pulled(&[object(1), theirs(1), theirs(2), theirs(3)]);
    let owner = theirs(1).owner;
    let there = other_node().node;
    let ask = || Between::Salvage { owner, node: DEAD };
    // Nothing has been heard here of a death.
    rig.core.from_peer(ask());
    assert_eq!(salvages(&mut rig), [(there, vec![1, 2, 3], false)]);
    assert_eq!(rig.core.objects.primaries(), (3, 300));
    rig.core.from_peer(Between::Discard { object: theirs(1), last: 0, attempt: 3, job: Some(JOB) });
    assert_eq!(rig.lines(), ["reclaim 1"], "it has another");
    rig.core.from_peer(ask());
    assert_eq!(salvages(&mut rig), [(there, vec![2, 3], false)], "the answer may have been lost");
    // If the owner dies, too, only that is anybody's of which is known what is inside.
    died(&mut rig, DEAD);
    let host = HostId { node: FOURTH, seq: 1 };
    let claim = Between::Claim { host, number: 1, objects: vec![theirs(2), theirs(3)], gone: vec![] };
    rig.core.from_peer(claim);
    let claimed = rig.take().into_iter().find_map(|effect| match effect {
        Effect::Peer(FOURTH, Between::Claimed { answers, .. }) => Some(answers),
        _ => None,
    });
    let claimed: Vec<_> = claimed
        .unwrap()
        .into_iter()
        .map(|(object, record)| (object.seq, record.map(|record| record.contains.len())))
        .collect();
    assert_eq!(claimed, [(2, None), (3, Some(1))]);
    rig.head(FromHead::Buried { host: DEAD.agent() });
    assert_eq!(rig.core.usage().objects, 2, "what nobody has asked for goes");
    rig.core.from_peer(ask());
    assert_eq!(salvages(&mut rig), [(there, vec![2, 3], false)]);
}

/// Where the owner died as well: who holds refs claims what was pulled as if it were the primary copy, and it is from then on.
#[test]
fn what_was_pulled_outlives_its_owner_and_its_node() {
    let mut rig = with_pulled(&[theirs(1), theirs(2), theirs(3)]);
    let host = HostId { node: FOURTH, seq: 1 };
    let claim = |objects, gone| Between::Claim { host, number: 1, objects, gone };
    // As long as nobody says that the node is gone, the primary copy is there.
    rig.core.from_peer(claim(vec![theirs(1), theirs(2)], vec![]));
    assert_eq!(rig.lines(), ["node-4 Claimed"]);
    assert_eq!(rig.core.objects.primaries(), (0, 0));
    // Whoever asks may have heard of it first; but what is inside the second is not known.
    rig.core.from_peer(claim(vec![theirs(1), theirs(2)], vec![DEAD]));
    assert_eq!(rig.lines(), ["node-4 Claimed"]);
    assert_eq!(rig.core.objects.primaries(), (1, 100));
    // One of this node finds it here once the other is known to be gone.
    let mine = || ToAgent::Claim { objects: vec![(theirs(3), None)] };
    let asks = ["node-2 Claim", "node-3 Claim", "node-4 Claim"];
    assert_eq!(rig.host(id(1), mine()), asks);
    died(&mut rig, DEAD);
    assert_eq!(rig.host(id(1), mine()), ["host-1 < Claimed"]);
    assert_eq!(rig.core.objects.primaries(), (2, 200));
    rig.head(FromHead::Buried { host: DEAD.agent() });
    assert_eq!(rig.core.usage().objects, 2);
}

/// What was found and is not needed goes where it is, and nowhere else: it is of the same attempt as what counts.
#[test]
fn what_is_declined_of_a_dead_node_or_another_job_takes_nothing_along() {
    let mut rig = with_pulled(&[object(1)]);
    died(&mut rig, DEAD);
    rig.host(id(1), ToAgent::Salvage { node: DEAD });
    died(&mut rig, FOURTH);
    let decline = |copy: Copy| ToAgent::Decline { object: object(1), copy };
    assert_eq!(rig.host(id(1), decline(copy(FOURTH, 3))), [""; 0]);
    let other = JobId { number: 8 };
    rig.host(id(1), decline(Copy { job: other, ..copy(NodeId::EMBEDDED, 3) }));
    rig.core.from_peer(Between::Discard { object: object(1), last: 0, attempt: 3, job: Some(other) });
    assert_eq!(rig.core.objects.primaries(), (1, 100));
    assert_eq!(rig.host(id(1), decline(copy(NodeId::EMBEDDED, 3))), ["reclaim 1"]);
}

/// Two nodes have a copy: the one that does not count is the other's, and is there when that dies as well.
#[test]
fn a_spare_copy_is_as_if_pulled_from_the_one_that_counts() {
    let owner = theirs(1).owner;
    let there = other_node().node;
    let mut rig = with_pulled(&[theirs(1), theirs(2)]);
    died(&mut rig, DEAD);
    rig.core.from_peer(Between::Salvage { owner, node: DEAD });
    assert_eq!(salvages(&mut rig), [(there, vec![1, 2], false)]);
    // Until its owner has said which counts, none of them moves off a node that drains, and none is kept for another.
    rig.head(FromHead::Drain { to: vec![FOURTH] });
    assert!(!rig.take().iter().any(|effect| matches!(effect, Effect::Peer(..))));
    rig.head(FromHead::Resume);
    let keep = Between::Keep { object: theirs(2), copy: copy(FOURTH, 3), refs: Some(0), inherited: false };
    rig.core.from_peer(keep);
    match &rig.take()[..] {
        [Effect::Peer(FOURTH, Between::Kept { taken: mobula_proto::head::Taken::No, .. })] => {}
        other => panic!("{other:?}"),
    }
    // The first copies lie on the fourth node from now on.
    rig.core.from_peer(Between::LiesHere { object: theirs(1), copy: copy(FOURTH, 3) });
    assert_eq!(rig.core.objects.primaries(), (1, 100));
    // And when that dies, here; with what was kept for its owner before, of which the answer may be under way.
    died(&mut rig, FOURTH);
    rig.core.from_peer(Between::Salvage { owner, node: FOURTH });
    assert_eq!(salvages(&mut rig), [(there, vec![1, 2], false)]);
    // The one that counted has gone: so do its others.
    rig.core.from_peer(Between::Drop { object: theirs(1), attempt: 3, job: JOB });
    assert_eq!((rig.lines(), rig.core.usage().objects), (vec!["reclaim 1".to_owned()], 1));
    rig.core.from_peer(Between::LiesHere { object: theirs(1), copy: copy(there, 3) });
    assert_eq!(rig.core.objects.primaries(), (1, 100), "however late that is heard");
}

#[test]
fn an_owner_says_which_copy_is_spare_to_where_the_other_lies() {
    let mut rig = with_pulled(&[object(1)]);
    died(&mut rig, DEAD);
    rig.host(id(1), ToAgent::Salvage { node: DEAD });
    let spare = |copy, primary| ToAgent::Spare { object: object(1), copy, primary };
    let (here, there, fourth) = (copy(NodeId::EMBEDDED, 3), copy(other_node().node, 3), copy(FOURTH, 3));
    assert_eq!(rig.host(id(1), spare(there, fourth)), ["node-4 Held"]);
    assert_eq!(rig.host(id(1), spare(fourth, here)), ["node-4 LiesHere"]);
    assert_eq!(
        rig.host(id(1), ToAgent::Free { object: object(1), copy: here }),
        ["reclaim 1", "node-4 Drop"]
    );
    // It may have gone meanwhile.
    assert_eq!(rig.host(id(1), spare(there, here)), ["node-2 Drop"]);
    let of_other = ToAgent::Spare { object: theirs(1), copy: there, primary: here };
    assert_eq!(rig.host(id(1), of_other), ["close host-1"]);
}

#[test]
fn nobody_waits_for_ever_for_who_says_nothing() {
    let mut rig = with_pulled(&[]);
    died(&mut rig, DEAD);
    assert_eq!(rig.host(id(1), ToAgent::Salvage { node: DEAD }), ["node-2 Salvage", "node-4 Salvage"]);
    for _ in 0..3 {
        rig.now += Duration::from_secs(5);
        rig.core.tick(rig.now);
        assert_eq!(rig.lines(), ["node-2 Salvage", "node-4 Salvage"]);
    }
    rig.now += Duration::from_secs(5);
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-1 < Salvaged"]);
    assert_eq!(rig.core.salvages.next_deadline(), None);
}

/// A reader that knows where the object lies by now waits with one that does not.
#[test]
fn who_knows_of_another_place_does_not_hear_that_it_is_lost() {
    let mut rig = with_pulled(&[]);
    let host = rig.launched(1, Class::default());
    let open = |at| ToAgent::Open { ahead: false, request: 1, object: object(1), copy: copy(at, 3) };
    assert_eq!(rig.host(id(1), open(DEAD)), [format!("pull {} from node-3", object(1))]);
    died(&mut rig, DEAD);
    assert_eq!(rig.host(host, open(FOURTH)), [""; 0]);
    let lost = || Failure::new(FailureKind::ObjectLost, "its node is gone");
    assert!(!rig.core.pulled((object(1), 3, JOB), Err(lost())));
    assert_eq!(rig.lines(), ["host-1 < OpenFailed ObjectLost", &format!("pull {} from node-4", object(1))]);
    assert!(!rig.core.pulled((object(1), 3, JOB), Err(lost())));
    assert_eq!(rig.lines(), ["host-2 < OpenFailed ObjectLost"]);
    assert!(rig.core.queue.is_empty());
}

/// What is said of a copy may come behind the burial of the node that it came from.
#[test]
fn a_spare_copy_is_one_however_late_that_is_heard() {
    let owner = theirs(1).owner;
    let mut rig = with_pulled(&[theirs(1), theirs(2)]);
    died(&mut rig, DEAD);
    rig.core.from_peer(Between::Salvage { owner, node: DEAD });
    rig.head(FromHead::Buried { host: DEAD.agent() });
    rig.take();
    // From a node that has died since it does not count.
    let fifth = NodeId { number: 5, incarnation: 1 };
    rig.core.from_peer(Between::LiesHere { object: theirs(1), copy: copy(fifth, 3) });
    assert_eq!(rig.core.objects.primaries(), (2, 200));
    rig.core.from_peer(Between::LiesHere { object: theirs(1), copy: copy(FOURTH, 3) });
    assert_eq!(rig.core.objects.primaries(), (1, 100));
    rig.core.from_peer(Between::Drop { object: theirs(1), attempt: 3, job: JOB });
    assert_eq!(rig.core.usage().objects, 1);
    // One that is claimed stays, whatever becomes of the other.
    let host = HostId { node: FOURTH, seq: 1 };
    rig.core.from_peer(Between::Claim { host, number: 1, objects: vec![theirs(1)], gone: vec![] });
    let mut rig = with_pulled(&[theirs(1)]);
    died(&mut rig, DEAD);
    rig.core.from_peer(Between::Salvage { owner, node: DEAD });
    rig.core.from_peer(Between::Claim { host, number: 1, objects: vec![theirs(1)], gone: vec![] });
    rig.core.from_peer(Between::Drop { object: theirs(1), attempt: 3, job: JOB });
    assert_eq!(rig.core.usage().objects, 1);
}

/// What a reader still has of a dead node's is of use to others once they know where the object lies.
#[test]
fn what_is_read_when_its_node_is_buried_is_opened_again() {
    let mut rig = with_pulled(&[]);
    let host = rig.launched(1, Class::default());
    let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: 1 };
    let open = |at| ToAgent::Open { ahead: false, request: 1, object: object(1), copy: copy(at, 3) };
    rig.host(id(1), open(DEAD));
    died(&mut rig, DEAD);
    assert!(rig.core.pulled((object(1), 3, JOB), Ok((region, 0, 100))));
    rig.head(FromHead::Buried { host: DEAD.agent() });
    rig.take();
    assert_eq!(rig.host(host, open(FOURTH)), ["node-4 Held", "host-2 < Opened +1fd"]);
    for reader in [id(1), host] {
        rig.host(reader, ToAgent::Unpin { object: object(1) });
    }
    assert_eq!(rig.core.usage().objects, 1, "it is a copy like any other");
    rig.core.from_peer(Between::Drop { object: object(1), attempt: 3, job: JOB });
    assert_eq!(rig.core.usage().objects, 0);
}
