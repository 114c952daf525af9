//! Spilling, and a model of all of it.

use std::collections::HashSet;

use mobula_ownership::Estate;
use mobula_proto::{IdMap, inventory::Why};
use mobula_store::spill::slot_bytes;
use proptest::prelude::*;

use super::{
    super::spill::{PAUSE, SPILLS_MAX},
    *,
};

const AGENT: HostId = HostId { node: NodeId::EMBEDDED, seq: 0 };

fn limits() -> Limits {
    Limits { file_bytes: MIB, disk_bytes: 64 * MIB, ..Limits::default() }
}

/// A store of 4 MiB, full of two regions of a host's, with two objects of 1 MiB in each.
fn full(limits: Limits) -> Objects {
    let mut objects = Objects::new(4 * MIB, limits);
    for seq in 1..=2 {
        assert_eq!(objects.want(host(2), u64::from(seq), 2 * MIB, Instant::now(), 0), Want::Granted);
        let region = RegionId { writer: host(2), seq };
        objects.add_region(region, u64::from(seq), JOB, 2 * MIB, fd()).unwrap();
        for half in 0..2 {
            let number = u64::from(seq) * 10 + half;
            objects.seal(object(number), 1, region, half * MIB, MIB, None).unwrap();
        }
    }
    objects
}

fn names(spills: &[Spill]) -> Vec<(u64, Vec<u64>)> {
    spills.iter().map(|spill| (spill.file, spill.items.iter().map(|item| item.key.0.seq).collect())).collect()
}

#[test]
fn nothing_leaves_memory_for_what_the_agent_has_empty() {
    let mut objects = full(Limits { above: 1.0, ..limits() });
    let region = RegionId { writer: host(2), seq: 1 };
    for seq in [10, 11] {
        objects.free(object(seq), 0..=1, None);
    }
    objects.remove_region(region).unwrap();
    let own = RegionId { writer: AGENT, seq: 1 };
    assert_eq!(objects.want(AGENT, 1, 2 * MIB, Instant::now(), 0), Want::Granted);
    objects.add_region(own, 1, JOB, 2 * MIB, fd()).unwrap();
    let late = Instant::now() + Duration::from_secs(5);
    assert_eq!(objects.want(host(4), 1, 2 * MIB, late, 5000), Want::Waiting);
    objects.own_empty_bytes = 2 * MIB;
    assert!(objects.make_room().spills.is_empty(), "the agent drops its region");
    objects.own_empty_bytes = 0;
    assert_eq!(names(&objects.make_room().spills), [(1, vec![20]), (2, vec![21])], "it is used again");
}

#[test]
fn o6_a_region_is_written_then_dropped_and_its_file_goes_with_its_objects() {
    let limits = Limits { above: 1.0, ..limits() };
    let mut objects = full(limits);
    let now = Instant::now();
    assert!(objects.make_room().spills.is_empty(), "nobody lacks room");
    // The first region was used last.
    objects.pin((object(10), 1, JOB), host(3)).unwrap();
    objects.unpin(object(10), host(3));
    assert_eq!(objects.want(host(4), 1, MIB, now, 0), Want::Waiting);
    let room = objects.make_room();
    assert_eq!((names(&room.spills), room.gone), (vec![(1, vec![20]), (2, vec![21])], Gone::default()));
    assert!(objects.make_room().spills.is_empty(), "enough is on its way");
    assert!(expire(&mut objects, now).is_empty(), "the disk makes room");
    assert_eq!(objects.spilled(1, Ok(()), now), Gone::default());
    assert_eq!(objects.pin((object(20), 1, JOB), host(3)).unwrap().offset, 0, "it is still in memory");
    objects.unpin(object(20), host(3));
    assert_eq!(objects.spilled(2, Ok(()), now), Gone::default());
    let gone = objects.make_room().gone;
    assert_eq!(gone.reclaim[&host(2)], [(object(20), 1, JOB), (object(21), 1, JOB)]);
    assert!(objects.pin((object(20), 1, JOB), host(3)).is_none());
    assert_eq!(objects.on_disk((object(21), 1, JOB)), Some((Slot { file: 2, offset: 0 }, MIB)));
    let amounts: Vec<_> = objects
        .groups(NodeId::EMBEDDED, &Estate::new(NodeId::EMBEDDED), &IdMap::default())
        .into_values()
        .map(|of| (of.objects, of.on_disk))
        .collect();
    assert_eq!(amounts, [(4, 2)], "people are told so");
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    assert!(objects.make_room().spills.is_empty(), "its writer was asked for the region");
    objects.remove_region(RegionId { writer: host(2), seq: 2 }).unwrap();
    assert_eq!(objects.grants(), [(host(4), 1)]);
    assert_eq!((objects.counters().spilled_bytes, objects.len()), (2 * MIB, 4));
    assert_eq!(objects.free(object(20), 0..=1, None).delete, [1]);
    assert_eq!(objects.job_gone(JOB).delete, [2]);
    objects.deleted(1);
    objects.deleted(2);
    assert_eq!((objects.disk_bytes(), objects.len()), (0, 0));
}

