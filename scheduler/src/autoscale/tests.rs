//! Plans, as tables, and what holds of every plan.

use mobula_proto::{GroupId, resource::LabelRule};
use proptest::prelude::*;

use super::*;
use crate::{Apart, Limit};

fn resources(text: &str) -> Resources {
    let list = text.split_whitespace().map(|part| {
        let (name, amount) = part.split_once('=').unwrap();
        (Kind::parse(name).unwrap(), amount.parse().unwrap())
    });
    Resources::from_list(list).unwrap()
}

fn of(name: &str, offers: &str, min: u32, max: u32) -> NodeType {
    NodeType {
        name: name.to_owned(),
        resources: resources(offers),
        labels: vec![("pool".to_owned(), name.to_owned())],
        min,
        max,
        idle_timeout: Millis(60_000),
    }
}

fn shape(count: u64, needs: &str) -> Unmet {
    let (resources, labels, fallbacks, limits) = (resources(needs), Vec::new(), Vec::new(), Vec::new());
    Unmet { resources, labels, fallbacks, count, gang: None, apart: None, limits, turn: 0 }
}

fn in_group(number: u64, arrange: Arrange, mut shape: Unmet) -> Unmet {
    let group = GroupId { number };
    shape.gang = Some(Gang { group, arrange, place: String::new(), on: Vec::new() });
    shape
}

fn in_pool(pool: &str, mut shape: Unmet) -> Unmet {
    shape.labels = vec![LabelRule::In("pool".to_owned(), vec![pool.to_owned()])];
    shape
}

/// `small=2 gpu=1 left 3`, of a cluster with nothing in it.
fn told(types: &[NodeType], unmet: &[Unmet]) -> String {
    text(&plan(types, &[], &BTreeMap::new(), unmet, Millis(0)).unwrap())
}

fn text(plan: &Plan) -> String {
    let mut words: Vec<String> = plan.start.iter().map(|(name, count)| format!("{name}={count}")).collect();
    let left: u64 = plan.left.iter().map(|unmet| unmet.count).sum();
    if left > 0 {
        words.push(format!("left {left}"));
    }
    words.join(" ")
}

fn types() -> Vec<NodeType> {
    vec![
        of("small", "cpu=4 memory=8GiB", 0, 10),
        of("large", "cpu=32 memory=64GiB", 0, 2),
        of("gpu", "cpu=8 gpu=4", 0, 3),
    ]
}

#[test]
fn demand_becomes_nodes() {
    for (unmet, want) in [
        (vec![], ""),
        (vec![shape(4, "cpu=1")], "small=1"),
        (vec![shape(5, "cpu=1")], "small=2"),
        (vec![shape(40, "cpu=1")], "large=1 small=2"),
        (vec![shape(1, "cpu=16")], "large=1"),
        // What is large goes first, and small things fit in beside it.
        (vec![shape(16, "cpu=1"), shape(1, "cpu=16")], "large=1"),
        (vec![shape(1, "gpu=4"), shape(8, "cpu=1")], "gpu=1"),
        (vec![shape(3, "gpu=2")], "gpu=2"),
        // Devices are whole things: of two parts of 0.6 none shares one.
        (vec![shape(4, "gpu=0.6")], "gpu=1"),
        (vec![shape(5, "gpu=0.6")], "gpu=2"),
        (vec![shape(8, "gpu=0.5")], "gpu=1"),
        (vec![shape(4, "gpu=0.5"), shape(1, "gpu=2")], "gpu=1"),
        (vec![shape(13, "gpu=1")], "gpu=3 left 1"),
        (vec![shape(2, "cpu=33")], "left 2"),
        (vec![shape(1, "cpu=1 licence=1")], "left 1"),
        (vec![in_pool("large", shape(1, "cpu=1"))], "large=1"),
        (vec![in_pool("none", shape(1, "cpu=1"))], "left 1"),
        (vec![shape(1_000_000, "cpu=1")], "gpu=3 large=2 small=10 left 999872"),
    ] {
        assert_eq!(told(&types(), &unmet), want, "{unmet:?}");
    }
}

