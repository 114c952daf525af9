//! Each test cites what it checks.

use mobula_proto::{NodeId, limits};

use super::*;

const NODE: NodeId = NodeId { number: 1, incarnation: 1 };
const ONE: HostId = HostId { node: NODE, seq: 1 };
const TWO: HostId = HostId { node: NODE, seq: 2 };
const SHARED: Seat = Seat::Group(0);

fn id(seq: u64) -> TaskId {
    TaskId::numbered(ONE, seq)
}

fn inbox(change: impl FnOnce(&mut Limits)) -> Inbox<u64> {
    let mut limits = Limits::default();
    change(&mut limits);
    Inbox::new(&limits)
}

fn comes(inbox: &mut Inbox<u64>, seat: Seat, caller: HostId, seq: u64) -> Knock {
    let knock = inbox.knock(caller);
    if knock == Knock::In {
        inbox.enter(seat, id(seq), caller, Some(seq));
    }
    knock
}

fn started(inbox: &mut Inbox<u64>) -> Vec<u64> {
    std::iter::from_fn(|| inbox.start()).collect()
}

#[test]
fn in1_a_mut_call_runs_alone_and_in_its_place() {
    let mut inbox = inbox(|_| ());
    for (seq, seat) in [(1, SHARED), (2, SHARED), (3, Seat::Alone), (4, SHARED), (5, Seat::Alone)] {
        comes(&mut inbox, seat, ONE, seq);
    }
    assert_eq!(started(&mut inbox), [1, 2]);
    inbox.finished(SHARED);
    assert_eq!(inbox.start(), None, "one still runs");
    inbox.finished(SHARED);
    assert_eq!(started(&mut inbox), [3]);
    inbox.finished(Seat::Alone);
    assert_eq!(started(&mut inbox), [4]);
    inbox.finished(SHARED);
    assert_eq!(started(&mut inbox), [5]);
}

#[test]
fn in2_groups_have_limits_of_their_own() {
    let mut inbox = inbox(|limits| {
        limits.concurrency = 1;
        limits.groups = vec![limits::Group { name: "io".to_owned(), concurrency: 2 }];
    });
    for seq in 1..=3 {
        comes(&mut inbox, SHARED, ONE, seq);
        comes(&mut inbox, Seat::Group(1), ONE, 10 + seq);
    }
    assert_eq!(started(&mut inbox), [1, 11, 12]);
    inbox.finished(Seat::Group(1));
    assert_eq!(started(&mut inbox), [13]);
    // One that waits gives its turn up, and takes it again without waiting for it.
    inbox.waits(SHARED, false);
    assert_eq!(started(&mut inbox), [2]);
    inbox.goes_on(SHARED);
    inbox.finished(SHARED);
    assert_eq!(inbox.start(), None);
    inbox.finished(SHARED);
    assert_eq!(started(&mut inbox), [3]);
}

#[test]
fn in2_a_mut_call_that_waits_keeps_the_actor() {
    let mut inbox = inbox(|_| ());
    comes(&mut inbox, Seat::Alone, ONE, 1);
    comes(&mut inbox, SHARED, ONE, 2);
    assert_eq!(started(&mut inbox), [1]);
    inbox.waits(Seat::Alone, false);
    assert_eq!(inbox.start(), None);
    inbox.goes_on(Seat::Alone);
    inbox.finished(Seat::Alone);
    assert_eq!(started(&mut inbox), [2]);
}

#[test]
fn in3_what_waits_for_arguments_holds_its_caller_back() {
    for unordered in [false, true] {
        let mut inbox = inbox(|limits| limits.unordered = unordered);
        inbox.enter(SHARED, id(1), ONE, None);
        inbox.enter(SHARED, id(2), ONE, Some(2));
        inbox.enter(Seat::Alone, id(3), TWO, Some(3));
        inbox.enter(SHARED, id(4), TWO, Some(4));
        if unordered {
            assert_eq!(started(&mut inbox), [2]);
            inbox.finished(SHARED);
        }
        assert_eq!(started(&mut inbox), [3]);
        inbox.finished(Seat::Alone);
        assert_eq!(started(&mut inbox), [4]);
        inbox.ready(SHARED, id(1), 1);
        assert_eq!(started(&mut inbox), if unordered { vec![1] } else { vec![1, 2] });
    }
}

#[test]
fn in3_one_whose_arguments_are_lost_holds_nobody_back() {
    let mut inbox = inbox(|_| ());
    inbox.enter(Seat::Alone, id(1), ONE, None);
    inbox.enter(Seat::Alone, id(2), ONE, Some(2));
    assert_eq!(inbox.start(), None);
    inbox.leave(Seat::Alone, id(1));
    assert_eq!(started(&mut inbox), [2]);
}