/// Nobody reads it, but the disk does.
#[test]
fn what_is_freed_while_it_is_written_says_so() {
    let mut objects = full(limits());
    assert_eq!(objects.want(host(4), 1, 2 * MIB, Instant::now(), 0), Want::Waiting);
    let written = objects.make_room().spills[0].items[0].key;
    assert_eq!(objects.free(written.0, 0..=1, None), Gone::default());
    let groups = objects.groups(NodeId::EMBEDDED, &Estate::new(NodeId::EMBEDDED), &IdMap::default());
    let shown: Vec<_> = groups.into_iter().map(|(key, of)| (key.why, of.objects)).collect();
    assert_eq!(shown, [(Why::Held, 3), (Why::Written, 1)]);
}

#[test]
fn a_file_stays_for_the_others_where_what_lies_first_was_freed_while_it_was_written() {
    let mut objects = full(Limits { above: 1.0, file_bytes: 4 * MIB, ..limits() });
    let now = Instant::now();
    assert_eq!(objects.want(host(4), 1, MIB, now, 0), Want::Waiting);
    assert_eq!(names(&objects.make_room().spills), [(1, vec![10, 11])]);
    assert!(objects.free(object(10), 0..=1, None).delete.is_empty());
    assert!(objects.spilled(1, Ok(()), now).delete.is_empty(), "the other one lies there");
    objects.make_room();
    assert!(objects.on_disk((object(11), 1, JOB)).is_some());
    assert_eq!(objects.free(object(11), 0..=1, None).delete, [1]);
    objects.deleted(1);
    assert_eq!((objects.disk_bytes(), objects.len()), (0, 2));
}

#[test]
fn copies_of_others_go_before_older_primaries_and_those_on_disk_before_those_that_are_not() {
    let mut objects = Objects::new(6 * MIB, Limits { above: 0.01, below: 0.0, ..limits() });
    let now = Instant::now();
    let origin = Some(Origin { node: NodeId { number: 2, incarnation: 1 }, job: JOB });
    let fill = |objects: &mut Objects, writer, seq: u32, origin| {
        let region = RegionId { writer, seq };
        assert_eq!(objects.want(writer, u64::from(seq), 2 * MIB, now, 0), Want::Granted);
        objects.add_region(region, u64::from(seq), JOB, 2 * MIB, fd()).unwrap();
        objects.seal(object(u64::from(seq)), 1, region, 0, MIB, origin).unwrap();
    };
    // The one that is in no file was used first, the copy last.
    fill(&mut objects, host(2), 1, None);
    objects.pin((object(1), 1, JOB), host(3)).unwrap();
    fill(&mut objects, host(2), 2, None);
    for spill in objects.make_room().spills {
        assert_eq!(objects.spilled(spill.file, Ok(()), now), Gone::default());
    }
    objects.unpin(object(1), host(3));
    assert_eq!(names(&objects.make_room().spills), [(2, vec![1])]);
    objects.spilled(2, Err("no space".to_owned()), now);
    for number in [2, 3] {
        if number == 3 {
            fill(&mut objects, AGENT, 3, origin);
        }
        objects.pin((object(number), 1, JOB), host(3)).unwrap();
        objects.unpin(object(number), host(3));
    }

    assert_eq!(objects.want(host(4), 1, MIB, now, 0), Want::Waiting);
    let gone = objects.make_room().gone.reclaim;
    assert_eq!(gone, BTreeMap::from([(AGENT, vec![(object(3), 1, JOB)])]), "it can be had elsewhere");
    objects.remove_region(RegionId { writer: AGENT, seq: 3 }).unwrap();
    assert_eq!(objects.grants(), [(host(4), 1)]);
    assert_eq!(objects.want(host(4), 2, 2 * MIB, now, 0), Want::Waiting);
    let room = objects.make_room();
    let gone = room.gone.reclaim;
    assert_eq!(gone, BTreeMap::from([(host(2), vec![(object(2), 1, JOB)])]), "it lies in a file");
    assert_eq!(objects.on_disk((object(2), 1, JOB)), Some((Slot { file: 1, offset: 0 }, MIB)));
    assert!(objects.find((object(1), 1, JOB)).is_some_and(|place| place.is_some()));
}

