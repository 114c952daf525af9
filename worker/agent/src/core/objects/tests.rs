use std::time::Duration;

use mobula_proto::TaskId;

use super::*;

const JOB: JobId = JobId { number: 1 };
const MIB: u64 = 1024 * 1024;

fn host(seq: u32) -> HostId {
    HostId { node: NodeId::EMBEDDED, seq }
}

fn object(seq: u64) -> ObjectId {
    TaskId::numbered(host(1), seq).object(0)
}

fn fd() -> Arc<OwnedFd> {
    Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()))
}

/// Refuses what waited too long, where nobody else makes room.
fn expire(objects: &mut Objects, now: Instant) -> Vec<(HostId, Request, Failure)> {
    if objects.overdue(now) { objects.refuse(now, true) } else { Vec::new() }
}

fn with_region(capacity: u64, bytes: u64) -> (Objects, RegionId) {
    let mut objects = Objects::new(capacity, Limits::default());
    let region = RegionId { writer: host(2), seq: 1 };
    assert_eq!(objects.want(host(2), 1, bytes, Instant::now(), 0), Want::Granted);
    objects.add_region(region, 1, JOB, bytes, fd()).unwrap();
    (objects, region)
}

#[test]
fn no_writer_has_all_regions_that_a_node_may_have() {
    let mut objects = Objects::new(MIB, Limits::default());
    let mut want = |writer| objects.want(writer, 1, 1, Instant::now(), 0);
    for _ in 0..REGIONS_OF_ONE_MAX {
        assert_eq!(want(host(2)), Want::Granted);
    }
    let Want::Refused(failure) = want(host(2)) else { panic!("one more") };
    assert_eq!(failure.kind, FailureKind::Limit);
    assert_eq!(want(host(3)), Want::Granted);
}

#[test]
fn regions_take_half_of_the_descriptors() {
    let (mut objects, region) = with_region(4 * MIB, MIB);
    objects.limit_descriptors(2);
    let mut want = || objects.want(host(3), 1, MIB, Instant::now(), 0);
    let Want::Refused(failure) = want() else { panic!("one more") };
    assert!(failure.kind == FailureKind::Limit && failure.message.contains("the node's 1 of 1"), "{failure}");
    objects.remove_region(region).unwrap();
    assert_eq!(objects.want(host(3), 1, MIB, Instant::now(), 0), Want::Granted);
}

#[test]
fn o1_o2_room_is_granted_in_order_and_refused_at_the_deadline() {
    let (mut objects, region) = with_region(4 * MIB, 3 * MIB);
    let now = Instant::now();
    let soon = now + Duration::from_millis(50);
    let late = now + Duration::from_secs(5);
    assert_eq!(objects.want(host(3), 1, 2 * MIB, late, 5000), Want::Waiting);
    assert_eq!(objects.want(host(4), 7, MIB, soon, 50), Want::Waiting, "it would fit, but is not first");
    assert_eq!(objects.grants(), vec![]);
    assert_eq!(objects.next_deadline(), Some(soon));
    let refused = expire(&mut objects, soon);
    assert_eq!(refused.len(), 1);
    let text = refused[0].2.to_string();
    assert!(text.contains("3.0 MiB of the store's 4.0 MiB") && text.contains("MOB2001"), "{text}");
    objects.remove_region(region).unwrap();
    assert_eq!(objects.grants(), vec![(host(3), 1)]);
    assert_eq!(objects.used(), 2 * MIB);
    let Want::Refused(failure) = objects.want(host(3), 2, 5 * MIB, late, 0) else { panic!("too large") };
    assert_eq!(failure.kind, FailureKind::ObjectTooLarge);
    objects.host_gone(host(3));
    assert_eq!(objects.used(), 0, "a grant goes with its host");
}

#[test]
fn o3_memory_is_reused_only_when_freed_and_unpinned() {
    let (mut objects, region) = with_region(4 * MIB, MIB);
    objects.seal(object(1), 1, region, 0, 100, None).unwrap();
    assert!(objects.pin((object(1), 2, JOB), host(3)).is_none(), "attempts are never mixed");
    assert_eq!(objects.pin((object(1), 1, JOB), host(3)).unwrap().bytes, 100);
    objects.pin((object(1), 1, JOB), host(3)).unwrap();
    let other = NodeId { number: 2, incarnation: 1 };
    assert_eq!(objects.placed((object(1), 1, JOB), other, &[]), (None, vec![]));
    let gone = objects.free(object(1), 0..=1, None);
    assert_eq!((gone.reclaim.len(), gone.drop_at), (0, vec![(other, (object(1), 1, JOB))]));
    assert!(objects.pin((object(1), 1, JOB), host(4)).is_none(), "freed is freed");
    assert_eq!(objects.unpin(object(1), host(3)), Gone::default());
    assert_eq!(objects.pinned(), 1);
    assert_eq!(objects.unpin(object(1), host(3)).reclaim[&host(2)], vec![(object(1), 1, JOB)]);
    assert_eq!((objects.len(), objects.pinned()), (0, 0));
}

