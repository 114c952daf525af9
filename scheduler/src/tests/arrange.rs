//! Groups of bundles of different sizes: wherever there are places for all, they are found, and what is said is true.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{Group, GroupId, group::Arrange};

use super::*;
use crate::{gang::search::LOOKS_MAX, sim::Random};

const GROUP: GroupId = GroupId { number: 1 };

fn group(arrange: Arrange, place: &str, bundles: &[&str]) -> Group {
    Group {
        bundles: bundles.iter().map(|text| resources(text)).collect(),
        arrange,
        place: place.to_owned(),
        wait_for_node: true,
        ..Group::default()
    }
}

fn ask(world: &mut World, spec: Group) -> Vec<Effect> {
    world.step(Event::Group { group: GROUP, job: JobId { number: 1 }, spec: Arc::new(spec) })
}

#[test]
fn another_order_finds_places() {
    for (nodes, arrange, place, bundles, want) in [
        // The largest goes where it is emptiest; then the others fit nowhere.
        (
            &["4 cpu", "3 cpu"][..],
            Arrange::Pack,
            "",
            &["3 cpu", "2 cpu", "2 cpu"][..],
            "0:node-2+1:node-1+2:node-1",
        ),
        (
            &["4 cpu", "3 cpu"],
            Arrange::Spread,
            "",
            &["3 cpu", "2 cpu", "2 cpu"],
            "0:node-2+1:node-1+2:node-1",
        ),
        (
            &["4 cpu|rack=a", "3 cpu|rack=a", "4 cpu|rack=b"],
            Arrange::StrictPack,
            "rack",
            &["3 cpu", "2 cpu", "2 cpu"],
            "0:node-2+1:node-1+2:node-1",
        ),
        // What has a choice gives way to what has none, once more and once more.
        (
            &["8 cpu 2 gpu", "4 cpu 2 gpu", "4 cpu"],
            Arrange::StrictSpread,
            "",
            &["1 gpu", "3 cpu", "6 cpu"],
            "0:node-2+1:node-3+2:node-1",
        ),
        (
            &["8 cpu|rack=a", "2 cpu 1 gpu|rack=a", "4 cpu|rack=b", "2 cpu 1 gpu|rack=b"],
            Arrange::StrictSpread,
            "rack",
            &["1 gpu", "6 cpu"],
            "0:node-4+1:node-1",
        ),
        // Of CPU the emptiest first is wrong, of the other the fullest first.
        (
            &["40 cpu", "30 cpu", "10 blue", "8 blue"],
            Arrange::Pack,
            "",
            &["30 cpu", "20 cpu", "20 cpu", "6 blue", "4 blue", "4 blue", "4 blue"],
            "0:node-2+1:node-1+2:node-1+3:node-3+4:node-3+5:node-4+6:node-4",
        ),
    ] {
        let mut world = World::new(nodes);
        assert_eq!(show(&ask(&mut world, group(arrange, place, bundles))), format!("group-1 {want}"));
    }
}

#[test]
fn devices_are_shared_out_so_that_all_fit() {
    // 0.7 of one device is free and 0.6 of the other: the fullest that has room is the wrong one for the largest.
    for arrange in [Arrange::Pack, Arrange::StrictPack] {
        let mut world = World::new(&["8 cpu 2 gpu"]);
        world.ask(host(9), 0, &class("0.4 gpu"), 1);
        world.ask(host(9), 1, &class("0.7 gpu"), 1);
        world.ask(host(9), 2, &class("0.3 gpu"), 1);
        world.release(2);
        assert_eq!(
            world.scheduler.free_devices(node(1)),
            [(Kind::Gpu, amount("0.6")), (Kind::Gpu, amount("0.7"))]
        );
        let bundles = ["0.4 gpu", "0.3 gpu", "0.3 gpu", "0.3 gpu"];
        let placed = ask(&mut world, group(arrange, "", &bundles));
        assert_eq!(show(&placed), "group-1 0:node-1+1:node-1+2:node-1+3:node-1", "{arrange}");
    }
}

