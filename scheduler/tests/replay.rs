//! Traces replayed in virtual time: what they say, how long what waits, and who gets how much.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails panics, and so do its helpers"
)]

use mobula_proto::{NodeId, Quantity, Queue, Resources, resource::Kind};
use mobula_scheduler::{
    Event, Millis, Options,
    sim::{Packing, Random, Replay, Summary, load, packing, trace},
};

const HEAD: &str = "arrival,duration,resources,job,priority";

fn cpus(node: u32, count: u64) -> Event {
    Event::NodeUp {
        node: NodeId { number: node, incarnation: 1 },
        total: Resources::cpu(Quantity::whole(count)),
        devices: Vec::new(),
        labels: Vec::new(),
    }
}

fn replay(text: &str, nodes: Vec<Event>) -> Summary {
    Replay::new(&trace::parse(text).unwrap(), nodes, Vec::new(), Options::default()).run()
}

#[test]
fn a_trace_is_read_column_by_column() {
    let text = "job, PRIORITY,who,\"arrival\",duration,resources,restartable\n\
                b,-1,x,2.5,1,1 cpu,true\n\n\
                a,3,y,1,0.0004,\"0.5 gpu 4GiB memory\",\n";
    let tasks = trace::parse(text).unwrap();
    let said: Vec<String> = tasks
        .iter()
        .map(|t| {
            format!(
                "{} {} {} {} {} {}",
                t.arrival.0, t.duration.0, t.resources, t.job, t.priority, t.restartable
            )
        })
        .collect();
    assert_eq!(said, ["1000 0 4.0 GiB memory, 0.5 GPU a 3 false", "2500 1000 1 CPU b -1 true"]);
}

#[test]
fn lines_that_cannot_be_read_are_named_with_the_cure() {
    let long = format!("{HEAD}\n1,1,1 cpu,{},0", "j".repeat(5000));
    for (text, want) in [
        (
            "",
            "the trace has no column arrival: its first line must name arrival, duration, resources, job and priority",
        ),
        (
            "arrival,duration,resources,job",
            "the trace has no column priority: its first line must name arrival, duration, resources, job and priority",
        ),
        (
            &format!("{HEAD}\n1,1,1 cpu"),
            "line 2 has 3 fields, but the first line names 5: give each its value",
        ),
        (&format!("{HEAD}\n-1,1,1 cpu,a,0"), "line 2: arrival is \"-1\": give seconds, from 0 to ten years"),
        (
            &format!("{HEAD}\n0,NaN,1 cpu,a,0"),
            "line 2: duration is \"NaN\": give seconds, from 0 to ten years",
        ),
        (
            &format!("{HEAD}\n0,1e99,1 cpu,a,0"),
            "line 2: duration is \"1e99\": give seconds, from 0 to ten years",
        ),
        (
            &format!("{HEAD}\n0,1,1 cpu,a,0\n0,1,cpu,a,0"),
            "line 3: resources are \"cpu\": give amounts and kinds, as in \"2 cpu 4GiB memory\"",
        ),
        (
            &format!("{HEAD}\n0,1,1 cpu 2 cpu,a,0"),
            "line 2: resources are \"1 cpu 2 cpu\": give amounts and kinds, as in \"2 cpu 4GiB memory\"",
        ),
        (
            &format!("{HEAD}\n0,1,1 cpu,a,high"),
            "line 2: priority is \"high\": give a whole number, such as 0",
        ),
        (&format!("{HEAD}\n0,1,1 cpu,,0"), "line 2: job is \"\": name it by letters, digits and . _ - /"),
        (
            &format!("{HEAD},restartable\n0,1,1 cpu,a,0,perhaps"),
            "line 2: restartable is \"perhaps\": give true or false",
        ),
        (&long, "line 2 has more than 4096 bytes: shorten it"),
    ] {
        assert_eq!(trace::parse(text).unwrap_err().to_string(), want);
    }
    let error = trace::parse(&format!("{HEAD}\n0,1,1.5 gpu,a,0")).unwrap_err();
    assert!(matches!(error, trace::Error::NotAllowed { line: 2, .. }), "{error}");
}