#[test]
fn groups_are_whole_or_not_at_all() {
    let group = |number, arrange, count, needs| in_group(number, arrange, shape(count, needs));
    for (unmet, want) in [
        (vec![group(1, Arrange::Pack, 3, "gpu=4")], "gpu=3"),
        (vec![group(1, Arrange::Pack, 4, "gpu=4")], "left 4"),
        // The first takes its room; the second has none, and keeps nothing of what is left.
        (vec![group(1, Arrange::Pack, 2, "gpu=4"), group(2, Arrange::Pack, 2, "gpu=4")], "gpu=2 left 2"),
        (vec![group(1, Arrange::StrictPack, 4, "cpu=8")], "large=1"),
        (vec![group(1, Arrange::StrictPack, 5, "cpu=8")], "left 5"),
        (vec![group(1, Arrange::StrictSpread, 3, "cpu=1")], "small=3"),
        (vec![group(1, Arrange::StrictSpread, 4, "gpu=1")], "left 4"),
        (vec![group(1, Arrange::Spread, 4, "gpu=1")], "gpu=1"),
        // A group of two shapes, of which one fits nowhere, starts nothing for the other.
        (vec![group(1, Arrange::Pack, 1, "cpu=2"), group(1, Arrange::Pack, 1, "cpu=64")], "left 2"),
        (
            vec![group(1, Arrange::StrictSpread, 1, "cpu=2"), group(1, Arrange::StrictSpread, 1, "cpu=1")],
            "small=2",
        ),
    ] {
        assert_eq!(told(&types(), &unmet), want, "{unmet:?}");
    }
}

#[test]
fn groups_keep_to_places_and_to_different_ones() {
    let rack = |name: &str, offers: &str, max, rack: &str| NodeType {
        labels: vec![("rack".to_owned(), rack.to_owned())],
        ..of(name, offers, 0, max)
    };
    let types = [rack("a", "cpu=4", 2, "r1"), rack("b", "cpu=4", 3, "r2"), of("c", "cpu=4", 0, 9)];
    let group = |arrange, count| {
        let mut shape = in_group(1, arrange, shape(count, "cpu=4"));
        shape.gang.as_mut().unwrap().place = "rack".to_owned();
        shape
    };
    for (unmet, want) in [
        (group(Arrange::StrictPack, 2), "a=2"),
        (group(Arrange::StrictPack, 3), "b=3"),
        (group(Arrange::StrictPack, 4), "left 4"),
        (group(Arrange::StrictSpread, 2), "a=1 b=1"),
        (group(Arrange::StrictSpread, 3), "left 3"),
        // What may be in any place must be in one: five nodes are.
        (group(Arrange::Pack, 5), "a=2 b=3"),
        (group(Arrange::Spread, 5), "a=2 b=3"),
        (group(Arrange::Pack, 6), "left 6"),
        (group(Arrange::Spread, 6), "left 6"),
    ] {
        assert_eq!(told(&types, std::slice::from_ref(&unmet)), want, "{unmet:?}");
    }
    // Nor is one that is there of use, and so it drains.
    let there = member(1, Some("c"), "cpu=4", Some(0));
    for arrange in [Arrange::Pack, Arrange::Spread, Arrange::StrictPack, Arrange::StrictSpread] {
        let unmet = [group(arrange, 1)];
        let plan =
            plan(&types, std::slice::from_ref(&there), &BTreeMap::new(), &unmet, Millis(100_000)).unwrap();
        assert_eq!((text(&plan).as_str(), &plan.drain[..]), ("a=1", &[there.node][..]), "{arrange:?}");
    }
}

/// In and below queues whose limits leave so much: `"cpu=8 in child, cpu=9 in parent"`.
fn under(limits: &str, turn: i64, shape: Unmet) -> Unmet {
    let limit = |text: &str| {
        let (left, queue) = text.split_once(" in ").unwrap();
        let left = resources(left).iter().map(|(kind, left)| (kind.clone(), left)).collect();
        Limit { queue: queue.to_owned(), left }
    };
    Unmet { limits: limits.split(", ").map(limit).collect(), turn, ..shape }
}