#[track_caller]
fn check_why(nodes: &[&str], busy: &str, spec: Group, want: &str) {
    let mut world = World::new(nodes);
    world.ask(host(9), 0, &on(1, false, busy), 1);
    assert_eq!(show(&ask(&mut world, spec)), "");
    let why = world.scheduler.why_group(GROUP).unwrap();
    assert_eq!(why.replace("; position 1 of the default queue", ""), want);
}

#[test]
fn what_a_group_waits_for_is_true() {
    let pack = |bundles| group(Arrange::Pack, "", bundles);
    check_why(
        &["4 cpu", "3 cpu"],
        "1 cpu",
        pack(&["3 cpu", "2 cpu", "2 cpu"]),
        "needs 3 bundles of 7 CPU together (pack); there is room for each of them, but not for all at once",
    );
    check_why(
        &["4 cpu", "2 cpu"],
        "2 cpu",
        pack(&["3 cpu", "1 cpu"]),
        "needs 2 bundles of 4 CPU together (pack); its bundle of 3 CPU finds no node: node-1 alone could hold it, 2 of \
         its 4 CPU free beside job-1 at the same priority",
    );
    // What finds no node need not be the largest.
    check_why(
        &["4 cpu 1 gpu", "8 cpu"],
        "1 gpu",
        pack(&["4 cpu", "0.5 gpu"]),
        "needs 2 bundles of 4 CPU, 0.5 GPU together (pack); its bundle of 0.5 GPU finds no node: node-1 alone could \
         hold it, full with job-1 at the same priority",
    );
    check_why(
        &["4 cpu", "3 cpu"],
        "1 cpu",
        pack(&["2 cpu"; 3]),
        "needs 3 bundles of 2 CPU each (pack); there is room for 2 of them now",
    );
    // No order of them ever fits, though there is enough of it all.
    check_why(
        &["3 cpu", "3 cpu"],
        "1 cpu",
        pack(&["2 cpu"; 3]),
        "needs 3 bundles of 2 CPU each (pack); the nodes have no room for all of it even with nothing else on them",
    );
    check_why(
        &["3 cpu", "8 cpu 1 gpu"],
        "1 cpu",
        group(Arrange::StrictSpread, "", &["3 cpu", "1 gpu"]),
        "needs 2 bundles of 3 CPU, 1 GPU together (strict spread); there is room for that, but not each in a node of its \
         own",
    );
    check_why(
        &["4 cpu", "3 cpu"],
        "1 cpu",
        group(Arrange::StrictPack, "", &["3 cpu", "1 cpu"]),
        "needs 2 bundles of 4 CPU together (strict pack); there is room for that, but not in one node",
    );
}

/// All nodes have an odd number of CPUs and all bundles need an even one, one of two of them: so one CPU of each node
/// stays free, and the bundles need one of those. To be sure of that all ways must be tried.
fn hopeless() -> (Vec<String>, Group) {
    let nodes: Vec<u64> = (0..10).map(|at| 21 + 2 * at).collect();
    let sizes = [6, 10];
    let mut bundles: Vec<String> = Vec::new();
    let mut left = nodes.iter().sum::<u64>() - 8;
    for at in 0.. {
        let size = sizes[at % 2] + 2 * (at as u64 % 5);
        let Some(rest) = left.checked_sub(size) else { break };
        left = rest;
        bundles.push(format!("{size} cpu"));
    }
    bundles.push(format!("{} cpu", 2 * (left / 2).max(1)));
    let texts: Vec<&str> = bundles.iter().map(String::as_str).collect();
    (nodes.iter().map(|count| format!("{count} cpu")).collect(), group(Arrange::Pack, "", &texts))
}

