//! What is shown of the store.

use mobula_proto::inventory::{Group, HOLDERS_MAX, Held, Hold, Store, Why};

use super::{super::stock::HOLDS_WAIT, drain::with_copies, *};

fn held(by: &[Hold], hosts: &[HostId]) -> Held {
    Held { by: by.to_vec(), hosts: hosts.to_vec(), more_hosts: 0 }
}

/// Owners that were asked elsewhere, under which number, and about what.
fn asked(effects: &[Effect]) -> Vec<(HostId, u64, Vec<ObjectId>)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Peer(node, Between::WhatHolds { by: NodeId::EMBEDDED, owner, number, objects }) => {
                assert_eq!(*node, owner.node);
                Some((*owner, *number, objects.clone()))
            }
            _ => None,
        })
        .collect()
}

fn said(rig: &mut Rig, request: u64) -> Option<Store> {
    rig.take().into_iter().find_map(|effect| match effect {
        Effect::Head(ToHead::Stock { request: of, store }) => {
            assert_eq!(of, request);
            Some(store)
        }
        _ => None,
    })
}

/// By what groups are held, by whom, and how many each.
fn shown(store: &Store) -> Vec<(Why, Vec<Hold>, Vec<String>, u64)> {
    let mut all: Vec<_> = store
        .groups
        .iter()
        .map(|Group { why, by, hosts, objects, .. }| (*why, by.clone(), hosts.clone(), *objects))
        .collect();
    all.sort();
    all
}

#[test]
fn owners_say_what_holds_their_objects() {
    let (mut rig, _) = with_copies(3);
    rig.core.from_head(FromHead::TakeStock { request: 4 }, rig.now);
    let effects = rig.take();
    let [(owner, number, objects)] = &asked(&effects)[..] else { panic!("not asked: {effects:?}") };
    assert_eq!((*owner, objects.len()), (HostId { node: other_node().node, seq: 1 }, 3));
    // Somebody else speaks for it, and somebody says too little: nothing is believed.
    rig.core.from_peer(Between::Holds { owner: id(1), number: *number, held: vec![Held::default(); 3] });
    rig.core.from_peer(Between::Holds { owner: *owner, number: number + 1, held: vec![] });
    assert_eq!(rig.lines(), [""; 0]);
    let many: Vec<_> = (0..20).map(id).collect();
    let answers = vec![
        held(&[Hold::Hosts, Hold::Owner, Hold::Owner], &many),
        held(&[Hold::Calls], &[]),
        held(&[Hold::Calls], &[]),
    ];
    rig.core.from_peer(Between::Holds { owner: *owner, number: *number, held: answers });
    let store = said(&mut rig, 4).unwrap();
    let named: Vec<_> = many.iter().take(HOLDERS_MAX).map(ToString::to_string).collect();
    let all =
        [(Why::Held, vec![Hold::Owner, Hold::Hosts], named, 1), (Why::Held, vec![Hold::Calls], vec![], 2)];
    assert_eq!(shown(&store), all);
    // Nothing is kept of it.
    assert_eq!(rig.core.next_deadline(), None);
}

#[test]
fn sk1_nobody_waits_for_an_owner_for_long() {
    let (mut rig, _) = with_copies(1);
    rig.core.from_head(FromHead::TakeStock { request: 4 }, rig.now);
    let effects = rig.take();
    let [(owner, number, _)] = asked(&effects)[..] else { panic!("not asked: {effects:?}") };
    assert_eq!(rig.core.next_deadline(), Some(rig.now + HOLDS_WAIT));
    rig.now += HOLDS_WAIT;
    rig.core.tick(rig.now);
    assert_eq!(shown(&said(&mut rig, 4).unwrap()), [(Why::Held, vec![], vec![], 1)]);
    rig.core.from_peer(Between::Holds { owner, number, held: vec![held(&[Hold::Owner], &[])] });
    assert_eq!(rig.lines(), [""; 0], "too late");
    // Of nodes that are gone nobody is asked.
    let failure = Failure::new(FailureKind::Unreachable, "gone");
    rig.head(FromHead::NodeDown { node: other_node().node, failure });
    rig.core.from_head(FromHead::TakeStock { request: 5 }, rig.now);
    assert!(said(&mut rig, 5).is_some());
}

#[test]
fn an_owner_here_is_asked_for_whoever_wants_to_know() {
    let (mut rig, host) = with_copies(0);
    let own = TaskId::numbered(host, 1).object(0);
    rig.host(host, ToAgent::Sealed { object: own, attempt: 1, region: 1, offset: 0, bytes: 100, site: 0 });
    assert_eq!(rig.head(FromHead::TakeStock { request: 4 }), ["host-1 < WhatHolds"]);
    let answer = |asker, number| ToAgent::Holds { asker, number, held: vec![held(&[Hold::Values], &[])] };
    rig.core.from_host(host, answer(NodeId::EMBEDDED, 1), vec![], rig.now);
    assert_eq!(shown(&said(&mut rig, 4).unwrap()), [(Why::Held, vec![Hold::Values], vec![], 1)]);

    let there = other_node().node;
    let ask = |owner| Between::WhatHolds { by: there, owner, number: 9, objects: vec![own] };
    rig.core.from_peer(ask(host));
    assert_eq!(rig.lines(), ["host-1 < WhatHolds"]);
    assert_eq!(rig.host(host, answer(there, 9)), ["node-2 Holds"]);
    rig.core.from_peer(ask(id(77)));
    assert_eq!(rig.lines(), ["node-2 Holds"], "that owner is gone");
}

/// Why what nobody holds is still here.
#[test]
fn what_is_freed_is_shown_as_long_as_somebody_reads_or_writes_it() {
    let (mut rig, host) = with_copies(1);
    let object = TaskId::numbered(HostId { node: other_node().node, seq: 1 }, 1).object(0);
    let open = ToAgent::Open { ahead: false, request: 9, object, copy: copy(NodeId::EMBEDDED, 1) };
    assert_eq!(rig.host(host, open), ["host-1 < Opened +1fd"]);
    rig.core.from_peer(Between::Free { object, copy: copy(NodeId::EMBEDDED, 1) });
    rig.take();
    rig.core.from_head(FromHead::TakeStock { request: 4 }, rig.now);
    assert_eq!(shown(&said(&mut rig, 4).unwrap()), [(Why::Read, vec![], vec![host.to_string()], 1)]);
}