#[test]
fn in4_a_full_inbox_refuses() {
    let mut inbox = inbox(|limits| {
        limits.inbox = 2;
        limits.when_full = WhenFull::Refuse;
    });
    let knocks: Vec<_> = (1..=3).map(|seq| comes(&mut inbox, Seat::Alone, ONE, seq)).collect();
    assert_eq!(knocks, [Knock::In, Knock::In, Knock::Refused]);
    assert_eq!(inbox.start(), Some(1));
    assert_eq!(comes(&mut inbox, Seat::Alone, ONE, 4), Knock::In);
    assert!(!inbox.has_door());
}

#[test]
fn in4_in5_callers_wait_in_turn_and_keep_their_order() {
    let mut inbox = inbox(|limits| limits.inbox = 4);
    for seq in 1..=4 {
        assert_eq!(comes(&mut inbox, Seat::Alone, ONE, seq), Knock::In);
    }
    assert_eq!(comes(&mut inbox, Seat::Alone, ONE, 5), Knock::Wait);
    assert_eq!(inbox.start(), Some(1));
    // There is room, but 6 was sent behind 5.
    assert_eq!(comes(&mut inbox, Seat::Alone, ONE, 6), Knock::Wait);
    assert!(inbox.let_in().is_empty(), "it may have sent more that is on its way");
    inbox.asked(ONE, true);
    assert_eq!(comes(&mut inbox, Seat::Alone, TWO, 20), Knock::Wait, "others were first");
    inbox.asked(TWO, true);
    assert_eq!(inbox.let_in()[..], [(ONE, 1)]);
    assert_eq!(comes(&mut inbox, Seat::Alone, ONE, 5), Knock::In);
    inbox.asked(ONE, true);
    assert!(inbox.let_in().is_empty());
    inbox.finished(Seat::Alone);
    assert_eq!(inbox.start(), Some(2));
    assert_eq!(inbox.let_in()[..], [(TWO, 1)]);
    // It does not use its place after all.
    inbox.asked(TWO, false);
    assert_eq!(inbox.let_in()[..], [(ONE, 1)]);
    // A caller's death frees what was kept for it.
    inbox.forget(ONE);
    assert!(!inbox.has_door());
    assert_eq!(comes(&mut inbox, Seat::Alone, TWO, 21), Knock::In);
    assert_eq!(inbox.len, 4);
}

#[test]
fn in4_a_circle_is_noticed_only_where_all_wait() {
    let mut inbox = inbox(|limits| {
        limits.inbox = 1;
        limits.concurrency = 1;
    });
    assert_eq!(comes(&mut inbox, Seat::Alone, ONE, 1), Knock::In);
    assert_eq!(inbox.start(), Some(1));
    assert_eq!(comes(&mut inbox, SHARED, ONE, 2), Knock::In);
    assert_eq!(comes(&mut inbox, SHARED, TWO, 3), Knock::Wait);
    inbox.asked(TWO, true);
    for _ in 0..2 * STALLED_TICKS {
        assert!(inbox.tick().is_empty(), "it computes");
    }
    inbox.waits(Seat::Alone, false);
    let mut ticks = (1..).map(|tick| (tick, inbox.tick()));
    let (tick, told) = ticks.find(|(_, told)| !told.is_empty()).unwrap();
    assert_eq!((tick, &told[..]), (STALLED_TICKS, &[TWO][..]));
    inbox.goes_on(Seat::Alone);
    assert!(inbox.tick().is_empty());
}

#[test]
fn in2_only_what_comes_is_movement() {
    for moves in [false, true] {
        let mut inbox = inbox(|limits| limits.inbox = 1);
        comes(&mut inbox, Seat::Alone, ONE, 1);
        assert_eq!(started(&mut inbox), [1]);
        comes(&mut inbox, SHARED, ONE, 2);
        assert_eq!(comes(&mut inbox, SHARED, TWO, 3), Knock::Wait);
        inbox.asked(TWO, true);
        inbox.waits(Seat::Alone, false);
        // It is polled again and again, between the looks.
        let told = (0..2 * STALLED_TICKS).any(|_| {
            inbox.goes_on(Seat::Alone);
            inbox.waits(Seat::Alone, moves);
            !inbox.tick().is_empty()
        });
        assert_eq!(told, !moves);
    }
}

#[test]
fn in2_so_many_wait_until_nothing_moves() {
    let mut inbox = inbox(|limits| limits.concurrency = 1);
    let all = u64::from(WAITING_MAX) + 3;
    for seq in 0..all {
        assert_eq!(comes(&mut inbox, SHARED, ONE, seq), Knock::In);
    }
    for seq in 0..=u64::from(WAITING_MAX) {
        assert_eq!(inbox.start(), Some(seq));
        inbox.waits(SHARED, false);
    }
    assert_eq!(inbox.start(), None, "as many wait as may");
    assert!(inbox.wants_ticks());
    for _ in 0..STALLED_TICKS {
        assert_eq!(inbox.start(), None);
        assert!(inbox.tick().is_empty());
    }
    assert_eq!(inbox.start(), Some(all - 2), "what it waits for may be among these");
}

