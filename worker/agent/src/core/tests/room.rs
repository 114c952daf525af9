//! Waits for room while calls run that have arguments.

use super::*;

/// A node of 4 MiB with two hosts of a job, each of which has a part of the budget, the first with 3 MiB in memory.
fn full() -> (Rig, [HostId; 2]) {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let hosts = [rig.launched(1, own()), rig.launched(2, own())];
    for host in hosts {
        let wanted = ToAgent::BudgetWanted { more: MIB / 2, alone: true };
        assert_eq!(rig.host(host, wanted), [format!("{} < Budget", short(&host))]);
    }
    rig.host(hosts[0], ToAgent::RegionWanted { request: 1, bytes: 3 * MIB, wait_ms: 0 });
    rig.host_with(hosts[0], ToAgent::RegionAdded { request: 1, seq: 1, bytes: 3 * MIB }, vec![fd()]);
    rig.host(hosts[0], sealed(1, 0, 3 * MIB));
    let copy = Copy { bytes: 3 * MIB, ..copy(NodeId::EMBEDDED, 1) };
    rig.host(hosts[1], ToAgent::Open { ahead: false, request: 1, object: object(1), copy });
    (rig, hosts)
}

fn wants(rig: &mut Rig, host: HostId, bytes: u64) {
    let wanted = ToAgent::RegionWanted { request: 2, bytes, wait_ms: 100 };
    assert_eq!(rig.host(host, wanted), [""; 0]);
}

/// Until something is due.
fn later(rig: &mut Rig) -> Vec<String> {
    rig.now = rig.core.next_deadline().expect("something to wait for");
    rig.core.tick(rig.now);
    rig.lines()
}

/// A host's word that it needs a region no more crosses the agent's that there is none: what another of its threads was
/// granted, of the same size, is not what goes back.
#[test]
fn what_is_not_wanted_any_more_takes_no_other_grant_along() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, own());
    let wanted = |request, wait_ms| ToAgent::RegionWanted { request, bytes: 3 * MIB, wait_ms };
    let added = |request, seq| ToAgent::RegionAdded { request, seq, bytes: 3 * MIB };
    rig.host(host, wanted(1, 0));
    rig.host_with(host, added(1, 1), vec![fd()]);
    rig.host(host, wanted(2, 100));
    rig.host(host, wanted(3, 5000));
    assert_eq!(later(&mut rig), ["host-2 < RegionRefused StoreFull"]);
    let granted = rig.host(host, ToAgent::RegionRemoved { seq: 1 });
    assert_eq!(granted, ["host-2 < RegionGranted"]);
    assert_eq!(rig.host(host, ToAgent::RegionUnwanted { request: 2 }), [""; 0]);
    assert_eq!(rig.host_with(host, added(3, 2), vec![fd()]), [""; 0]);
    assert_eq!(rig.core.usage().store_used_bytes, 3 * MIB);
    // One that was granted goes back with its own word, and is nobody's then.
    rig.host(host, ToAgent::RegionRemoved { seq: 2 });
    assert_eq!(rig.host(host, wanted(4, 0)), ["host-2 < RegionGranted"]);
    assert_eq!(rig.host(host, ToAgent::RegionUnwanted { request: 4 }), [""; 0]);
    assert_eq!(rig.core.usage().store_used_bytes, 0);
    assert_eq!(rig.host_with(host, added(4, 3), vec![fd()]), ["kill host-2"]);
}

/// What is fetched ahead has begun, and lacks memory: it does not keep what something waits for from beginning.
#[test]
fn tr4_what_is_fetched_ahead_gives_its_turn_back_while_it_lacks_memory() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let there = Copy { bytes: MIB, ..copy(other_node().node, 3) };
    let open = |seq, ahead| ToAgent::Open { ahead, request: seq, object: object(seq), copy: there };
    let pull = |seq| format!("pull {} from {}", object(seq), there.node);
    let recall = |seq| format!("recall {}", object(seq));
    let key = |seq| (object(seq), 3, JOB);
    assert_eq!(rig.host(id(1), open(1, true)), [pull(1)]);
    assert_eq!(rig.host(id(1), open(2, false)), [recall(1)]);
    rig.core.pull_recalled(key(1));
    assert_eq!(rig.lines(), [pull(2)]);
    assert_eq!(rig.host(id(1), open(3, false)), [""; 0], "something waits for that one");
    let lost = || Err(Failure::new(FailureKind::ObjectLost, "gone"));
    rig.core.pulled(key(2), lost());
    rig.core.pulled(key(3), lost());
    let said = rig.lines();
    assert!(said.contains(&pull(3)) && said.contains(&pull(1)), "{said:?}");
    // Once it has memory it goes on.
    began(&mut rig, 1);
    assert_eq!(rig.host(id(1), open(4, false)), [""; 0]);
}