#[test]
fn a_copy_that_does_not_count_goes_alone_and_the_one_that_counts_takes_older_ones_along() {
    let (mut objects, region) = with_region(4 * MIB, MIB);
    for attempt in 1..=3 {
        objects.seal(object(1), attempt, region, u64::from(attempt) * 128, 100, None).unwrap();
    }
    objects.free(object(1), 2..=2, None);
    let there =
        |objects: &Objects| [1, 2, 3].map(|attempt| objects.find((object(1), attempt, JOB)).is_some());
    assert_eq!(there(&objects), [true, false, true]);
    objects.free(object(1), 0..=3, None);
    assert_eq!((there(&objects), objects.len()), ([false; 3], 0));
}

#[test]
fn o4_a_region_outlives_its_writer_with_its_objects() {
    let (mut objects, region) = with_region(4 * MIB, MIB);
    objects.seal(object(1), 1, region, 0, 100, None).unwrap();
    objects.seal(object(2), 1, region, 128, 100, None).unwrap();
    objects.pin((object(2), 1, JOB), host(2)).unwrap();
    assert_eq!(objects.host_gone(host(2)), Gone::default());
    assert_eq!(objects.pinned(), 0);
    assert_eq!((objects.free(object(1), 0..=1, None), objects.used()), (Gone::default(), MIB));
    assert_eq!((objects.free(object(2), 0..=1, None), objects.used()), (Gone::default(), 0));
}

#[test]
fn o1_what_a_reader_has_mapped_counts_until_it_is_unmapped() {
    let (mut objects, region) = with_region(4 * MIB, MIB);
    objects.seal(object(1), 1, region, 0, 100, None).unwrap();
    assert!(objects.region_fd_for(region, host(3)).is_some());
    assert_eq!(objects.mapped(region, JOB, host(3)), Gone::default());
    assert_eq!(objects.mapped(region, JOB, host(4)), Gone::default());
    objects.mapped(region, JobId { number: 99 }, host(5));
    assert!(objects.region_fd_for(region, host(3)).is_none(), "it has it");
    assert!(objects.region_fd_for(region, host(5)).is_some(), "another job's never has");
    objects.unmapped(region, host(4));
    assert!(objects.region_fd_for(region, host(4)).is_some());
    objects.free(object(1), 0..=1, None);
    let unmap = |seq| Gone { unmap: vec![(host(seq), region)], ..Gone::default() };
    let soon = Instant::now();
    assert_eq!(objects.want(host(9), 1, 4 * MIB, soon, 0), Want::Waiting);
    assert_eq!(objects.short_by(), MIB);
    assert_eq!(objects.remove_region(region), Ok(unmap(3)));
    assert_eq!((objects.used(), objects.short_by()), (MIB, 0), "nothing else need go for its sake");
    assert!(objects.idle_writers().is_empty() && objects.grants().is_empty());
    assert_eq!(objects.remove_region(region), Err(Error::UnknownRegion(region)));
    assert_eq!(objects.seal(object(2), 1, region, 0, 1, None), Err(Error::UnknownRegion(region)));
    assert_eq!(objects.mapped(region, JOB, host(4)), unmap(4), "too late");
    objects.unmapped(region, host(4));
    objects.unmapped(region, host(4));
    assert_eq!(objects.used(), MIB);
    objects.host_gone(host(3));
    assert_eq!(objects.used(), 0);
    assert_eq!(objects.grants(), [(host(9), 1)]);
    assert_eq!(objects.mapped(region, JOB, host(4)), unmap(4), "much too late");
    assert_eq!(objects.used(), 4 * MIB);
}

#[test]
fn writers_that_break_the_contract_are_found_out() {
    let (mut objects, region) = with_region(4 * MIB, MIB);
    let again = objects.add_region(region, 1, JOB, MIB, fd());
    assert_eq!(again, Err(Error::RegionTwice(region)));
    let other = RegionId { seq: 2, ..region };
    assert!(matches!(objects.add_region(other, 1, JOB, MIB, fd()), Err(Error::NotGranted { .. })));
    assert_eq!(objects.seal(object(1), 1, other, 0, 1, None), Err(Error::UnknownRegion(other)));
    assert!(matches!(objects.seal(object(1), 1, region, MIB, 1, None), Err(Error::OutOfBounds { .. })));
    assert!(matches!(objects.seal(object(1), 1, region, u64::MAX, 1, None), Err(Error::OutOfBounds { .. })));
    objects.seal(object(1), 1, region, 0, 1, None).unwrap();
    assert!(matches!(objects.seal(object(1), 1, region, 8, 1, None), Err(Error::SealedTwice { .. })));
    assert!(matches!(objects.remove_region(region), Err(Error::RegionInUse { live: 1, .. })));
}

