//! Copies that move off a node that is to leave.

use mobula_proto::{
    head::{Between, Left, Taken},
    host::Noted,
};

use super::*;

/// A node whose driver elsewhere owns what its host sealed.
pub(super) fn with_copies(count: u64) -> (Rig, HostId) {
    let mut rig = Rig::new(false);
    let theirs = HostId { node: other_node().node, seq: 1 };
    rig.head(FromHead::Reserve {
        lease: lease(1),
        job: job(theirs),
        class: Class::default(),
        slots: 1,
        devices: vec![],
    });
    let host = id(1);
    rig.host(host, hello(Role::Host, None, REGISTRY));
    rig.host(host, ToAgent::RegionWanted { request: 1, bytes: MIB, wait_ms: 0 });
    rig.host_with(host, ToAgent::RegionAdded { request: 1, seq: 1, bytes: MIB }, vec![fd()]);
    for seq in 1..=count {
        let (object, offset) = (theirs_of(seq), seq * 128);
        rig.host(host, ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: 100, site: 0 });
    }
    (rig, host)
}

/// An object of the other node's.
fn theirs_of(seq: u64) -> ObjectId {
    TaskId::numbered(HostId { node: other_node().node, seq: 1 }, seq).object(0)
}

fn left(rig: &mut Rig) -> Option<Left> {
    rig.take().into_iter().find_map(|effect| match effect {
        Effect::Head(ToHead::Draining(left)) => Some(left),
        _ => None,
    })
}

#[test]
fn dr1_a_copy_goes_once_its_owner_knows_of_another() {
    let (mut rig, host) = with_copies(2);
    let there = other_node().node;
    // Somebody has a copy of the first.
    let wish = Wish {
        object: theirs_of(1),
        copy: copy(NodeId::EMBEDDED, 1),
        by: there,
        tried: vec![],
        whole: false,
    };
    assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Whole(..)));
    rig.core.served((theirs_of(1), 1, JOB), there, 100);
    rig.take();
    let said = rig.head(FromHead::Drain { to: vec![] });
    assert_eq!(said, ["head Draining"], "there is nowhere to go");
    rig.core.drain_look_now();
    assert_eq!(rig.head(FromHead::Drain { to: vec![there] })[..2], ["node-2 Keep", "node-2 Keep"]);
    let kept = |seq, taken| Between::Kept { object: theirs_of(seq), attempt: 1, job: JOB, taken, by: there };

    rig.core.from_peer(kept(2, Taken::No));
    assert_eq!(rig.core.objects.len(), 2, "the other could not take it");
    rig.core.from_peer(kept(1, Taken::Yes));
    assert_eq!(rig.lines(), ["node-2 Held", "host-1 < Reclaim 1"]);
    rig.now += Duration::from_millis(250);
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["node-2 Keep", "head Draining"], "it is tried again");
    // It is not here any more, which is said once it is known.
    let open = |seq| ToAgent::Open {
        ahead: false,
        request: 9,
        object: theirs_of(seq),
        copy: copy(NodeId::EMBEDDED, 1),
    };
    assert_eq!(rig.host(host, open(1)), [""; 0]);
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-1 < Mark"], "at once");
    assert_eq!(rig.host(host, ToAgent::Marked { number: 1 }), ["host-1 < OpenFailed ObjectLost"]);
    rig.host(host, open(2));
    rig.core.from_peer(kept(2, Taken::Yes));
    assert_eq!(rig.lines(), [""; 0], "it is being read");
    assert_eq!(rig.host(host, ToAgent::Unpin { object: theirs_of(2) }), ["host-1 < Reclaim 1"]);
    // Its job ended here meanwhile: nobody else would tell the other.
    rig.core.from_peer(kept(3, Taken::Yes));
    assert_eq!(rig.lines(), ["node-2 Free"]);

    // Nothing is lost with the host once its lease is over, as it says itself.
    rig.head(FromHead::LeaseEnded { lease: lease(1), evicted: false });
    rig.now += Duration::from_millis(250);
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-1 < AreYouIdle", "head Draining"]);
    assert_eq!(rig.host(host, ToAgent::Idle { idle: false }), [""; 0]);
    rig.now += Duration::from_millis(250);
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-1 < AreYouIdle"]);
    assert_eq!(rig.host(host, ToAgent::Idle { idle: true }), ["kill host-1"]);
    rig.core.host_ended(host, Failure::new(FailureKind::HostDied, "killed"), rig.now);
    rig.take();
    rig.now += Duration::from_millis(250);
    rig.core.tick(rig.now);
    assert_eq!(left(&mut rig), Some(Left::default()));
}