#[test]
fn a_search_ends_and_says_so() {
    let (nodes, spec) = hopeless();
    let texts: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&texts);
    assert_eq!(show(&ask(&mut world, spec.clone())), "");
    let why = world.scheduler.why_group(GROUP).unwrap();
    let want = format!(
        "no way to place all of it was found in {LOOKS_MAX} looks, and it is looked for again when something comes free"
    );
    assert!(why.contains(&want), "{why}");
    // What comes free may make the difference.
    assert!(show(&world.up(node(90), "21 cpu")).starts_with("group-1 0:"));
}

#[test]
fn searches_leave_time_for_others() {
    let (nodes, spec) = hopeless();
    let texts: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&texts);
    // Each differs from the others, so each is looked for.
    for number in 2..=6 {
        let spec = Group { priority: number as i32, ..spec.clone() };
        let (group, job) = (GroupId { number }, JobId { number: 1 });
        assert_eq!(show(&world.step(Event::Group { group, job, spec: Arc::new(spec) })), "");
    }
    // They have used up what may be looked at, so what another order would place is put off, and is placed then.
    world.up(node(90), "4 cpu|pool=own");
    world.up(node(91), "3 cpu|pool=own");
    let own = Group {
        labels: vec![is_in("pool", &["own"])],
        ..group(Arrange::Pack, "", &["3 cpu", "2 cpu", "2 cpu"])
    };
    assert_eq!(show(&ask(&mut world, own)), "");
    let why = world.scheduler.why_group(GROUP).unwrap();
    assert!(why.contains("there is room for it, and it is looked for soon"), "{why}");
    let next = world.scheduler.next_tick().unwrap();
    assert!(next <= Millis(100), "{next:?}");
    assert_eq!(show(&world.tick(100)), "group-1 0:node-91+1:node-90+2:node-90");
}

/// A node as the oracle counts it, in tenths.
#[derive(Clone, Debug)]
struct Counted {
    id: NodeId,
    rack: Option<&'static str>,
    cpu: i64,
    gpus: Vec<i64>,
}

/// A bundle: tenths of CPU and GPU.
type Size = (i64, i64);

/// Bundles that have a place: the node, and of which devices how much.
type Held = BTreeMap<u32, (NodeId, Vec<(u32, i64)>)>;

/// Whether places are as they should be to each other.
type Fine<'a> = &'a dyn Fn(&[Counted], &[Option<usize>]) -> bool;

/// All ways to place bundles from `at` on, one after the other.
fn any_way(
    nodes: &mut Vec<Counted>,
    sizes: &[Size],
    at: usize,
    places: &mut Vec<Option<usize>>,
    fine: Fine<'_>,
) -> bool {
    if at == sizes.len() {
        return fine(nodes, places);
    }
    if places[at].is_some() {
        return any_way(nodes, sizes, at + 1, places, fine);
    }
    let (cpu, gpu) = sizes[at];
    for to in 0..nodes.len() {
        if nodes[to].cpu < cpu {
            continue;
        }
        let ways: Vec<Vec<i64>> = match gpu {
            0 => vec![nodes[to].gpus.clone()],
            1..10 => (0..nodes[to].gpus.len())
                .filter(|device| nodes[to].gpus[*device] >= gpu)
                .map(|device| {
                    let mut gpus = nodes[to].gpus.clone();
                    gpus[device] -= gpu;
                    gpus
                })
                .collect(),
            _ => {
                let whole = nodes[to].gpus.iter().filter(|free| **free == 10).count() as i64;
                let mut rest = nodes[to].gpus.clone();
                rest.sort_unstable();
                rest.truncate(rest.len() - (gpu / 10).min(whole) as usize);
                if whole >= gpu / 10 { vec![rest] } else { Vec::new() }
            }
        };
        for gpus in ways {
            let before = nodes[to].clone();
            nodes[to].cpu -= cpu;
            nodes[to].gpus = gpus;
            places[at] = Some(to);
            let found = any_way(nodes, sizes, at + 1, places, fine);
            nodes[to] = before;
            places[at] = None;
            if found {
                return true;
            }
        }
    }
    false
}