#[test]
fn what_comes_back_from_disk_leaves_memory_again_for_nothing() {
    let mut objects = full(Limits { above: 1.0, ..limits() });
    let now = Instant::now();
    assert_eq!(objects.want(AGENT, 1, 2 * MIB, now, 0), Want::Waiting);
    for spill in objects.make_room().spills {
        objects.spilled(spill.file, Ok(()), now);
    }
    assert_eq!(objects.make_room().gone.reclaim[&host(2)].len(), 2);
    objects.remove_region(RegionId { writer: host(2), seq: 1 }).unwrap();
    assert_eq!(objects.grants(), [(AGENT, 1)]);
    let region = RegionId { writer: AGENT, seq: 1 };
    objects.add_region(region, 1, JOB, 2 * MIB, fd()).unwrap();
    assert!(objects.restored((object(10), 1, JOB), region, 0));
    assert!(!objects.restored((object(10), 1, JOB), region, 0), "once is enough");
    assert!(!objects.restored((object(20), 1, JOB), region, 0), "it was never away");
    assert_eq!(objects.pin((object(10), 1, JOB), host(3)).unwrap().region, region);
    objects.unpin(object(10), host(3));
    assert_eq!(objects.want(host(4), 2, MIB, now, 0), Want::Waiting);
    let room = objects.make_room();
    assert_eq!(room.gone.reclaim[&AGENT], [(object(10), 1, JOB)]);
    assert!(room.spills.is_empty());
    let gone = objects.unreadable((object(10), 1, JOB));
    assert_eq!((gone.delete, objects.find((object(10), 1, JOB))), (vec![1], None));
    assert_eq!(objects.unreadable((object(20), 1, JOB)), Gone::default(), "it is in memory");
}

#[test]
fn much_that_lies_only_in_memory_is_written_ahead_of_need() {
    let mut objects = full(Limits { above: 0.8, below: 0.6, ..limits() });
    let now = Instant::now();
    assert_eq!(names(&objects.make_room().spills), [(1, vec![10]), (2, vec![11])]);
    objects.spilled(1, Ok(()), now);
    objects.spilled(2, Ok(()), now);
    let room = objects.make_room();
    assert_eq!((room.spills, room.gone), (vec![], Gone::default()), "it stays in memory");
    assert_eq!(objects.want(host(4), 1, MIB, now, 0), Want::Waiting);
    assert_eq!(objects.make_room().gone.reclaim[&host(2)].len(), 2, "which is free at once");
}

#[test]
fn a_disk_in_trouble_is_tried_again_and_named() {
    let mut objects = full(Limits { above: 1.0, ..limits() });
    let now = Instant::now();
    let deadline = now + Duration::from_secs(2);
    assert_eq!(objects.want(host(4), 1, MIB, deadline, 2000), Want::Waiting);
    assert_eq!(objects.make_room().spills.len(), SPILLS_MAX);
    for file in 1..=2 {
        let gone = objects.spilled(file, Err("no space".to_owned()), now);
        assert_eq!(gone, Gone { delete: vec![file], ..Gone::default() }, "a part of it may be there");
        assert!(objects.disk_bytes() > MIB);
        objects.deleted(file);
    }
    assert!(objects.make_room().spills.is_empty(), "not at once");
    assert_eq!((objects.disk_bytes(), objects.counters().spilled), (0, 0));
    let again = objects.next_deadline().unwrap();
    assert!(again > now && again < deadline);
    objects.retry(again);
    assert_eq!(names(&objects.make_room().spills), [(3, vec![10]), (4, vec![11])]);
    objects.spilled(3, Err("no space".to_owned()), again);
    objects.spilled(4, Err("no space".to_owned()), again);
    let refused = expire(&mut objects, deadline);
    let text = refused[0].2.to_string();
    assert!(text.contains("nothing is spilled: no space") && text.contains("MOB2001"), "{text}");
}

