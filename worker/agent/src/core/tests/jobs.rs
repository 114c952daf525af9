//! Hosts of several jobs on one node.

use super::*;

const THEIRS: JobId = JobId { number: 8 };
const REGION: RegionId = RegionId { writer: HostId { node: NodeId::EMBEDDED, seq: 1 }, seq: 1 };

/// Drivers of two jobs, the first of which has a copy of an object of its own here.
fn two_jobs() -> (Rig, HostId, HostId) {
    let mut rig = Rig::new(false);
    let ours = rig.driver(false);
    let theirs = rig.core.driver_arrived(false).unwrap();
    rig.host(theirs, hello(Role::Driver, Some(driver()), REGISTRY));
    let job = Job { job: THEIRS, ..job(theirs) };
    rig.head(FromHead::JobStarted { request: u64::from(theirs.seq), job });
    for host in [ours, theirs] {
        rig.host(host, ToAgent::RegionWanted { request: 5, bytes: MIB, wait_ms: 0 });
        rig.host_with(host, ToAgent::RegionAdded { request: 5, seq: 1, bytes: MIB }, vec![fd()]);
    }
    assert_eq!(rig.host(ours, sealed(1)), [""; 0]);
    (rig, ours, theirs)
}

fn sealed(attempt: u32) -> ToAgent {
    ToAgent::Sealed { object: object(1), attempt, region: 1, offset: 0, bytes: 100, site: 0 }
}

fn open(copy: Copy) -> ToAgent {
    ToAgent::Open { request: 1, object: object(1), copy, ahead: false }
}

/// What the service does for a pull of another job: room, region, copy.
fn pulled(rig: &mut Rig, attempt: u32) -> bool {
    let agent = NodeId::EMBEDDED.agent();
    rig.core.want_region(agent, 1, MIB, Duration::ZERO, rig.now);
    let region = RegionId { writer: agent, seq: 1 };
    rig.core.objects.add_region(region, 1, THEIRS, MIB, Arc::new(super::fd())).unwrap();
    rig.take();
    rig.core.pulled((object(1), attempt, THEIRS), Ok((region, 0, 100)))
}

#[test]
fn o5_a_reader_of_another_job_gets_a_copy_in_its_own_memory() {
    let (mut rig, ours, theirs) = two_jobs();
    let here = copy(NodeId::EMBEDDED, 1);
    assert_eq!(rig.host(theirs, open(here)), ["pull node-1/host-1#1.0 from node-1"]);
    // The service asks like any other node.
    let wish = Wish { object: object(1), copy: here, by: NodeId::EMBEDDED, tried: vec![], whole: true };
    let Serve::Whole(key, place, _, others) = rig.core.serve(&wish, rig.now) else { panic!("not served") };
    assert_eq!((place.region, others), (REGION, vec![]));
    assert!(pulled(&mut rig, 1));
    assert_eq!(rig.lines(), ["host-2 < Opened +1fd"]);
    rig.core.served(key, NodeId::EMBEDDED, 100);
    let usage = rig.core.usage();
    assert_eq!((usage.objects, usage.pinned, usage.pulled_bytes, usage.served_bytes), (2, 1, 0, 0));
    // With the object both go, its owner says so once.
    assert_eq!(rig.host(ours, ToAgent::Free { object: object(1), copy: here }), ["host-1 < Reclaim 1"]);
    assert_eq!(rig.host(theirs, ToAgent::Unpin { object: object(1) }), ["reclaim 1"]);
    assert_eq!((rig.core.usage().objects, rig.core.usage().pinned), (0, 0));
}

/// A node that is sent two copies of one object, each for another job, has both pinned, each until that one was sent.
#[test]
fn tr3_what_was_served_of_one_jobs_copy_says_nothing_of_anothers() {
    let (mut rig, ours, theirs) = two_jobs();
    let here = copy(NodeId::EMBEDDED, 1);
    let wish = |by| Wish { object: object(1), copy: here, by, tried: vec![], whole: true };
    let serve = |rig: &mut Rig, by| {
        let Serve::Whole(key, ..) = rig.core.serve(&wish(by), rig.now) else { panic!("not served") };
        key
    };
    let there = other_node().node;
    let first = serve(&mut rig, there);
    rig.host(theirs, open(here));
    let local = serve(&mut rig, NodeId::EMBEDDED);
    assert!(pulled(&mut rig, 1));
    rig.core.served(local, NodeId::EMBEDDED, 100);
    rig.host(theirs, ToAgent::Unpin { object: object(1) });
    let second = serve(&mut rig, there);
    assert_ne!(first, second);
    rig.core.served(second, there, 100);
    assert_eq!(rig.core.usage().pinned, 1, "the first is still being sent");
    // Nor does a job's end.
    let third = serve(&mut rig, there);
    let failure = Failure::new(FailureKind::JobEnded, "over");
    rig.head(FromHead::JobEnded { job: THEIRS, failure, nodes: vec![] });
    rig.core.served(third, there, 100);
    let free = ToAgent::Free { object: object(1), copy: here };
    assert_eq!(rig.host(ours, free), ["node-2 Drop"], "its writer may not reuse it yet");
    rig.core.served(first, there, 100);
    assert_eq!(rig.lines(), ["host-1 < Reclaim 1"]);
    assert_eq!((rig.core.usage().objects, rig.core.usage().pinned), (0, 0));
}