#[test]
fn in3_a_call_taken_out_for_its_arguments_keeps_its_place() {
    let mut inbox = inbox(|limits| limits.concurrency = 1);
    for (seq, seat, caller) in [(1, SHARED, ONE), (2, SHARED, ONE), (3, Seat::Alone, TWO), (4, SHARED, TWO)] {
        comes(&mut inbox, seat, caller, seq);
    }
    assert_eq!(started(&mut inbox), [1]);
    let meant = |seq: &u64| *seq > 1;
    assert_eq!(inbox.take_out(meant, |_| false), None, "the first may not, so none does");
    assert_eq!(inbox.take_out(meant, |seq| *seq == 2), Some(2));
    assert_eq!(inbox.take_out(meant, |_| true), Some(3));
    inbox.finished(SHARED);
    assert_eq!(inbox.start(), None, "4 comes behind 3, whose caller is the same");
    inbox.ready(SHARED, id(2), 2);
    assert_eq!(started(&mut inbox), [2]);
    inbox.finished(SHARED);
    inbox.leave(Seat::Alone, id(3));
    assert_eq!(started(&mut inbox), [4]);
    assert_eq!(inbox.take_out(meant, |_| true), None);
}

/// A caller has room for two calls, and keeps it from another that waits.
fn kept() -> Inbox<u64> {
    let mut inbox = inbox(|limits| limits.inbox = 2);
    for seq in 1..=2 {
        assert_eq!(comes(&mut inbox, SHARED, TWO, seq), Knock::In);
    }
    assert_eq!(comes(&mut inbox, SHARED, ONE, 10), Knock::Wait);
    inbox.asked(ONE, true);
    assert_eq!(started(&mut inbox), [1, 2]);
    assert_eq!(inbox.let_in()[..], [(ONE, 2)]);
    assert_eq!(comes(&mut inbox, SHARED, TWO, 3), Knock::Wait);
    inbox
}

/// The same, when the room is the other's.
fn lapsed() -> Inbox<u64> {
    let mut inbox = kept();
    inbox.asked(TWO, true);
    for _ in 0..KEPT_TICKS {
        assert!(inbox.let_in().is_empty());
        inbox.tick();
    }
    assert_eq!(inbox.let_in()[..], [(TWO, 2)]);
    assert_eq!(comes(&mut inbox, SHARED, TWO, 3), Knock::In);
    inbox.asked(TWO, false);
    assert_eq!(started(&mut inbox), [3]);
    inbox
}

#[test]
fn in4_room_that_is_not_used_while_others_wait_is_theirs() {
    let mut inbox = kept();
    for _ in 0..2 * KEPT_TICKS {
        inbox.tick();
    }
    assert_eq!(comes(&mut inbox, SHARED, ONE, 10), Knock::In, "nobody else waits");
    inbox.asked(TWO, true);
    for _ in 1..KEPT_TICKS {
        inbox.tick();
    }
    assert_eq!(comes(&mut inbox, SHARED, ONE, 11), Knock::In, "it uses it");

    let mut inbox = lapsed();
    assert!(inbox.callers_at_door().contains(&ONE));
    // It wanted nothing any more.
    inbox.asked(ONE, false);
    assert!(!inbox.has_door());
    assert_eq!(comes(&mut inbox, SHARED, ONE, 10), Knock::In);
}

#[test]
fn in5_who_comes_when_its_room_has_gone_asks_anew() {
    for more in [false, true] {
        let mut inbox = lapsed();
        assert_eq!(comes(&mut inbox, SHARED, ONE, 10), Knock::Wait);
        assert_eq!(comes(&mut inbox, SHARED, ONE, 11), Knock::Wait);
        // What it sent with these says nothing of their coming back.
        inbox.asked(ONE, more);
        assert!(inbox.let_in().is_empty());
        assert_eq!(comes(&mut inbox, SHARED, ONE, 12), Knock::Wait, "10 was first");
        inbox.asked(ONE, true);
        assert_eq!(inbox.let_in()[..], [(ONE, 2)]);
        assert_eq!(comes(&mut inbox, SHARED, ONE, 10), Knock::In);
    }
}

#[test]
fn in5_who_comes_with_room_to_one_that_has_closed_asks_anew() {
    for more in [false, true] {
        let mut inbox = kept();
        inbox.close();
        assert_eq!(comes(&mut inbox, SHARED, ONE, 10), Knock::Wait);
        inbox.closing = Closing::Open(1);
        inbox.asked(ONE, more);
        assert!(inbox.let_in().is_empty());
        assert_eq!(comes(&mut inbox, SHARED, ONE, 11), Knock::Wait, "10 was first");
        inbox.asked(ONE, true);
        assert_eq!(inbox.let_in()[..], [(ONE, 2)]);
    }
}