#[test]
fn hosts_that_wait_for_work_are_asked_before_they_are_ended() {
    let mut rig = Rig::new(false);
    let theirs = HostId { node: other_node().node, seq: 1 };
    let class = Class { isolation: Isolation::Process, ..Class::default() };
    rig.head(FromHead::Reserve { lease: lease(1), job: job(theirs), class, slots: 1, devices: vec![] });
    let host = id(1);
    rig.host(host, hello(Role::Host, None, REGISTRY));
    rig.head(FromHead::LeaseEnded { lease: lease(1), evicted: false });
    // It may keep values that others hold.
    assert_eq!(rig.head(FromHead::Drain { to: vec![] }), ["host-1 < AreYouIdle", "head Draining"]);
    assert_eq!(rig.host(host, ToAgent::Idle { idle: true }), ["kill host-1"]);
}

#[test]
fn what_is_given_is_kept_and_the_owner_told() {
    let (mut rig, host) = with_copies(0);
    let there = other_node().node;
    let given = copy(there, 3);
    let keep = || Between::Keep { object: theirs_of(5), copy: given, refs: Some(0), inherited: false };
    rig.core.from_peer(keep());
    assert_eq!(rig.lines(), [format!("pull {} from node-2", theirs_of(5))]);
    let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: 1 };
    rig.core.want_region(region.writer, 50, MIB, Duration::ZERO, rig.now);
    rig.core.objects.add_region(region, 50, JOB, MIB, Arc::new(fd())).unwrap();
    rig.take();
    assert!(rig.core.pulled((theirs_of(5), 3, JOB), Ok((region, 0, 100))));
    assert_eq!(rig.lines(), ["node-2 Moved"]);
    assert_eq!(rig.core.objects.primaries(), (1, 100));
    rig.core.from_peer(keep());
    assert_eq!(rig.lines(), ["node-2 Moved"], "asked again, it tells again");
    let here = Copy { node: NodeId::EMBEDDED, ..given };
    let noted = |noted| Between::Noted { object: theirs_of(5), copy: here, noted };
    rig.core.from_peer(noted(Noted::Yes));
    assert_eq!(rig.lines(), ["node-2 Kept"]);
    rig.core.from_peer(noted(Noted::Yes));
    assert_eq!(rig.lines(), [""; 0]);
    // Freed by its owner, it goes here, and at those who copied it from the other node.
    let third = NodeId { number: 3, incarnation: 1 };
    rig.core.node_up(Node { node: third, ..other_node() });
    rig.core.from_peer(Between::Held { object: theirs_of(5), attempt: 3, job: JOB, nodes: vec![third] });
    assert_eq!(rig.lines(), ["node-3 LiesHere"]);
    rig.core.from_peer(Between::Free { object: theirs_of(5), copy: here });
    assert_eq!(rig.lines(), ["reclaim 1", "node-3 Drop"]);
    assert_eq!(rig.core.objects.primaries(), (0, 0));

    // An owner that has not heard of it, or is gone.
    for said in [Noted::Unknown, Noted::Gone] {
        rig.core.from_peer(keep());
        rig.take();
        assert!(rig.core.pulled((theirs_of(5), 3, JOB), Ok((region, 0, 100))));
        rig.take();
        rig.core.from_peer(noted(said));
        let told = rig.take();
        assert!(
            matches!(&told[0], Effect::Peer(node, Between::Kept { taken, .. }) if (*node, *taken) == (there, Taken::No))
        );
        assert!(rig.core.objects.is_empty());
    }
    // An owner here is asked itself.
    let ours = TaskId::numbered(host, 9).object(0);
    rig.core.from_peer(Between::Moved { object: ours, from: there, copy: Copy { node: third, ..given } });
    assert_eq!(rig.lines(), ["host-1 < Moved"]);
    let answer = |object| ToAgent::Noted { object, copy: Copy { node: third, ..given }, noted: Noted::Yes };
    assert_eq!(rig.host(host, answer(ours)), ["node-3 Noted"]);
    rig.core.from_peer(Between::Moved {
        object: object(77),
        from: there,
        copy: Copy { node: third, ..given },
    });
    assert_eq!(rig.lines(), ["host-1 < Moved"], "it may know of it");
    assert_eq!(rig.host(host, answer(theirs_of(1))), ["kill host-1"], "it is not its own");
    // A node that drains itself takes nothing.
    rig.head(FromHead::Drain { to: vec![] });
    rig.core.from_peer(keep());
    assert_eq!(rig.lines(), ["node-2 Kept"]);
}