#[test]
fn what_a_limit_leaves_is_planned_for_once() {
    let q = |turn, shape| under("cpu=8 in q", turn, shape);
    for (unmet, want) in [
        (vec![q(0, shape(8, "cpu=1"))], "small=2"),
        // Two demands for which there is room together are as if there were no limit.
        (vec![q(0, shape(4, "cpu=1")), q(1, in_pool("large", shape(1, "cpu=4")))], "large=1"),
        // Whose turn it is gets what there is.
        (vec![q(0, shape(9, "cpu=1")), q(1, in_pool("large", shape(1, "cpu=8")))], "small=2"),
        (vec![q(1, shape(9, "cpu=1")), q(0, in_pool("large", shape(1, "cpu=8")))], "large=1"),
        (vec![q(1, shape(9, "cpu=1")), q(0, in_pool("large", shape(1, "cpu=6")))], "large=1"),
        // What finds no room uses nothing up.
        (vec![q(0, shape(1, "cpu=8 licence=1")), q(1, shape(9, "cpu=1"))], "small=2 left 1"),
        (vec![q(0, shape(1, "cpu=8 gpu=5")), q(1, in_pool("large", shape(8, "cpu=1")))], "large=1 left 1"),
        // Nor does what needs nothing that is limited.
        (vec![q(0, shape(12, "gpu=1")), q(0, in_pool("small", shape(9, "cpu=1")))], "gpu=3 small=2"),
        // Others wait elsewhere.
        (vec![q(0, shape(9, "cpu=1")), shape(4, "cpu=1")], "small=3"),
        (vec![q(0, shape(9, "cpu=1")), under("cpu=4 in r", 0, shape(9, "cpu=1"))], "small=3"),
        // The limit of the queue above them.
        (
            vec![
                under("cpu=8 in a, cpu=9 in p", 0, shape(9, "cpu=1")),
                under("cpu=8 in b, cpu=9 in p", 1, in_pool("large", shape(9, "cpu=1"))),
            ],
            "large=1 small=2",
        ),
        (
            vec![
                under("cpu=8 in a, cpu=8 in p", 0, shape(9, "cpu=1")),
                under("cpu=8 in b, cpu=8 in p", 1, in_pool("large", shape(9, "cpu=1"))),
            ],
            "small=2",
        ),
        // A group has all of it or nothing.
        (
            vec![
                q(0, in_group(1, Arrange::Pack, shape(2, "cpu=3"))),
                q(1, in_group(2, Arrange::Pack, shape(2, "cpu=3"))),
                q(2, in_pool("large", shape(9, "cpu=1"))),
            ],
            "large=1 small=2",
        ),
        (
            vec![
                q(0, in_group(1, Arrange::StrictPack, shape(1, "cpu=4"))),
                q(0, in_group(1, Arrange::StrictPack, shape(1, "cpu=4 licence=1"))),
                q(1, in_pool("large", shape(9, "cpu=1"))),
            ],
            "large=1 left 2",
        ),
    ] {
        assert_eq!(told(&types(), &unmet), want, "{unmet:?}");
    }
}

fn member(number: u32, kind: Option<&str>, available: &str, idle_since: Option<u64>) -> Member {
    Member {
        node: NodeId { number, incarnation: 1 },
        kind: kind.map(str::to_owned),
        available: resources(available),
        devices: Vec::new(),
        labels: Vec::new(),
        idle_since: idle_since.map(Millis),
        draining: false,
        may_stay: false,
    }
}

#[test]
fn room_that_is_there_or_coming_comes_first() {
    let members = [member(1, None, "cpu=2", None), member(2, Some("small"), "cpu=1", None)];
    let coming = BTreeMap::from([("small".to_owned(), 1)]);
    let go = |unmet: &[Unmet]| text(&plan(&types(), &members, &coming, unmet, Millis(0)).unwrap());
    assert_eq!(go(&[shape(7, "cpu=1")]), "");
    assert_eq!(go(&[shape(8, "cpu=1")]), "small=1");
    // Two of ten are there or coming.
    assert_eq!(go(&[in_pool("small", shape(100, "cpu=4"))]), "small=8 left 91");
}

fn nodes(numbers: &[u32]) -> Vec<NodeId> {
    numbers.iter().map(|number| NodeId { number: *number, incarnation: 1 }).collect()
}