#[test]
fn o9_a_host_that_says_nothing_keeps_others_from_no_room() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let [one, other] = [rig.launched(1, own()), rig.launched(2, own())];
    for (host, seq) in [(one, 1), (other, 2)] {
        rig.host(host, ToAgent::RegionWanted { request: 1, bytes: 2 * MIB, wait_ms: 0 });
        rig.host_with(host, ToAgent::RegionAdded { request: 1, seq, bytes: 2 * MIB }, vec![fd()]);
    }
    let full =
        ToAgent::Sealed { object: object(1), attempt: 1, region: 2, offset: 0, bytes: 2 * MIB, site: 0 };
    rig.host(other, full);
    let wanted = ToAgent::RegionWanted { request: 2, bytes: 2 * MIB, wait_ms: 5000 };
    let asked = rig.host(id(1), wanted);
    assert!(asked.len() == 1 && asked[0].starts_with("host-2 < Reclaim"), "{asked:?}");
    let began = rig.now;
    assert_eq!(later(&mut rig), ["spill 1 into 1"]);
    assert_eq!(rig.now, began + objects::ANSWER_WAIT);
}

#[test]
fn who_still_used_what_it_was_asked_for_is_asked_again() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let writer = rig.launched(1, own());
    rig.host(writer, ToAgent::RegionWanted { request: 1, bytes: 3 * MIB, wait_ms: 0 });
    rig.host_with(writer, ToAgent::RegionAdded { request: 1, seq: 1, bytes: 3 * MIB }, vec![fd()]);
    let wanted = ToAgent::RegionWanted { request: 2, bytes: 2 * MIB, wait_ms: 60_000 };
    let asked = rig.host(id(1), wanted);
    let began = rig.now;
    for again in 1..=3 {
        assert!(asked.len() == 1 && asked[0].starts_with("host-2 < Reclaim"), "{asked:?}");
        assert_eq!(rig.host(writer, ToAgent::Trimmed), [""; 0]);
        let said = std::iter::repeat_with(|| later(&mut rig)).find(|said| !said.is_empty());
        assert_eq!((said.as_ref(), rig.now), (Some(&asked), began + objects::ASK_AGAIN * again));
    }
    assert_eq!(rig.host(writer, ToAgent::RegionRemoved { seq: 1 }), ["host-1 < RegionGranted"]);
}

const ASKED: [&str; 2] = ["host-2 < MayMakeRoom", "host-3 < MayMakeRoom"];

#[test]
fn bu4_who_waits_for_room_goes_on_while_calls_may_make_some() {
    let (mut rig, [one, other]) = full();
    wants(&mut rig, one, 2 * MIB);
    assert_eq!(later(&mut rig), ASKED, "nobody has said that none will come");
    for may in [true, true] {
        rig.host(one, ToAgent::MakesRoom { may: false });
        rig.host(other, ToAgent::MakesRoom { may });
        assert_eq!(later(&mut rig), ASKED);
    }
    // Meanwhile others are given no more than half of the store, however long they wait.
    let wanted = ToAgent::BudgetWanted { more: 2 * MIB, alone: false };
    assert_eq!(rig.host(other, wanted), ["host-2 < BudgetWanted"]);
    for _ in 0..15 {
        rig.host(other, ToAgent::MakesRoom { may: true });
        let said = later(&mut rig);
        assert!(said.is_empty() || said == ASKED, "{said:?}");
    }
    rig.host(one, ToAgent::MakesRoom { may: false });
    rig.host(other, ToAgent::MakesRoom { may: false });
    let refused = loop {
        let said = later(&mut rig);
        if !said.is_empty() {
            break said;
        }
    };
    assert_eq!(refused, ["host-2 < RegionRefused StoreFull", "host-3 < Budget"]);
}

#[test]
fn bu4_nobody_waits_for_ever_for_calls_that_do_not_end() {
    let (mut rig, [one, _]) = full();
    wants(&mut rig, one, 2 * MIB);
    let began = rig.now;
    // Hosts that never answer, too.
    while later(&mut rig) == ASKED {
        assert!(rig.now <= began + objects::BUSY_WAIT_MAX + Duration::from_secs(2), "it waits for ever");
    }
    assert!(rig.now >= began + objects::BUSY_WAIT_MAX);
    assert_eq!(rig.core.usage().waiting, 0);
}

#[test]
fn bu4_what_is_enough_for_one_is_given_before_any_is_refused() {
    let (mut rig, [one, other]) = full();
    wants(&mut rig, one, 2 * MIB);
    wants(&mut rig, other, MIB);
    assert_eq!(later(&mut rig), ASKED);
    let stuck = |rig: &mut Rig| {
        for host in [one, other] {
            rig.host(host, ToAgent::MakesRoom { may: false });
        }
        later(rig)
    };
    assert_eq!(stuck(&mut rig), ["host-3 < RegionGranted", ASKED[0], ASKED[1]]);
    // Of two that are too large, the younger one goes first.
    let wanted = ToAgent::RegionWanted { request: 3, bytes: 3 * MIB, wait_ms: 0 };
    assert_eq!(rig.host(other, wanted), [""; 0]);
    rig.now += Duration::from_secs(1);
    for host in [one, other] {
        rig.host(host, ToAgent::MakesRoom { may: false });
    }
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-3 < RegionRefused StoreFull", ASKED[0], ASKED[1]]);
    let next = stuck(&mut rig);
    assert_eq!(next, ["host-2 < RegionRefused StoreFull"]);
}