#[test]
fn what_is_given_comes_with_the_refs_inside() {
    let (mut rig, _) = with_copies(0);
    let there = other_node().node;
    let (object, given) = (theirs_of(5), copy(there, 3));
    let part = |at, refs: &[u64]| {
        let refs = refs.iter().map(|seq| theirs_of(*seq)).collect();
        Between::Contains { object, copy: given, at, refs }
    };
    let keep = || Between::Keep { object, copy: given, refs: Some(3), inherited: false };
    // One part is lost, since too many waited: it is given again later.
    rig.core.from_peer(part(0, &[1]));
    rig.core.from_peer(part(2, &[3]));
    rig.core.from_peer(keep());
    assert_eq!(rig.lines(), ["node-2 Kept"]);
    for (at, refs) in [(0, &[9][..]), (0, &[1]), (1, &[2, 3])] {
        rig.core.from_peer(part(at, refs));
    }
    rig.core.from_peer(keep());
    assert_eq!(rig.lines(), [format!("pull {object} from node-2")]);
    let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: 1 };
    rig.core.want_region(region.writer, 50, MIB, Duration::ZERO, rig.now);
    rig.core.objects.add_region(region, 50, JOB, MIB, Arc::new(fd())).unwrap();
    assert!(rig.core.pulled((object, 3, JOB), Ok((region, 0, 100))));
    assert_eq!(rig.core.objects.contained((object, 3, JOB)), Some(&[1, 2, 3].map(theirs_of)[..]));
    rig.take();
    // Given on, it says them too.
    rig.core.node_up(Node { node: NodeId { number: 3, incarnation: 1 }, ..other_node() });
    let here = Copy { node: NodeId::EMBEDDED, ..given };
    rig.core.from_peer(Between::Noted { object, copy: here, noted: Noted::Yes });
    rig.take();
    let lines = rig.head(FromHead::Drain { to: vec![NodeId { number: 3, incarnation: 1 }] });
    let said: Vec<&str> =
        lines.iter().filter(|line| line.starts_with("node-3")).map(String::as_str).collect();
    assert_eq!(said, ["node-3 Contains", "node-3 Keep"]);
}

/// A node that has a copy of what a dead host elsewhere owned, claimed by a host of that other node.
fn with_inherited() -> (Rig, HostId, NodeId) {
    let (mut rig, _) = with_copies(1);
    let there = other_node().node;
    let (dead, third) = (theirs_of(1).owner, NodeId { number: 3, incarnation: 1 });
    rig.core.node_up(Node { node: third, ..other_node() });
    let failure = Failure::new(FailureKind::HostDied, "killed");
    rig.head(FromHead::HostEnded { host: dead, job: JobId { number: 99 }, failure });
    let claimant = HostId { node: there, seq: 4 };
    rig.core.from_peer(Between::Claim {
        host: claimant,
        number: 7,
        objects: vec![theirs_of(1)],
        gone: vec![],
    });
    rig.head(FromHead::Buried { host: dead });
    rig.take();
    (rig, claimant, third)
}

fn inherited(by: NodeId) -> Between {
    Between::Kept { object: theirs_of(1), attempt: 1, job: JOB, taken: Taken::Inherited, by }
}

#[test]
fn dr2_what_was_inherited_lies_elsewhere_too_before_the_node_leaves() {
    let (mut rig, claimant, third) = with_inherited();
    rig.core.drain(vec![third], rig.now);
    let effects = rig.take();
    let keeps = |effect: &Effect| matches!(effect, Effect::Peer(to, Between::Keep { inherited: true, .. }) if *to == third);
    assert!(effects.iter().any(keeps), "{effects:?}");
    assert_eq!(
        effects.iter().find_map(|effect| match effect {
            Effect::Head(ToHead::Draining(left)) => Some(left.objects),
            _ => None,
        }),
        Some(1)
    );
    rig.core.from_peer(inherited(third));
    rig.now += Duration::from_millis(250);
    rig.core.tick(rig.now);
    assert_eq!(left(&mut rig).map(|left| left.objects), Some(0), "none that would be lost");
    assert_eq!(rig.core.usage().objects, 1, "it is read here until the node leaves");
    // The other leaves first: a further one is asked.
    let there = other_node().node;
    rig.core.drain(vec![there], rig.now);
    rig.core.drain_without(third);
    rig.now += Duration::from_millis(250);
    rig.core.tick(rig.now);
    assert!(rig.lines().contains(&"node-2 Keep".to_owned()));
    rig.core.from_peer(inherited(there));
    assert_eq!(rig.lines(), [""; 0]);
    // Nobody holds it any more: it goes here, and there.
    rig.core.from_peer(Between::Unclaim { host: claimant, object: theirs_of(1) });
    assert_eq!(rig.lines(), ["node-2 Unclaim", "host-1 < Reclaim 1"]);
    // Word of another that has it comes too late.
    rig.core.from_peer(inherited(third));
    assert_eq!(rig.lines(), ["node-3 Unclaim"]);
}