/// Whether there are places, by trying all; `held` are those of bundles that have one.
fn exists(nodes: &[Counted], spec: &Group, sizes: &[Size], held: &BTreeMap<u32, NodeId>) -> bool {
    let fine = |nodes: &[Counted], places: &[Option<usize>]| {
        let place = |at: &Option<usize>| {
            let node = &nodes[at.unwrap()];
            if spec.place.is_empty() { Some(node.id.to_string()) } else { node.rack.map(str::to_owned) }
        };
        let all: Vec<Option<String>> = places.iter().map(place).collect();
        let different: BTreeSet<&Option<String>> = all.iter().collect();
        !all.contains(&None)
            && match spec.arrange {
                Arrange::StrictPack => different.len() == 1,
                Arrange::StrictSpread => different.len() == all.len(),
                Arrange::Pack | Arrange::Spread => true,
            }
    };
    let at = |id: &NodeId| nodes.iter().position(|node| node.id == *id);
    let mut places: Vec<Option<usize>> = (0..sizes.len() as u32).map(|n| at(held.get(&n)?)).collect();
    any_way(&mut nodes.to_vec(), sizes, 0, &mut places, &fine)
}

/// The nodes with what is left, from what each has and what was told of it.
fn count(
    totals: &BTreeMap<NodeId, (Option<&'static str>, u64, u64)>,
    leases: &[Lease],
    held: &Held,
    sizes: &[Size],
) -> Vec<Counted> {
    let tenths = |of: Quantity| of.units() * 10 / Quantity::PER_ONE;
    let one = |(id, (rack, cpu, gpu)): (&NodeId, &(Option<&'static str>, u64, u64))| {
        let mut node = Counted { id: *id, rack: *rack, cpu: *cpu as i64 * 10, gpus: vec![10; *gpu as usize] };
        for lease in leases.iter().filter(|lease| lease.node == *id) {
            node.cpu -= tenths(lease.class.resources.get(&Kind::Cpu)) * i64::from(lease.slots);
            lease.devices.iter().for_each(|d| node.gpus[d.index as usize] -= tenths(d.share));
        }
        for (number, (_, devices)) in held.iter().filter(|(_, (on, _))| on == id) {
            node.cpu -= sizes[*number as usize].0;
            devices.iter().for_each(|(device, share)| node.gpus[*device as usize] -= share);
        }
        node
    };
    totals.iter().map(one).collect()
}

/// One cluster, what else runs there, and one group, of which then a node is lost; how often places were there.
fn against_oracle(seed: u64) -> (u32, u32) {
    let mut random = Random::new(seed);
    let mut world = World::with(Options { seed: random.below(3) as u64, ..Options::default() }, &[]);
    let mut totals = BTreeMap::new();
    let gpus = random.chance(50);
    let up = |world: &mut World, random: &mut Random, number: u32, totals: &mut BTreeMap<_, _>| {
        let cpu = 1 + random.below(8) as u64;
        let gpu = if gpus { random.below(3) as u64 } else { 0 };
        let rack = *random.pick(&[None, Some("a"), Some("a"), Some("b")]);
        let devices = if gpu > 0 { format!(" {gpu} gpu") } else { String::new() };
        let label = rack.map_or(String::new(), |rack| format!("|rack={rack}"));
        totals.insert(node(number), (rack, cpu, gpu));
        world.up(node(number), &format!("{cpu} cpu{devices}{label}"))
    };
    for number in 1..=1 + random.below(4) as u32 {
        up(&mut world, &mut random, number, &mut totals);
    }
    let mut leases: Vec<Lease> = Vec::new();
    for key in 0..random.below(4) as u32 {
        let busy = *random.pick(&["1 cpu", "0.5 cpu", "2 cpu", "0.3 gpu", "0.4 gpu", "1 gpu"]);
        let granted = world.ask(host(9), key, &Class { wait_for_node: true, ..spread(busy) }, 1);
        leases.extend(granted.iter().filter_map(|effect| match effect {
            Effect::Grant(lease) => Some(lease.clone()),
            _ => None,
        }));
        // What waits would take what comes free.
        world.step(Event::Demand {
            owner: host(9),
            key,
            job: JobId { number: 1 },
            class: Arc::new(spread(busy)),
            backlog: 0,
            attempt: 0,
            locality: Vec::new(),
        });
    }
    let sizes: Vec<Size> = (0..1 + random.below(5))
        .map(|_| {
            let cpu = *random.pick(&[0, 5, 10, 10, 20, 20, 30, 40, 50]);
            let gpu = if gpus { *random.pick(&[0, 0, 3, 4, 5, 7, 10, 20]) } else { 0 };
            if cpu + gpu == 0 { (10, 0) } else { (cpu, gpu) }
        })
        .collect();
    let bundle = |(cpu, gpu): &Size| {
        let mut all = Resources::none();
        for (kind, tenths) in [(Kind::Cpu, cpu), (Kind::Gpu, gpu)] {
            all.set(kind, Quantity::from_units(tenths * Quantity::PER_ONE / 10).unwrap());
        }
        all
    };
    let arrange = *random.pick(&[Arrange::Pack, Arrange::Spread, Arrange::StrictPack, Arrange::StrictSpread]);
    let spec = Group {
        bundles: sizes.iter().map(bundle).collect(),
        ..group(arrange, random.pick::<&str>(&["", "", "rack"]), &[])
    };
    let mut held = Held::new();
    let learn = |effects: &[Effect], held: &mut Held| {
        for effect in effects {
            if let Effect::GroupPlaced { bundles, .. } = effect {
                for place in bundles {
                    let share = |d: &mobula_proto::resource::DeviceGrant| {
                        (d.index, d.share.units() * 10 / Quantity::PER_ONE)
                    };
                    held.insert(place.bundle, (place.node, place.devices.iter().map(share).collect()));
                }
            }
        }
    };
    let places =
        |held: &Held| held.iter().map(|(number, (on, _))| (*number, *on)).collect::<BTreeMap<u32, NodeId>>();
    let check = |world: &World, there: bool, held: &Held| {
        assert_eq!(held.len() == sizes.len(), there, "seed {seed}: {spec:?}");
        let why = world.scheduler.why_group(GROUP);
        assert_eq!(why.is_none(), there);
        let why = why.unwrap_or_default();
        assert!(!why.contains("looked for"), "{why}");
    };
    let there = exists(&count(&totals, &leases, &held, &sizes), &spec, &sizes, &places(&held));
    let placed = ask(&mut world, spec.clone());
    learn(&placed, &mut held);
    check(&world, there, &held);
    let Some((lost, _)) = held.first_key_value().map(|(_, place)| place.clone()).filter(|_| there) else {
        return (there.into(), 0);
    };
    // One of its nodes is lost, and another one comes: what is left of it stays where it is.
    totals.remove(&lost);
    held.retain(|_, (on, _)| *on != lost);
    leases.retain(|lease| lease.node != lost);
    let again = exists(&count(&totals, &leases, &held, &sizes), &spec, &sizes, &places(&held));
    let said = world.step(Event::NodeDown { node: lost });
    learn(&said, &mut held);
    check(&world, again, &held);
    if again {
        return (1, 1);
    }
    let said = up(&mut world, &mut random, 9, &mut totals);
    let after = count(&totals, &leases, &held, &sizes);
    let there = exists(&after, &spec, &sizes, &places(&held));
    learn(&said, &mut held);
    check(&world, there, &held);
    (1, there.into())
}

#[test]
fn wherever_there_are_places_they_are_found() {
    let (mut first, mut again) = (0, 0);
    for seed in 0..3000 {
        let found = against_oracle(seed);
        (first, again) = (first + found.0, again + found.1);
    }
    // Neither always nor never, so that both are looked at.
    assert!((500..2500).contains(&first) && again > 200, "{first} of 3000 had places, and {again} again");
}