#[test]
fn what_keeps_apart_gets_nodes_of_its_own() {
    let apart = |kind, on: &[u32], shape| Unmet { apart: Some(Apart { kind, on: nodes(on) }), ..shape };
    // Three nodes with room for many, the first of which has one of the kind.
    let members = [1, 2, 3].map(|number| member(number, None, "cpu=8", None));
    let go = |unmet: &[Unmet]| text(&plan(&types(), &members, &BTreeMap::new(), unmet, Millis(0)).unwrap());
    for (unmet, want) in [
        (vec![shape(3, "cpu=1")], ""),
        (vec![apart(1, &[1], shape(2, "cpu=1"))], ""),
        (vec![apart(1, &[1], shape(3, "cpu=1"))], "small=1"),
        (vec![apart(1, &[1, 2, 3], shape(2, "cpu=1"))], "small=2"),
        // Two kinds do not mind each other, nor what has none.
        (vec![apart(1, &[1], shape(3, "cpu=1")), apart(2, &[], shape(4, "cpu=1"))], "small=1"),
        (vec![apart(1, &[], shape(4, "cpu=1")), shape(23, "cpu=1")], "small=1"),
        // Where nodes run out, the rest is left.
        (vec![in_pool("large", apart(1, &[], shape(3, "cpu=1")))], "large=2 left 1"),
        // A node that nobody here knows of is none that could be used.
        (vec![apart(1, &[7], shape(3, "cpu=1"))], ""),
    ] {
        assert_eq!(go(&unmet), want, "{unmet:?}");
    }
}

#[test]
fn what_a_group_lost_lies_as_it_should_to_what_it_has() {
    let rack = |name: &str, max, rack: &str| NodeType {
        labels: vec![("rack".to_owned(), rack.to_owned())],
        ..of(name, "cpu=4", 0, max)
    };
    let types = [rack("a", 2, "r1"), rack("b", 3, "r2"), of("c", "cpu=4", 0, 9)];
    let mut members = [1, 2].map(|number| member(number, None, "cpu=4", None));
    members[0].labels = vec![("rack".to_owned(), "r1".to_owned())];
    // The node that drains is no longer counted upon, but what is there is.
    let mut draining = member(3, None, "cpu=4", None);
    (draining.labels, draining.draining) = (vec![("rack".to_owned(), "r2".to_owned())], true);
    let members = [&members[..], &[draining]].concat();
    let group = |arrange, place: &str, on: &[u32], count| {
        let mut shape = in_group(1, arrange, shape(count, "cpu=4"));
        let gang = shape.gang.as_mut().unwrap();
        (gang.place, gang.on) = (place.to_owned(), nodes(on));
        shape
    };
    for (unmet, want) in [
        (group(Arrange::StrictSpread, "", &[], 2), ""),
        (group(Arrange::StrictSpread, "", &[1], 1), ""),
        (group(Arrange::StrictSpread, "", &[1, 2], 1), "a=1"),
        (group(Arrange::StrictSpread, "rack", &[1], 1), "b=1"),
        (group(Arrange::StrictSpread, "rack", &[3], 1), ""),
        (group(Arrange::StrictSpread, "rack", &[1, 3], 1), "left 1"),
        // Beside what it has, or not at all: a new node is never the same one.
        (group(Arrange::StrictPack, "", &[2], 1), ""),
        (group(Arrange::StrictPack, "", &[2], 2), "left 2"),
        (group(Arrange::StrictPack, "rack", &[1], 3), "a=2"),
        (group(Arrange::StrictPack, "rack", &[3], 3), "b=3"),
    ] {
        let plan = plan(&types, &members, &BTreeMap::new(), std::slice::from_ref(&unmet), Millis(0)).unwrap();
        assert_eq!(text(&plan), want, "{unmet:?}");
    }
}