#[test]
fn dr2_a_node_that_stays_after_all_takes_back_what_it_had_kept_elsewhere() {
    let (mut rig, claimant, third) = with_inherited();
    rig.core.drain(vec![third], rig.now);
    rig.core.from_peer(inherited(third));
    rig.take();
    rig.core.resume();
    assert_eq!(rig.lines(), ["node-3 Unclaim"]);
    rig.core.from_peer(inherited(third));
    assert_eq!(rig.lines(), ["node-3 Unclaim"], "it was asked before");
    rig.core.from_peer(Between::Unclaim { host: claimant, object: theirs_of(1) });
    assert_eq!(rig.lines(), ["host-1 < Reclaim 1"]);
}

#[test]
fn dr2_what_is_given_by_an_heir_is_kept_until_that_is_buried_and_longer_for_those_who_claim_it() {
    let (mut rig, _) = with_copies(0);
    let there = other_node().node;
    let (dead, third) = (theirs_of(5).owner, NodeId { number: 3, incarnation: 1 });
    rig.core.node_up(Node { node: third, ..other_node() });
    let failure = || Failure::new(FailureKind::HostDied, "killed");
    rig.head(FromHead::HostEnded { host: dead, job: JobId { number: 99 }, failure: failure() });
    rig.head(FromHead::Buried { host: dead });
    rig.take();
    let give = |rig: &mut Rig, region: u32| {
        let given = copy(third, 3);
        rig.core.from_peer(Between::Keep {
            object: theirs_of(5),
            copy: given,
            refs: Some(0),
            inherited: true,
        });
        assert_eq!(rig.lines(), [format!("pull {} from node-3", theirs_of(5))]);
        let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: region };
        rig.core.want_region(region.writer, 50, MIB, Duration::ZERO, rig.now);
        rig.core.objects.add_region(region, 50, JOB, MIB, Arc::new(fd())).unwrap();
        rig.take();
        region
    };
    let pulled = |rig: &mut Rig, region| rig.core.pulled((theirs_of(5), 3, JOB), Ok((region, 0, 100)));
    let region = give(&mut rig, 1);
    assert!(pulled(&mut rig, region));
    assert_eq!(rig.lines(), ["node-3 Kept"]);
    // Asked again, it says so again; and it is one claim that the heir takes back.
    rig.core.from_peer(Between::Keep {
        object: theirs_of(5),
        copy: copy(third, 3),
        refs: Some(0),
        inherited: true,
    });
    assert_eq!(rig.lines(), ["node-3 Kept"]);
    rig.core.from_peer(Between::Unclaim { host: third.agent(), object: theirs_of(5) });
    assert_eq!((rig.lines(), rig.core.usage().objects), (vec!["reclaim 1".to_owned()], 0));

    let region = give(&mut rig, 2);
    assert!(pulled(&mut rig, region));
    rig.head(FromHead::NodeDown { node: third, failure: failure() });
    rig.core.from_peer(Between::Claim {
        host: HostId { node: there, seq: 4 },
        number: 1,
        objects: vec![theirs_of(5)],
        gone: vec![],
    });
    rig.take();
    rig.head(FromHead::Buried { host: third.agent() });
    assert_eq!(rig.core.usage().objects, 1, "who claims it has it");
    rig.core.from_peer(Between::Unclaim { host: HostId { node: there, seq: 4 }, object: theirs_of(5) });
    assert_eq!(rig.core.usage().objects, 0);

    // The heir is gone before the copy is here.
    rig.core.node_up(Node { node: NodeId { number: 4, incarnation: 1 }, ..other_node() });
    let fourth = NodeId { number: 4, incarnation: 1 };
    rig.core.from_peer(Between::Keep {
        object: theirs_of(5),
        copy: copy(fourth, 3),
        refs: Some(0),
        inherited: true,
    });
    rig.head(FromHead::NodeDown { node: fourth, failure: failure() });
    let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: 3 };
    rig.core.want_region(region.writer, 50, MIB, Duration::ZERO, rig.now);
    rig.core.objects.add_region(region, 50, JOB, MIB, Arc::new(fd())).unwrap();
    pulled(&mut rig, region);
    assert_eq!(rig.core.usage().objects, 0);
}