#[test]
fn a_slow_disk_is_waited_for_up_to_its_limit() {
    let stall = Duration::from_secs(20);
    let mut objects = full(Limits { above: 1.0, stall, ..limits() });
    let now = Instant::now();
    let deadline = now + Duration::from_secs(5);
    assert_eq!(objects.want(host(4), 1, MIB, deadline, 5000), Want::Waiting);
    assert_eq!(objects.make_room().spills.len(), SPILLS_MAX);
    // Neither file is written: the wait goes on for as long as one may take, and no longer.
    let mut at = deadline;
    while at < deadline + stall {
        assert!(expire(&mut objects, at).is_empty(), "refused {:?} after its deadline", at - deadline);
        let next = objects.next_deadline().unwrap();
        assert!(next > at, "no time passes");
        at = next;
    }
    assert_eq!(at, deadline + stall);
    // Each file that is written gives it as much time again.
    objects.spilled(1, Ok(()), at - Duration::from_secs(1));
    assert!(expire(&mut objects, at).is_empty());
    let end = at - Duration::from_secs(1) + stall;
    assert!(expire(&mut objects, end - Duration::from_millis(1)).is_empty());
    let refused = expire(&mut objects, end);
    assert!(refused[0].2.to_string().contains("MOB2001"), "{}", refused[0].2);
    // What was not written in time is where it was, and its file counts once it is there.
    assert!(objects.pin((object(10), 1, JOB), host(3)).is_some());
    objects.unpin(object(10), host(3));
    objects.spilled(2, Ok(()), end);
    assert_eq!((objects.counters().spilled, objects.len()), (2, 4));
}

#[test]
fn what_is_read_back_has_room_that_no_host_gets() {
    let mut objects = Objects::new(16 * MIB, Limits { above: 1.0, ..limits() });
    let now = Instant::now();
    for seq in 1..=8 {
        assert_eq!(
            objects.want(host(2), u64::from(seq), 2 * MIB, now, 0),
            Want::Granted,
            "nothing is on disk"
        );
        let region = RegionId { writer: host(2), seq };
        objects.add_region(region, u64::from(seq), JOB, 2 * MIB, fd()).unwrap();
        objects.seal(object(u64::from(seq)), 1, region, 0, MIB, None).unwrap();
    }
    assert_eq!(objects.want(host(4), 1, 2 * MIB, now, 0), Want::Waiting);
    let mut left = Vec::new();
    loop {
        let room = objects.make_room();
        left.extend(room.gone.reclaim.into_values().flatten());
        if room.spills.is_empty() {
            break;
        }
        for spill in room.spills {
            assert_eq!(objects.spilled(spill.file, Ok(()), now), Gone::default());
        }
    }
    assert_eq!(left, [(object(1), 1, JOB), (object(2), 1, JOB)]);
    objects.remove_region(RegionId { writer: host(2), seq: 1 }).unwrap();
    assert_eq!(objects.grants(), [], "an eighth is not for hosts while something is on disk");
    assert_eq!(objects.want(AGENT, 2, 2 * MIB, now, 0), Want::Granted, "nor has the agent to wait for it");
    assert_eq!(objects.want(AGENT, 3, 2 * MIB, now, 0), Want::Waiting, "for more it has");
    objects.remove_region(RegionId { writer: host(2), seq: 2 }).unwrap();
    assert_eq!(objects.grants(), [(host(4), 1)]);
}

#[test]
fn what_is_read_back_does_not_wait_for_what_is_pulled() {
    let mut objects = full(Limits { above: 1.0, restore: 0.25, ..limits() });
    let now = Instant::now();
    assert_eq!(objects.want(host(4), 1, MIB, now, 0), Want::Waiting);
    for spill in objects.make_room().spills {
        objects.spilled(spill.file, Ok(()), now);
    }
    objects.make_room();
    objects.remove_region(RegionId { writer: host(2), seq: 1 }).unwrap();
    assert_eq!(objects.grants(), [(host(4), 1)]);
    assert_eq!(
        objects.want(AGENT, 2, 3 * MIB, now, 0),
        Want::Waiting,
        "a pull that is larger than all that is free"
    );
    assert_eq!(objects.want(AGENT, 3, MIB, now, 0), Want::Granted);
    assert_eq!(objects.want(AGENT, 4, MIB, now, 0), Want::Waiting, "no more than is for it");
}