#[test]
fn copies_are_evicted_oldest_first_and_jobs_leave_nothing() {
    let mut objects = Objects::new(4 * MIB, Limits::default());
    let agent = NodeId::EMBEDDED.agent();
    let region = RegionId { writer: agent, seq: 1 };
    objects.want(agent, 1, 4 * MIB, Instant::now(), 0);
    objects.add_region(region, 1, JOB, 4 * MIB, fd()).unwrap();
    let origin = Some(Origin { node: NodeId { number: 2, incarnation: 1 }, job: JOB });
    for seq in 1..=3 {
        objects.seal(object(seq), 1, region, seq * 1000, 1000, origin).unwrap();
    }
    objects.pin((object(1), 1, JOB), host(1)).unwrap();
    objects.unpin(object(1), host(1));
    objects.pin((object(2), 1, JOB), host(1)).unwrap();
    // The one region holds something pinned, so only its own writer is helped by what goes.
    assert_eq!(objects.want(host(3), 1, MIB, Instant::now(), 0), Want::Waiting);
    assert_eq!(objects.make_room().gone, Gone::default());
    objects.host_gone(host(3));
    assert_eq!(objects.want(agent, 2, 1000, Instant::now(), 0), Want::Waiting);
    assert_eq!(objects.make_room().gone.reclaim[&agent], vec![(object(3), 1, JOB)]);
    assert_eq!(objects.make_room().gone.reclaim[&agent], vec![(object(1), 1, JOB)]);
    assert_eq!(objects.make_room().gone, Gone::default(), "what is pinned stays");
    assert_eq!(objects.counters().evicted_bytes, 2000);
    objects.job_gone(JOB);
    assert_eq!((objects.used(), objects.len(), objects.pinned()), (0, 0, 0));
}

#[test]
fn writers_are_asked_once_for_what_they_keep_for_reuse() {
    let (mut objects, region) = with_region(4 * MIB, 3 * MIB);
    assert!(objects.idle_writers().is_empty(), "nobody lacks room");
    let late = Instant::now() + Duration::from_secs(5);
    assert_eq!(objects.want(host(3), 1, 2 * MIB, late, 5000), Want::Waiting);
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    assert!(objects.idle_writers().is_empty(), "it knows");
    objects.seal(object(1), 1, region, 0, 100, None).unwrap();
    assert!(objects.idle_writers().is_empty(), "it is in use");
    objects.free(object(1), 0..=1, None);
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]), "idle again");
}

#[test]
fn a_writer_that_still_used_what_it_was_asked_for_is_asked_again() {
    let (mut objects, region) = with_region(4 * MIB, 3 * MIB);
    let asked = Instant::now();
    let (wait, wait_ms) = (ASK_AGAIN * 2, 10_000);
    assert_eq!(objects.want(host(3), 1, 2 * MIB, asked + wait, wait_ms), Want::Waiting);
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    objects.trimmed(host(2));
    let again = asked + ASK_AGAIN;
    assert_eq!(objects.next_deadline(), Some(asked + ANSWER_WAIT));
    objects.unanswered(asked + ANSWER_WAIT);
    assert_eq!(objects.next_deadline(), Some(again));
    objects.at(again - Duration::from_millis(1));
    assert!(objects.idle_writers().is_empty(), "it has just said that it needs it");
    objects.at(again);
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    assert!(objects.idle_writers().is_empty(), "it knows");
    objects.unanswered(again + ANSWER_WAIT);
    assert_eq!(objects.next_deadline(), Some(asked + wait), "then who waits has waited too long");
    // Nobody lacks room.
    objects.unwant(host(3), 1);
    objects.at(again + ASK_AGAIN);
    assert!(objects.idle_writers().is_empty() && objects.next_deadline().is_none());
    // Somebody does, much later.
    let late = again + ASK_AGAIN * 2;
    assert_eq!(objects.want(host(3), 2, 2 * MIB, late, 0), Want::Waiting);
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    objects.remove_region(region).unwrap();
    assert_eq!(objects.grants(), vec![(host(3), 2)]);
}

#[test]
fn o1_room_set_aside_counts_and_nobody_waits_for_it() {
    let (mut objects, region) = with_region(4 * MIB, MIB);
    let agent = NodeId::EMBEDDED.agent();
    assert!(!objects.reserve(agent, 4 * MIB));
    assert!(objects.reserve(agent, 3 * MIB));
    assert_eq!(objects.used(), 4 * MIB);
    let late = Instant::now() + Duration::from_secs(5);
    assert_eq!(objects.want(host(3), 1, 2 * MIB, late, 5000), Want::Waiting);
    // What was asked for, and is refused, is not what was set aside.
    assert_eq!(objects.want(agent, 1, 3 * MIB, late, 5000), Want::Waiting);
    assert_eq!(expire(&mut objects, late).len(), 2);
    objects.unwant(agent, 1);
    assert_eq!(objects.used(), 4 * MIB);
    assert_eq!(objects.want(host(3), 1, 2 * MIB, late, 5000), Want::Waiting);
    objects.unreserve(agent, 3 * MIB);
    assert!(!objects.reserve(agent, MIB), "others were first");
    assert_eq!(objects.grants(), vec![(host(3), 1)]);
    objects.unreserve(agent, 3 * MIB);
    assert_eq!(objects.used(), 3 * MIB, "it is given back once");
    objects.remove_region(region).unwrap();
}

mod pressure;