#[test]
fn a_summary_says_what_became_of_a_trace() {
    let text = format!("{HEAD}\n0,10,2 cpu,a,0\n0,10,2 cpu,b,0\n5,5,1 gpu,c,0\n");
    let summary = replay(&text, vec![cpus(1, 2)]);
    // One after the other on the only node; nobody has a GPU.
    assert_eq!((summary.tasks, summary.finished, summary.refused), (3, 2, 1));
    assert_eq!(summary.reason.as_deref(), Some("no node has 1 GPU: none has any"));
    assert_eq!(summary.span, Millis(20_000));
    assert_eq!(summary.utilisation, [(Kind::Cpu, 1.0)]);
    let delays: Vec<_> = summary.delays.iter().map(|d| (d.tasks, d.mean.0, d.p50.0, d.most.0)).collect();
    assert_eq!(delays, [(2, 5000, 0, 10_000)]);
    // One took as long as it ran, the other twice as long: (1 + 2)² over 2 · (1 + 4).
    assert!((summary.fairness - 0.9).abs() < 1e-9, "{}", summary.fairness);
    assert_eq!((summary.preemptions, summary.stopped), (0, 0));
    // Half used where only half of it was wanted.
    let summary = replay(&format!("{HEAD}\n0,10,1 cpu,a,0\n"), vec![cpus(1, 2)]);
    assert_eq!(summary.utilisation, [(Kind::Cpu, 0.5)]);
    let none = replay(HEAD, vec![cpus(1, 2)]);
    assert_eq!((none.tasks, none.finished, none.fairness), (0, 0, 1.0));
}

#[test]
fn a_cluster_may_have_more_memory_than_one_quantity_holds() {
    // Twenty times 50 TB.
    let memory = Resources::from_list([(Kind::Memory, Quantity::whole(50_000_000_000_000))]).unwrap();
    let up = |event| match event {
        Event::NodeUp { node, devices, labels, .. } => {
            Event::NodeUp { node, total: memory.clone(), devices, labels }
        }
        other => other,
    };
    let nodes = (1..=20).map(|number| up(cpus(number, 1))).collect();
    let tasks = "0,10,50000000000000 memory,a,0\n".repeat(20);
    let summary = replay(&format!("{HEAD}\n{tasks}"), nodes);
    assert_eq!(summary.utilisation, [(Kind::Memory, 1.0)]);
}

#[test]
fn what_is_restartable_makes_room_and_runs_again() {
    let text = "arrival,duration,resources,job,priority,restartable\n\
                0,60,1 cpu,low,0,true\n0,60,1 cpu,low,0,true\n10,5,2 cpu,high,1,false\n";
    let tasks = trace::parse(text).unwrap();
    let mut replay = Replay::new(&tasks, [cpus(1, 2)], Vec::new(), Options::default());
    assert!(replay.run_until(Millis(30_000)));
    let began = replay.began(2).expect("it runs");
    assert!(began <= Millis(12_000), "it began at {began:?}");
    let summary = replay.run();
    assert_eq!((summary.finished, summary.stopped), (3, 2), "all ran to their end");
    assert!(summary.preemptions >= 1 && summary.lost >= Millis(20_000), "{summary:?}");
}