#[test]
fn files_have_a_bound_and_spilling_can_be_off() {
    let now = Instant::now();
    for (disk_bytes, part) in [(0, "are in use"), (MIB, "of the 1.0 MiB that files may take are used")] {
        let mut objects = full(Limits { above: 1.0, disk_bytes, ..limits() });
        assert_eq!(objects.want(host(4), 1, MIB, now, 0), Want::Waiting);
        assert!(objects.make_room().spills.is_empty());
        let text = expire(&mut objects, now)[0].2.to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn o7_a_file_counts_until_the_disk_has_deleted_it() {
    let two = slot_bytes(MIB).unwrap() * 2;
    let mut objects = full(Limits { above: 1.0, disk_bytes: two + MIB, ..limits() });
    let now = Instant::now();
    assert_eq!(objects.want(host(4), 1, 3 * MIB, now, 0), Want::Waiting);
    assert_eq!(names(&objects.make_room().spills), [(1, vec![10]), (2, vec![11])]);
    for file in [1, 2] {
        assert_eq!(objects.free(object(9 + file), 0..=1, None), Gone::default());
        assert_eq!(objects.spilled(file, Ok(()), now).delete, [file]);
    }
    assert_eq!((objects.disk_bytes(), objects.undeleted_bytes()), (two, two));
    assert!(objects.make_room().spills.is_empty(), "there is room for one");
    let text = expire(&mut objects, now + PAUSE * 2)[0].2.to_string();
    assert!(text.contains("3.0 MiB that files may take are used, 2.0 MiB of that by files yet"), "{text}");
    for file in [1, 1, 2] {
        objects.deleted(file);
    }
    assert_eq!((objects.disk_bytes(), objects.undeleted_bytes()), (0, 0));
    assert_eq!(objects.want(host(4), 2, 3 * MIB, now, 0), Want::Waiting);
    assert_eq!(names(&objects.make_room().spills), [(3, vec![20]), (4, vec![21])]);
    for file in [3, 4] {
        objects.spilled(file, Ok(()), now);
    }
    // Nothing is left that might be read back, though the files are there: no room is kept for that.
    for number in [20, 21] {
        objects.free(object(number), 0..=1, None);
    }
    for seq in 1..=2 {
        objects.remove_region(RegionId { writer: host(2), seq }).unwrap();
    }
    assert_eq!(objects.grants(), [(host(4), 2)]);
    assert_eq!(objects.want(host(4), 3, MIB, now, 0), Want::Granted);
    assert_eq!((objects.disk_bytes(), objects.undeleted_bytes()), (two, two));
}

/// A region of `writer` with one object, of the same number.
fn region_with(
    objects: &mut Objects,
    writer: HostId,
    seq: u32,
    [region, bytes]: [u64; 2],
    origin: Option<Origin>,
) {
    assert_eq!(objects.want(writer, u64::from(seq), region, Instant::now(), 0), Want::Granted);
    let id = RegionId { writer, seq };
    objects.add_region(id, u64::from(seq), JOB, region, fd()).unwrap();
    objects.seal(object(u64::from(seq)), 1, id, 0, bytes, origin).unwrap();
}

#[test]
fn what_the_disk_has_no_place_for_does_not_keep_others_in_memory() {
    let now = Instant::now();
    for above in [1.0, 0.1] {
        let limits = Limits { above, below: 0.0, disk_bytes: 2 * MIB, ..limits() };
        let mut objects = Objects::new(8 * MIB, limits);
        region_with(&mut objects, host(2), 1, [4 * MIB, 3 * MIB], None);
        region_with(&mut objects, host(2), 2, [2 * MIB, MIB], None);
        if above == 1.0 {
            assert_eq!(objects.want(host(4), 1, 3 * MIB, now, 0), Want::Waiting);
        }
        assert_eq!(names(&objects.make_room().spills), [(1, vec![2])], "written ahead above {above}");
        objects.spilled(1, Ok(()), now);
        assert!(objects.make_room().spills.is_empty());
    }
}

#[test]
fn what_the_agent_keeps_does_not_go_where_only_hosts_regions_help() {
    let mut objects = Objects::new(16 * MIB, Limits { above: 1.0, ..limits() });
    let now = Instant::now();
    let origin = Some(Origin { node: NodeId { number: 2, incarnation: 1 }, job: JOB });
    for seq in 1..=7 {
        region_with(&mut objects, host(2), seq, [2 * MIB, MIB], None);
    }
    region_with(&mut objects, AGENT, 8, [2 * MIB, MIB], origin);
    let first = RegionId { writer: host(2), seq: 1 };
    // One lies on disk, and so hosts have all of their share with the others and that of who asks.
    assert_eq!(objects.want(AGENT, 1, MIB, now, 0), Want::Waiting);
    objects.pin((object(8), 1, JOB), host(3)).unwrap();
    assert_eq!(names(&objects.make_room().spills), [(1, vec![1])]);
    objects.spilled(1, Ok(()), now);
    objects.make_room();
    objects.unpin(object(8), host(3));
    objects.unwant(AGENT, 1);
    objects.remove_region(first).unwrap();
    region_with(&mut objects, host(3), 9, [2 * MIB, MIB], None);

    assert_eq!(objects.want(host(4), 1, 2 * MIB, now, 0), Want::Waiting);
    objects.own_empty_bytes = 2 * MIB;
    assert_eq!(objects.short_of_own(), 0);
    let room = objects.make_room();
    assert_eq!((names(&room.spills), room.gone), (vec![(2, vec![2])], Gone::default()));
    assert!(objects.find((object(8), 1, JOB)).is_some_and(|place| place.is_some()));
}

#[test]
fn o9_a_writer_that_says_nothing_is_not_waited_for() {
    let mut objects = Objects::new(6 * MIB, Limits { above: 1.0, ..limits() });
    region_with(&mut objects, host(2), 1, [2 * MIB, MIB], None);
    region_with(&mut objects, host(2), 2, [2 * MIB, MIB], None);
    region_with(&mut objects, host(3), 3, [2 * MIB, MIB], None);
    let now = Instant::now();
    let [late, later] = [now + ANSWER_WAIT, now + ANSWER_WAIT * 2];
    objects.free(object(1), 0..=1, None);
    assert_eq!(objects.want(host(4), 1, 2 * MIB, later, 2000), Want::Waiting);
    assert!(objects.make_room().spills.is_empty(), "its region may come");
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    assert_eq!(objects.next_deadline(), Some(late));
    objects.unanswered(late - Duration::from_millis(1));
    assert!(objects.make_room().spills.is_empty(), "it may still");
    objects.unanswered(late);
    assert_eq!(
        names(&objects.make_room().spills),
        [(1, vec![3])],
        "what it has beside would not come either"
    );
    assert_eq!(objects.next_deadline(), Some(later));
    objects.spilled(1, Ok(()), late);
    assert_eq!(objects.make_room().gone.reclaim[&host(3)].len(), 1);
    objects.remove_region(RegionId { writer: host(3), seq: 3 }).unwrap();
    assert_eq!(objects.want(host(5), 1, 2 * MIB, later, 2000), Want::Waiting);
    objects.unwant(host(4), 1);
    assert_eq!(objects.grants(), [], "an eighth is for reading");
    assert!(objects.make_room().spills.is_empty());
    let text = objects.refuse(later + PAUSE, true)[0].2.to_string();
    assert!(text.contains("host-2 says nothing (is it stopped?)"), "{text}");
    assert_eq!(objects.want(host(5), 2, 2 * MIB, later, 2000), Want::Waiting);
    assert!(objects.heard(host(2)) && !objects.heard(host(2)));
    assert_eq!(names(&objects.make_room().spills), [(2, vec![2])]);
}

#[test]
fn o9_a_reader_that_says_nothing_is_not_waited_for() {
    let mut objects = full(Limits { above: 1.0, restore: 0.0, ..limits() });
    let now = Instant::now();
    let first = RegionId { writer: host(2), seq: 1 };
    objects.mapped(first, JOB, host(3));
    for number in [10, 11] {
        objects.free(object(number), 0..=1, None);
    }
    assert_eq!(objects.want(host(4), 1, 2 * MIB, now, 0), Want::Waiting);
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    assert_eq!(objects.remove_region(first).unwrap().unmap, [(host(3), first)]);
    objects.trimmed(host(2));
    assert!(objects.make_room().spills.is_empty(), "it goes with its last mapping");
    objects.unanswered(now + ANSWER_WAIT);
    assert_eq!(names(&objects.make_room().spills), [(1, vec![20]), (2, vec![21])]);
    objects.unmapped(first, host(3));
    assert_eq!(objects.grants(), [(host(4), 1)], "it did");
    assert_eq!((objects.used(), objects.going), (4 * MIB, 0));
}

#[test]
fn what_is_freed_on_its_way_to_the_disk_takes_no_part_of_it() {
    let mut objects = full(Limits { above: 1.0, ..limits() });
    let now = Instant::now();
    objects.want(host(4), 1, MIB, now, 0);
    assert_eq!(objects.make_room().spills.len(), 2);
    assert_eq!(objects.free(object(10), 0..=1, None), Gone::default(), "it is being read");
    assert!(objects.find((object(10), 1, JOB)).is_none());
    let gone = objects.spilled(1, Ok(()), now);
    assert_eq!((gone.reclaim[&host(2)].clone(), gone.delete), (vec![(object(10), 1, JOB)], vec![1]));
    objects.job_gone(JOB);
    assert_eq!(objects.spilled(2, Ok(()), now).delete, [2]);
    objects.deleted(1);
    objects.deleted(2);
    assert_eq!((objects.disk_bytes(), objects.used()), (0, 0));
}

#[test]
fn a_writer_that_reads_what_it_wrote_is_not_waited_for() {
    let mut objects = full(Limits { above: 1.0, ..limits() });
    let now = Instant::now();
    objects.want(host(4), 1, MIB, now, 0);
    for spill in objects.make_room().spills {
        objects.spilled(spill.file, Ok(()), now);
    }
    objects.make_room();
    assert_eq!(objects.idle_writers(), BTreeSet::from([host(2)]));
    assert!(objects.make_room().spills.is_empty(), "its region may come");
    objects.trimmed(host(2));
    assert_eq!(names(&objects.make_room().spills), [(3, vec![20]), (4, vec![21])], "it did not");
}

const DISK_BYTES: u64 = 24 * MIB;

/// One thing that happens, chosen by numbers.
type Step = (u8, u8, u8);

/// The table, with what a faithful agent and its hosts would know.
struct Model {
    objects: Objects,
    now: Instant,
    /// What is referenced: live objects and those that somebody pinned, with what is said to be in them.
    live: BTreeMap<ObjectId, u64>,
    pinned: Vec<(ObjectId, HostId)>,
    regions: BTreeMap<RegionId, (u64, u64)>,
    next_region: u32,
    next_object: u64,
    spills: BTreeMap<u64, Spill>,
    files: HashSet<u64>,
    /// Files that are to be deleted, and how large every file is.
    deleting: Vec<u64>,
    sizes: BTreeMap<u64, u64>,
    /// Who is stopped, and says nothing.
    stopped: Option<HostId>,
}

impl Model {
    fn new() -> Self {
        Self {
            objects: Objects::new(
                8 * MIB,
                Limits { file_bytes: 2 * MIB, disk_bytes: DISK_BYTES, ..limits() },
            ),
            now: Instant::now(),
            live: BTreeMap::new(),
            pinned: Vec::new(),
            regions: BTreeMap::new(),
            next_region: 1,
            next_object: 1,
            spills: BTreeMap::new(),
            files: HashSet::new(),
            deleting: Vec::new(),
            sizes: BTreeMap::new(),
            stopped: None,
        }
    }

    fn gone(&mut self, gone: Gone) {
        for file in gone.delete {
            assert!(self.files.remove(&file), "file {file} was never written, or is deleted twice");
            self.deleting.push(file);
        }
        for copy in gone.reclaim.into_values().flatten() {
            let pinned = self.pinned.iter().any(|(object, _)| *object == copy.0);
            assert!(!pinned, "{copy:?} is reclaimed while it is read");
        }
    }

    fn settle(&mut self) {
        let room = self.objects.make_room();
        self.gone(room.gone);
        for spill in room.spills {
            let size = spill.items.iter().map(|item| slot_bytes(item.place.bytes).unwrap()).sum();
            self.sizes.insert(spill.file, size);
            self.spills.insert(spill.file, spill);
        }
        assert!(self.spills.len() <= SPILLS_MAX);
        let there = self.spills.keys().chain(&self.files).chain(&self.deleting);
        let there: u64 = there.map(|file| self.sizes[file]).sum();
        assert!(there == self.objects.disk_bytes() && there <= DISK_BYTES, "{there} bytes of files");
        for writer in self.objects.idle_writers() {
            if self.stopped == Some(writer) {
                continue;
            }
            self.objects.heard(writer);
            self.objects.trimmed(writer);
            self.give_back(writer);
        }
        self.give_back(AGENT);
        for (writer, request) in self.objects.grants() {
            let region = RegionId { writer, seq: self.next_region };
            self.next_region += 1;
            self.objects.add_region(region, request, JOB, request, fd()).unwrap();
            self.regions.insert(region, (request, 0));
        }
        // Never over the capacity, and nothing that is referenced is lost.
        let mapped: u64 = self.regions.values().map(|(bytes, _)| bytes).sum();
        assert!(mapped <= self.objects.used() && self.objects.used() <= self.objects.capacity());
        for (object, bytes) in &self.live {
            match self.objects.find((*object, 1, JOB)) {
                Some(Some(place)) => assert_eq!(place.bytes, *bytes),
                Some(None) => {
                    let (slot, len) = self.objects.on_disk((*object, 1, JOB)).expect("it is somewhere");
                    assert!(self.files.contains(&slot.file) && len == *bytes);
                }
                None => panic!("{object} is lost"),
            }
        }
    }

    /// Drops the empty regions of a writer.
    fn give_back(&mut self, writer: HostId) {
        let of: Vec<_> = self.regions.keys().filter(|region| region.writer == writer).copied().collect();
        for region in of {
            if let Ok(gone) = self.objects.remove_region(region) {
                self.gone(gone);
                self.regions.remove(&region);
            }
        }
    }

    fn step(&mut self, (what, which, size): Step) {
        let writer = [host(1), host(2), AGENT][usize::from(which % 3)];
        let nth = usize::from(size);
        let pick = |from: Vec<ObjectId>| (!from.is_empty()).then(|| from[nth % from.len()]);
        match what % 9 {
            0 | 1 => {
                let bytes = u64::from(size % 4 + 1) * MIB;
                self.objects.want(writer, bytes, bytes, self.now, 0);
            }
            2 | 3 => {
                // A region is filled from its start.
                let bytes = u64::from(size) * 4096;
                let fits = |(_, (len, at)): &(&RegionId, &mut (u64, u64))| *at + bytes <= *len;
                let found = self.regions.iter_mut().filter(|(region, _)| region.writer == writer).find(fits);
                if let Some((region, (_, at))) = found {
                    let object = object(self.next_object);
                    self.next_object += 1;
                    let origin = (writer == AGENT)
                        .then_some(Origin { node: NodeId { number: 2, incarnation: 1 }, job: JOB });
                    self.objects.seal(object, 1, *region, *at, bytes, origin).unwrap();
                    *at += bytes;
                    // Copies of others' may go at any time.
                    if origin.is_none() {
                        self.live.insert(object, bytes);
                    }
                }
            }
            4 => {
                if let Some(object) = pick(self.live.keys().copied().collect())
                    && self.objects.pin((object, 1, JOB), host(3)).is_some()
                {
                    self.pinned.push((object, host(3)));
                }
            }
            5 => {
                if !self.pinned.is_empty() {
                    let (object, reader) = self.pinned.swap_remove(nth % self.pinned.len());
                    let gone = self.objects.unpin(object, reader);
                    self.gone(gone);
                }
            }
            6 => {
                if let Some(object) = pick(self.live.keys().copied().collect()) {
                    self.live.remove(&object);
                    let gone = self.objects.free(object, 0..=u32::MAX, None);
                    self.gone(gone);
                }
            }
            7 => {
                if let Some(file) = self.spills.keys().nth(nth % SPILLS_MAX).copied() {
                    self.spills.remove(&file);
                    let result = if which % 4 == 0 { Err("full".to_owned()) } else { Ok(()) };
                    // A part of one that was not written may be there.
                    self.files.insert(file);
                    let gone = self.objects.spilled(file, result, self.now);
                    self.gone(gone);
                }
            }
            _ => {
                // Something is read back, where there is room for it.
                let away = |object: &ObjectId| self.objects.on_disk((*object, 1, JOB)).is_some();
                let found = pick(self.live.keys().copied().filter(away).collect());
                if let Some(object) = found {
                    let bytes = self.live[&object];
                    let fits = |(region, (len, at)): &(&RegionId, &mut (u64, u64))| {
                        region.writer == AGENT && *at + bytes <= *len
                    };
                    if let Some((region, (_, at))) = self.regions.iter_mut().find(fits) {
                        assert!(self.objects.restored((object, 1, JOB), *region, *at));
                        *at += bytes;
                    }
                }
                if !self.deleting.is_empty() {
                    self.objects.deleted(self.deleting.swap_remove(nth % self.deleting.len()));
                }
                self.now += Duration::from_millis(200);
                self.objects.at(self.now);
                self.objects.retry(self.now);
                self.objects.unanswered(self.now);
                // Who goes on answers what it was asked meanwhile.
                let stopped = (which % 2 == 0).then_some(host(1));
                if let Some(writer) = std::mem::replace(&mut self.stopped, stopped) {
                    self.objects.heard(writer);
                    self.objects.trimmed(writer);
                    self.give_back(writer);
                }
                expire(&mut self.objects, self.now);
            }
        }
        self.settle();
    }

    /// Everybody lets go of everything: nothing is left.
    fn end(mut self) {
        for (object, reader) in std::mem::take(&mut self.pinned) {
            let gone = self.objects.unpin(object, reader);
            self.gone(gone);
        }
        for (object, _) in std::mem::take(&mut self.live) {
            let gone = self.objects.free(object, 0..=u32::MAX, None);
            self.gone(gone);
        }
        for (file, _) in std::mem::take(&mut self.spills) {
            self.files.insert(file);
            let gone = self.objects.spilled(file, Ok(()), self.now);
            self.gone(gone);
        }
        for file in std::mem::take(&mut self.deleting) {
            self.objects.deleted(file);
        }
        assert_eq!((self.objects.disk_bytes(), self.files.len(), self.objects.pinned()), (0, 0, 0));
        for writer in [host(1), host(2)] {
            let gone = self.objects.host_gone(writer);
            self.gone(gone);
        }
        let gone = self.objects.job_gone(JOB);
        self.gone(gone);
        self.objects.host_gone(AGENT);
        assert_eq!((self.objects.used(), self.objects.len()), (0, 0));
    }
}

proptest! {
    #[test]
    fn o1_o3_o6_never_over_capacity_nothing_lost_nothing_left(
        steps in proptest::collection::vec(any::<Step>(), 1..300)
    ) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        model.end();
    }
}