#[test]
fn idle_nodes_are_drained_down_to_the_minimum() {
    let types = [of("small", "cpu=4", 1, 10)];
    let go = |members: &[Member], unmet: &[Unmet], now| {
        let plan = plan(&types, members, &BTreeMap::new(), unmet, Millis(now)).unwrap();
        let drained: Vec<String> = plan.drain.iter().map(|node| node.number.to_string()).collect();
        format!("{} drain {}", text(&plan), drained.join(","))
    };
    let idle = |number, since| member(number, Some("small"), "cpu=4", Some(since));
    let three = [idle(1, 500), idle(2, 0), member(3, None, "cpu=4", Some(0))];
    assert_eq!(go(&three, &[], 59_999), " drain ");
    // The longest idle goes, the minimum stays, and what somebody started by hand too.
    assert_eq!(go(&three, &[], 100_000), " drain 2");
    let busy = [idle(1, 0), member(2, Some("small"), "cpu=1", None), idle(3, 0)];
    assert_eq!(go(&busy, &[], 100_000), " drain 1,3");
    // What can use one keeps it.
    assert_eq!(go(&busy, &[shape(1, "cpu=4")], 100_000), " drain 3");
    // A node that drains already is no longer counted upon.
    let mut leaving = [idle(1, 0), idle(2, 0)];
    leaving[0].draining = true;
    assert_eq!(go(&leaving, &[], 100_000), " drain ");
    leaving[1].draining = true;
    assert_eq!(go(&leaving, &[], 100_000), "small=1 drain ");
}

#[test]
fn a_node_that_drains_because_it_was_idle_stays_where_it_is_needed() {
    let types = [of("small", "cpu=4", 1, 2)];
    let go = |members: &[Member], unmet: &[Unmet]| {
        let plan = plan(&types, members, &BTreeMap::new(), unmet, Millis(100_000)).unwrap();
        let stay: Vec<String> = plan.stay.iter().map(|node| node.number.to_string()).collect();
        format!("{} stay {}", text(&plan), stay.join(","))
    };
    let leaving =
        |number| Member { draining: true, may_stay: true, ..member(number, Some("small"), "cpu=4", Some(0)) };
    let busy = member(1, Some("small"), "cpu=1", None);
    // There may be no more than these two: without it the work would wait beside an empty node.
    assert_eq!(go(&[busy.clone(), leaving(2)], &[shape(1, "cpu=4")]), " stay 2");
    assert_eq!(go(&[busy.clone(), leaving(2)], &[]), " stay ");
    // Who is there already goes first, and who was told to leave leaves.
    assert_eq!(go(&[busy.clone(), leaving(2)], &[shape(1, "cpu=1")]), " stay ");
    let told = Member { may_stay: false, ..leaving(2) };
    assert_eq!(go(&[busy, told], &[shape(1, "cpu=4")]), "left 1 stay ");
    // The minimum is made up of those that leave before others are started.
    assert_eq!(go(&[leaving(1), leaving(2)], &[]), " stay 1");
    assert_eq!(go(&[leaving(1), leaving(2)], &[shape(2, "cpu=3")]), " stay 1,2");
    // A group that finds no room leaves them as they were.
    let group = [in_group(1, Arrange::StrictSpread, shape(3, "cpu=4"))];
    let busy = member(3, Some("small"), "cpu=4", None);
    assert_eq!(go(&[busy, leaving(1)], &group), "left 3 stay ");
}