#[test]
fn what_runs_on_a_node_that_is_lost_runs_again() {
    let lost = |node| NodeId { number: node, incarnation: 1 };
    // Both nodes are full; one is lost after four seconds, and its task goes behind the other.
    let text = format!("{HEAD}\n0,10,2 cpu,a,0\n0,10,2 cpu,b,0\n");
    let tasks = trace::parse(&text).unwrap();
    let run = |losses: &[(u32, u64)]| {
        let mut replay = Replay::new(&tasks, [cpus(1, 2), cpus(2, 2)], Vec::new(), Options::default());
        losses.iter().for_each(|(node, at)| replay.lose(lost(*node), Millis(*at)));
        replay.run()
    };
    let whole = run(&[]);
    assert_eq!((whole.finished, whole.span, whole.nodes_lost, whole.stopped), (2, Millis(10_000), 0, 0));
    let summary = run(&[(2, 4000)]);
    assert_eq!((summary.finished, summary.span, summary.nodes_lost), (2, Millis(20_000), 1));
    assert_eq!((summary.stopped, summary.lost, summary.preemptions), (1, Millis(4000), 0));
    // Two CPUs for twenty seconds, two for four: all of it in use.
    assert_eq!(summary.utilisation, [(Kind::Cpu, 1.0)]);
    assert_ne!(summary.hash, whole.hash);
    assert_eq!(summary, run(&[(2, 4000)]), "the same each time");
    // One that is not there is not lost, nor is one twice.
    assert_eq!(run(&[(3, 1000), (2, 4000), (2, 5000)]).nodes_lost, 1);
    // Without any node everything waits.
    assert_eq!(run(&[(1, 1000), (2, 1000)]).finished, 0);
}

#[test]
fn invariants_hold_while_nodes_are_lost() {
    for seed in 0..10 {
        let tasks = trace::parse(&made(seed, 400, 3)).unwrap();
        let mut replay = Replay::new(&tasks, load::nodes(6), load::queues(3), Options::default());
        replay.check_each_step();
        let mut random = Random::new(seed);
        for _ in 0..2 {
            let node = NodeId { number: 1 + random.below(6) as u32, incarnation: 1 };
            replay.lose(node, Millis(random.between(1000, 20_000)));
        }
        let summary = replay.run();
        assert_eq!(summary.broken, None, "seed {seed}");
        assert!((1..=2).contains(&summary.nodes_lost), "seed {seed}: {summary:?}");
        assert_eq!(summary.finished + summary.refused, 400, "seed {seed}: {:?}", summary.reason);
    }
}

/// A trace made from a seed.
fn made(seed: u64, count: usize, queues: usize) -> String {
    let mut random = Random::new(seed);
    let mut text = format!("{HEAD},queue,restartable\n");
    let mut arrival = 0;
    for _ in 0..count {
        arrival += random.below(200);
        let (duration, job) = (1 + random.below(20_000), random.below(12));
        let needs = *random.pick(&["1 cpu", "2 cpu", "4 cpu 8GiB memory", "0.5 gpu 1 cpu", "2 gpu"]);
        let queue = if queues == 0 { String::new() } else { format!("q{}", job % queues) };
        let (priority, restartable) = (*random.pick(&[0, 0, 0, 1]), random.chance(50));
        text += &format!(
            "{}.{:03},{}.{:03},{needs},job{job},{priority},{queue},{restartable}\n",
            arrival / 1000,
            arrival % 1000,
            duration / 1000,
            duration % 1000
        );
    }
    text
}

#[test]
fn the_same_trace_gives_the_same_hash_on_every_machine() {
    let tasks = trace::parse(&made(1, 1500, 4)).unwrap();
    let run = || Replay::new(&tasks, load::nodes(6), load::queues(4), Options::default()).run();
    let summary = run();
    assert_eq!((summary.finished, summary.refused), (1500, 0), "{:?}", summary.reason);
    assert_eq!(summary, run());
    assert_eq!(summary.broken, None);
    assert_eq!(summary.hash, HASH, "what the scheduler does has changed: if it should have, so must this");
}

/// Of the trace above.
const HASH: u64 = 2_886_094_335_772_039_547;

/// One CPU each: a queue floods, and another one has as much work as it can get.
#[test]
fn a_flood_takes_no_more_than_its_share() {
    let queues = || vec![Queue::new("a"), Queue::new("b")];
    flood(0, queues());
    // Whatever priority it gives itself: between queues that is nothing.
    flood(5, queues());
    // And where both have no more together than the limit of a queue above.
    let below = |name| Queue { parent: "p".to_owned(), ..Queue::new(name) };
    let above = Queue { limit: vec![(Kind::Cpu, Quantity::whole(64))], ..Queue::new("p") };
    flood(5, vec![above, below("a"), below("b")]);
}