#[test]
fn who_was_not_told_of_an_object_gets_nothing() {
    let (mut rig, ours, theirs) = two_jobs();
    let here = copy(NodeId::EMBEDDED, 1);
    let guessed = ObjectId { key: 77, ..object(1) };
    let by = other_node().node;
    for (object, copy) in [(guessed, here), (object(1), Copy { job: THEIRS, ..here })] {
        let said = rig.host(theirs, ToAgent::Open { request: 1, object, copy, ahead: false });
        let said = [said, rig.all_heard()].concat();
        assert_eq!(said, ["host-2 < OpenFailed ObjectLost"], "{object} {copy:?}");
        // Nor over another node.
        let wish = Wish { object, copy, by, tried: vec![], whole: false };
        assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Later(_)), "{object} {copy:?}");
        assert_eq!(rig.all_heard(), ["serve ObjectLost"], "{object} {copy:?}");
    }
    // Nor as if the owner were dead, here or from another node.
    let objects = vec![(guessed, None)];
    let mut answers = Vec::new();
    rig.core.from_host(theirs, ToAgent::Claim { objects }, vec![], rig.now);
    rig.core.from_peer(Between::Claim {
        host: HostId { node: by, seq: 3 },
        number: 7,
        objects: vec![guessed],
        gone: vec![],
    });
    for effect in rig.take() {
        match effect {
            Effect::Tell(_, ToHost::Claimed { answers: found }, _) => answers.extend(found),
            Effect::Peer(_, Between::Claimed { answers: found, .. }) => answers.extend(found),
            // It may be there.
            Effect::Peer(_, Between::Claim { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answers, [(guessed, None)]);
    assert!(rig.core.objects.primary(object(1), NodeId::EMBEDDED, |_| false).is_some());
    assert_eq!(rig.host(ours, open(here)), ["host-1 < Opened +1fd"]);
}

#[test]
fn nobody_frees_or_spoils_what_is_anothers() {
    let (mut rig, ours, theirs) = two_jobs();
    let here = copy(NodeId::EMBEDDED, 1);
    rig.host(ours, sealed(2));
    let next = copy(NodeId::EMBEDDED, 2);
    let said = rig.host(ours, open(next));
    assert_eq!(said, ["host-1 < Opened +1fd"]);
    assert_eq!(rig.core.objects.pin((object(1), 2, JOB), ours).unwrap().region, REGION);
    assert_eq!(rig.host(theirs, ToAgent::Free { object: object(1), copy: here }), ["close host-2"]);
    assert!(rig.core.objects.find((object(1), 1, JOB)).is_some());
}

#[test]
fn o8_nobody_gives_an_object_other_bytes_than_its_job_did() {
    let (mut rig, ours, theirs) = two_jobs();
    // It says that it made the next attempt's value.
    assert_eq!(rig.host(theirs, sealed(2)), ["close host-2"]);
    assert!(!rig.core.objects.has((object(1), 2, THEIRS)));
    // Who takes a name before the true writer does has it no longer than that; and what it has in its own memory it may
    // free, and nothing else goes with that.
    let early = |seq| ToAgent::Sealed {
        object: object(seq),
        attempt: 1,
        region: 1,
        offset: 128 * seq,
        bytes: 100,
        site: 0,
    };
    assert_eq!(rig.host(theirs, early(2)), [""; 0], "an actor of that job may have returned it");
    let fake = Copy { job: THEIRS, ..copy(NodeId::EMBEDDED, 1) };
    assert_eq!(rig.host(theirs, ToAgent::Decline { object: object(2), copy: fake }), ["host-2 < Reclaim 1"]);
    assert_eq!(rig.host(theirs, early(3)), [""; 0]);
    let executor = rig.launched(1, Class::default());
    rig.host(executor, ToAgent::RegionWanted { request: 5, bytes: MIB, wait_ms: 0 });
    rig.host_with(executor, ToAgent::RegionAdded { request: 5, seq: 1, bytes: MIB }, vec![fd()]);
    let said = rig.host(executor, early(3));
    assert_eq!(said, ["host-2 < Reclaim 1"], "the true writer is not ended for that");
    assert_eq!(rig.host(theirs, early(4)), [""; 0]);
    assert_eq!(rig.host(ours, early(4)), [""; 0], "nor the owner");
    // And what the owner leaves is its own.
    rig.core.host_ended(ours, Failure::new(FailureKind::HostDied, "killed"), rig.now);
    for seq in [3, 4] {
        let record = rig.core.objects.primary(object(seq), NodeId::EMBEDDED, |_| false);
        assert_eq!(record.map(|record| record.copy.job), Some(JOB), "{seq}");
    }
}

#[test]
fn o8_nobody_inherits_what_others_say_a_dead_host_owned() {
    let mut rig = two_jobs().0;
    let [ours, theirs] = [id(1), id(2)];
    // Of a host elsewhere; whose job that is nobody here knows while it lives.
    let there = HostId { node: other_node().node, seq: 4 };
    let of_there = TaskId::numbered(there, 1).object(0);
    let seal = |attempt, offset| ToAgent::Sealed {
        object: of_there,
        attempt,
        region: 1,
        offset,
        bytes: 100,
        site: 0,
    };
    assert_eq!(rig.host(theirs, seal(9, 512)), [""; 0]);
    assert_eq!(rig.host(ours, seal(1, 512)), [""; 0]);
    assert!(rig.core.objects.primary(of_there, NodeId::EMBEDDED, |_| false).is_none());
    let failure = Failure::new(FailureKind::HostDied, "killed by signal 9");
    let told = rig.head(FromHead::HostEnded { host: there, job: JOB, failure });
    assert_eq!(told, ["host-2 < Reclaim 1", "host-1 < HostDied host-4", "host-2 < HostDied host-4"]);
    let record = rig.core.objects.primary(of_there, NodeId::EMBEDDED, |_| false).unwrap();
    assert_eq!((record.copy.attempt, record.copy.job), (1, JOB));
    // Nor what they say of one that is dead.
    rig.core.host_ended(ours, Failure::new(FailureKind::HostDied, "killed"), rig.now);
    rig.take();
    assert_eq!(rig.host(theirs, sealed(7)), ["host-2 < Reclaim 1"]);
    let record = rig.core.objects.primary(object(1), NodeId::EMBEDDED, |_| false).unwrap();
    assert_eq!((record.copy.attempt, record.copy.job), (1, JOB));
}

#[test]
fn a_copy_for_another_job_goes_if_the_object_is_freed_while_it_is_made() {
    let (mut rig, ours, theirs) = two_jobs();
    let here = copy(NodeId::EMBEDDED, 1);
    rig.host(theirs, open(here));
    assert_eq!(rig.host(ours, ToAgent::Free { object: object(1), copy: here }), ["host-1 < Reclaim 1"]);
    assert!(pulled(&mut rig, 1));
    assert_eq!(rig.lines(), ["host-2 < Opened +1fd"], "it was asked for in time");
    assert_eq!(rig.host(theirs, ToAgent::Unpin { object: object(1) }), ["reclaim 1"]);
    assert_eq!(rig.core.usage().objects, 0);
}

#[test]
fn a_copy_for_another_job_goes_with_the_job_that_made_it() {
    let (mut rig, _, theirs) = two_jobs();
    rig.host(theirs, open(copy(NodeId::EMBEDDED, 1)));
    assert!(pulled(&mut rig, 1));
    rig.host(theirs, ToAgent::Unpin { object: object(1) });
    let failure = Failure::new(FailureKind::JobEnded, "over");
    rig.head(FromHead::JobEnded { job: JOB, failure, nodes: vec![] });
    assert_eq!(rig.core.usage().objects, 0);
}

#[test]
fn what_another_job_asks_for_before_it_is_sealed_is_copied_then() {
    let (mut rig, ours, theirs) = two_jobs();
    let next = copy(NodeId::EMBEDDED, 2);
    assert_eq!(rig.host(theirs, open(next)), [""; 0]);
    assert_eq!(rig.host(ours, sealed(2)), ["pull node-1/host-1#1.0 from node-1"]);
}