#[test]
fn wrong_types_are_refused() {
    let check = |types: &[NodeType], want: &str| {
        let error = plan(types, &[], &BTreeMap::new(), &[], Millis(0)).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    let fine = || of("a", "cpu=1", 0, 1);
    check(&[fine(), fine()], "node type a is listed twice");
    check(&[NodeType { name: "a b".to_owned(), ..fine() }], "node type a b: name \"a b\" is not allowed");
    check(&[NodeType { resources: Resources::none(), ..fine() }], "offers nothing");
    check(&[of("a", "gpu=1.5", 0, 1)], "node type a has 1.5 GPU: give it a whole number up to 1024");
    check(&[of("a", "cpu=1", 2, 1)], "a minimum of 2, above its maximum of 1");
    check(&[of("a", "cpu=1", 0, NODES_MAX), of("b", "cpu=1", 0, 1)], "16385 nodes together");
    check(&vec![fine(); 65], "65 types of nodes are too many");
    check(
        &[NodeType { labels: vec![(String::new(), "x".to_owned())], ..fine() }],
        "name \"\" is not allowed",
    );
}

/// Amounts of CPU in halves, of GPU in fifths below one and whole above.
fn any_resources(most: u64) -> impl Strategy<Value = Resources> {
    (1..=most * 2, 0_u64..=3, 0..=most).prop_map(|(halves, gpu, memory)| {
        let cpu = Quantity::from_units(halves as i64 * 5_000).unwrap();
        let mut all = Resources::cpu(cpu);
        all.set(Kind::Gpu, Quantity::whole(gpu));
        all.set(Kind::Memory, Quantity::whole(memory));
        all
    })
}

fn any_shape() -> impl Strategy<Value = Unmet> {
    let arrange = prop_oneof![
        Just(Arrange::Pack),
        Just(Arrange::Spread),
        Just(Arrange::StrictPack),
        Just(Arrange::StrictSpread)
    ];
    let part = prop_oneof![Just(None), (1_i64..=5).prop_map(|fifths| Some(fifths * 2_000))];
    (any_resources(6), part, 1_u64..20, proptest::option::weighted(0.4, (0_u64..4, arrange)), 0_u32..4)
        .prop_map(|(mut resources, part, count, gang, pool)| {
            if let Some(units) = part {
                resources.set(Kind::Gpu, Quantity::from_units(units).unwrap());
            }
            let shape = Unmet { resources, ..shape(count, "") };
            let shape = if pool < 2 { in_pool(&format!("t{pool}"), shape) } else { shape };
            match gang {
                Some((number, arrange)) => in_group(number, arrange, shape),
                None => shape,
            }
        })
}

fn any_types() -> impl Strategy<Value = Vec<NodeType>> {
    proptest::collection::vec((any_resources(12), 0_u32..3, 0_u32..12), 1..4).prop_map(|all| {
        let one = |(at, (resources, min, more)): (usize, (Resources, u32, u32))| NodeType {
            resources,
            ..of(&format!("t{at}"), "cpu=1", min, min + more)
        };
        all.into_iter().enumerate().map(one).collect()
    })
}

/// Whether all of a list is in it, shape by shape with the count.
fn sum(unmet: &[Unmet]) -> BTreeMap<(Resources, Vec<LabelRule>, Option<Gang>), u64> {
    let mut all = BTreeMap::new();
    for one in unmet {
        *all.entry((one.resources.clone(), one.labels.clone(), one.gang.clone())).or_default() += one.count;
    }
    all
}

proptest! {
    #[test]
    fn plans_keep_their_bounds(
        types in any_types(),
        unmet in proptest::collection::vec(any_shape(), 0..8),
        there in proptest::collection::vec(
            (0_usize..4, proptest::option::of(0_u64..100_000), any::<bool>(), any::<bool>()),
            0..6,
        ),
    ) {
        let kind = |at: usize| types.get(at).map(|of| of.name.clone());
        let members: Vec<Member> = there
            .iter()
            .enumerate()
            .map(|(number, (at, idle, draining, may_stay))| Member {
                kind: kind(*at),
                draining: *draining,
                may_stay: *may_stay,
                ..member(number as u32, None, "cpu=3 memory=3", idle.map(|idle| idle + 1))
            })
            .collect();
        let now = Millis(100_000);
        let got = plan(&types, &members, &BTreeMap::new(), &unmet, now).unwrap();

        // The same, however it is listed.
        let reversed = |list: &[Member]| list.iter().rev().cloned().collect::<Vec<_>>();
        let backwards: Vec<Unmet> = unmet.iter().rev().cloned().collect();
        let mut turned = types.clone();
        turned.reverse();
        let again = plan(&turned, &reversed(&members), &BTreeMap::new(), &backwards, now).unwrap();
        prop_assert_eq!(&got, &again);

        for of in &types {
            let all: Vec<&Member> = members.iter().filter(|m| m.kind.as_ref() == Some(&of.name)).collect();
            let start = got.start.get(&of.name).copied().unwrap_or(0);
            let after = all.len() as u32 + start;
            // Never above the maximum, unless by what was there already.
            prop_assert!(start == 0 || after <= of.max, "{} of {} at most", after, of.max);
            let drained = all.iter().filter(|m| got.drain.contains(&m.node)).count() as u32;
            let stays = |m: &Member| !m.draining || got.stay.contains(&m.node);
            let staying = all.iter().filter(|m| stays(m)).count() as u32 + start - drained;
            prop_assert!(staying >= of.min || after >= of.max, "{} stay of {} at least", staying, of.min);
            for m in all.iter().filter(|m| got.drain.contains(&m.node)) {
                prop_assert!(!m.draining && m.idle_since.is_some_and(|since| since.plus(of.idle_timeout) <= now));
            }
            // What is left of single slots fits into no node that could still be started.
            for left in got.left.iter().filter(|left| left.gang.is_none() && after < of.max) {
                prop_assert_eq!(Bin::empty(of).room(left), 0, "{:?} would fit into a new {}", left, of.name);
            }
        }
        // None stays that was told to leave, or did not drain.
        let back = members.iter().filter(|m| got.stay.contains(&m.node));
        prop_assert!(back.clone().all(|m| m.draining && m.may_stay));
        prop_assert_eq!(back.count(), got.stay.len());
        // Nobody who was started by hand is drained.
        prop_assert!(members.iter().filter(|m| m.kind.is_none()).all(|m| !got.drain.contains(&m.node)));

        // What is left was asked for; a group is left whole or not at all.
        let (asked, left) = (sum(&unmet), sum(&got.left));
        for (shape, count) in &left {
            prop_assert!(asked.get(shape).is_some_and(|asked| asked >= count));
        }
        let gone: BTreeSet<Gang> = got.left.iter().filter_map(|left| left.gang.clone()).collect();
        for (shape, count) in asked.iter().filter(|((_, _, gang), _)| gang.as_ref().is_some_and(|gang| gone.contains(gang))) {
            prop_assert_eq!(left.get(shape), Some(count));
        }

        // What was packed is no more than there is to pack into.
        let mut capacity = Resources::none();
        let stays = |m: &&Member| !m.draining || got.stay.contains(&m.node);
        members.iter().filter(stays).for_each(|m| capacity.add(&m.available));
        for of in &types {
            (0..got.start.get(&of.name).copied().unwrap_or(0)).for_each(|_| capacity.add(&of.resources));
        }
        let mut packed = Resources::none();
        for ((resources, labels, gang), count) in &asked {
            let rest = left.get(&(resources.clone(), labels.clone(), gang.clone())).copied().unwrap_or(0);
            (rest..*count).for_each(|_| packed.add(resources));
        }
        prop_assert!(capacity.covers(&packed), "{capacity} hold {packed}");
    }

    #[test]
    fn what_is_on_its_way_is_not_started_again(
        unmet in proptest::collection::vec(any_shape(), 0..8),
        offers in any_resources(12),
    ) {
        let types = [NodeType { resources: offers, ..of("t0", "cpu=1", 0, 1_000) }];
        let first = plan(&types, &[], &BTreeMap::new(), &unmet, Millis(0)).unwrap();
        let second = plan(&types, &[], &first.start, &unmet, Millis(0)).unwrap();
        prop_assert_eq!(&second.start, &BTreeMap::new());
        prop_assert_eq!(&second.left, &first.left);
    }
}

#[test]
fn other_labels_that_will_do_are_planned_for() {
    let rule = |pool: &str| LabelRule::In("pool".to_owned(), vec![pool.to_owned()]);
    let or = |pools: &[&str]| {
        let fallbacks = pools.iter().map(|pool| vec![rule(pool)]).collect();
        Unmet { fallbacks, ..in_pool("nowhere", shape(2, "cpu=1")) }
    };
    for (fallbacks, want) in [
        (or(&[]), "left 2"),
        (or(&["elsewhere"]), "left 2"),
        (or(&["elsewhere", "large"]), "large=1"),
        (Unmet { fallbacks: vec![Vec::new()], ..or(&[]) }, "small=1"),
    ] {
        assert_eq!(told(&types(), std::slice::from_ref(&fallbacks)), want, "{fallbacks:?}");
        let could = types().iter().any(|of| could_hold(of, &fallbacks));
        assert_eq!(could, want != "left 2");
    }
}