fn flood(priority: i32, queues: Vec<Queue>) {
    let mut text = format!("{HEAD},queue\n");
    (0..10_000).for_each(|_| text += &format!("0,1.7,1 cpu,flood,{priority},a\n"));
    for task in 0..4000 {
        text += &format!("{}.{:03},1.1,1 cpu,steady,0,b\n", task / 100, 10 * (task % 100));
    }
    let tasks = trace::parse(&text).unwrap();
    let nodes = if queues.len() == 2 { 32 } else { 40 };
    let mut replay = Replay::new(&tasks, [cpus(1, nodes), cpus(2, nodes)], queues, Options::default());
    let (mut flood, mut steady) = (0.0, 0.0);
    // While both have more than they can run.
    for second in 1..=60 {
        assert!(replay.run_until(Millis(second * 1000)));
        flood += replay.held("flood", &Kind::Cpu).as_f64();
        steady += replay.held("steady", &Kind::Cpu).as_f64();
    }
    let part = steady / (flood + steady);
    assert!((0.475..=0.525).contains(&part), "{part} of what both had");
    assert!(flood + steady >= 0.98 * 64.0 * 60.0, "{} of 64 CPUs were in use", (flood + steady) / 60.0);
}

#[test]
fn what_matters_most_starts_within_two_seconds() {
    // In the flood of short tasks, and among long ones that can be run again.
    for (duration, restartable) in [("0.9", false), ("600", true)] {
        let mut text = format!("{HEAD},restartable\n");
        for _ in 0..10_000 {
            text += &format!("0,{duration},1 cpu,flood,0,{restartable}\n");
        }
        text += "30,1,1 cpu,urgent,10,false\n";
        let tasks = trace::parse(&text).unwrap();
        let mut replay = Replay::new(&tasks, [cpus(1, 64)], Vec::new(), Options::default());
        replay.run_until(Millis(40_000));
        let began = replay.began(10_000).expect("it runs");
        assert!((Millis(30_000)..=Millis(32_000)).contains(&began), "it began at {began:?}");
    }
}

#[test]
fn nothing_waits_for_ever_and_little_is_stopped() {
    for seed in 0..10 {
        let tasks = trace::parse(&made(seed, 400, 3)).unwrap();
        let mut replay = Replay::new(&tasks, load::nodes(6), load::queues(3), Options::default());
        replay.check_each_step();
        let summary = replay.run();
        assert_eq!((summary.finished, &summary.broken), (400, &None), "seed {seed}: {:?}", summary.reason);
        // A quarter of the cluster in a second, of which each takes at most what it had run.
        let allowed = summary.span.0 / 1000 * 64;
        assert!(summary.stopped <= allowed, "seed {seed}: {} of {allowed} stopped", summary.stopped);
    }
}

#[test]
fn work_is_packed_about_as_well_as_by_an_oracle() {
    let (mut sum, mut count) = (0.0, 0.0);
    for seed in 0..20 {
        let Packing { ours, oracle, moving } = packing(seed, 100);
        let (all, come) = (ours / oracle, ours / moving);
        println!("seed {seed}: {ours:.3}; {all:.3} of who sees all before, {come:.3} of who may move all");
        // Who takes requests as they come, and keeps no room for what may come, is beaten by who may choose among all of
        // them: requests for GPUs that come when the last CPU is gone find GPUs that are idle, wherever those before
        // were put. Moving them makes up to 4% more room.
        assert!(come >= LEAST_OF_MOVING, "seed {seed}: {ours} against {moving}");
        assert!(all >= LEAST_OF_ORACLE, "seed {seed}: {ours} against {oracle}");
        (sum, count) = (sum + all, count + 1.0);
    }
    assert!(sum / count >= 0.95, "{} of it on average", sum / count);
}

/// For each seed, of what an oracle places that takes requests as they come.
const LEAST_OF_MOVING: f64 = 0.96;
/// For each seed, of what one places that chooses among all of them.
const LEAST_OF_ORACLE: f64 = 0.93;
