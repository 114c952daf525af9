//! What groups that wait cost: how much is looked at, rather than for how long.

use mobula_proto::{Group, GroupId, group::Arrange, resource::Isolation};

use super::*;

fn group(arrange: Arrange, count: usize, bundle: &str) -> Group {
    Group { bundles: vec![resources(bundle); count], arrange, wait_for_node: true, ..Group::default() }
}

fn up(number: u32, text: &str) -> Event {
    let (devices, labels) = (Vec::new(), Vec::new());
    Event::NodeUp { node: node(number), total: resources(text), devices, labels }
}

fn wish(number: u64, spec: Group) -> Event {
    Event::Group { group: GroupId { number }, job: JobId { number: 1 }, spec: Arc::new(spec) }
}

/// A scheduler whose checks look at everything, which would be counted as well: so they are left out.
struct Many {
    scheduler: Scheduler,
    now: Millis,
}

impl Many {
    fn new(nodes: u32, text: &str) -> Self {
        let term = Millis(1_000_000);
        let mut many =
            Self { scheduler: Scheduler::new(Options { term, ..Options::default() }), now: Millis(0) };
        (1..=nodes).for_each(|number| drop(many.step(up(number, text))));
        many
    }

    fn step(&mut self, event: Event) -> String {
        show(&self.scheduler.step(event, self.now))
    }

    /// Something comes and goes on a node, which has room for it.
    fn come_and_go(&mut self, number: u32, text: &str) -> String {
        let class = Arc::new(on(number, false, text));
        let (owner, key, job) = (host(9000), 0, JobId { number: 2 });
        let wish = Event::Demand { owner, key, job, class, backlog: 1, attempt: 0, locality: Vec::new() };
        let granted = self.scheduler.step(wish, self.now);
        let Some(Effect::Grant(lease)) = granted.first() else { panic!("{}", show(&granted)) };
        self.step(Event::Release { lease: lease.id })
    }

    /// What happens until this time at the latest, each time when it should be looked at.
    fn until(&mut self, end: u64, text: &str) -> bool {
        while self.now < Millis(end) {
            let next = self.scheduler.next_tick().unwrap_or(Millis(end));
            self.now = next.max(self.now.plus(Millis(1))).min(Millis(end));
            if self.step(Event::Tick).contains(text) {
                return true;
            }
        }
        false
    }
}

#[test]
fn what_comes_free_does_not_try_a_large_group_each_time() {
    let mut many = Many::new(511, "2 cpu");
    many.step(wish(1, group(Arrange::StrictSpread, 512, "2 cpu")));
    // All at once.
    let before = many.scheduler.takes();
    (0..1000).for_each(|_| assert!(many.come_and_go(1, "1 cpu").starts_with("ended lease")));
    let takes = many.scheduler.takes() - before;
    assert!((512..=20 * 512).contains(&takes), "{takes}");
    // In a second.
    for at in 1..=1000 {
        many.now = Millis(at);
        many.come_and_go(1, "1 cpu");
    }
    let takes = many.scheduler.takes() - before;
    assert!(takes <= 200 * 512, "{takes}");
    // The one that it lacks is found all the same, and soon.
    let placed = many.step(up(512, "2 cpu"));
    assert!(placed.contains("group-1 0:") || many.until(1200, "group-1 0:"), "{placed}");
}

#[test]
fn what_is_small_is_tried_although_many_large_ones_are() {
    let mut many = Many::new(64, "2 cpu");
    for number in 1..=50 {
        // Each of its own kind.
        many.step(wish(number, group(Arrange::StrictSpread, 64 + number as usize, "1 cpu")));
    }
    many.step(wish(90, group(Arrange::StrictPack, 1, "3 cpu")));
    let before = many.scheduler.takes();
    for at in 1..=500 {
        many.now = Millis(at);
        many.come_and_go(1 + at as u32 % 64, "1 cpu");
    }
    let takes = many.scheduler.takes() - before;
    assert!(takes <= 500 * 64 * 2, "{takes}");
    let placed = many.step(up(90, "3 cpu"));
    assert!(placed.contains("group-90 0:") || many.until(550, "group-90 0:"), "{placed}");
}

#[test]
fn each_bundle_is_held_against_a_place_once() {
    // Two fit on each node, and one finds none.
    let mut many = Many::new(127, "2 cpu");
    many.step(wish(1, group(Arrange::Pack, 255, "1 cpu")));
    let takes = many.scheduler.takes();
    assert!((254..=3 * 255).contains(&takes), "{takes}");
    // More than there are places: those that find none of their own are not looked for twice.
    let mut many = Many::new(64, "2 cpu");
    many.step(wish(1, group(Arrange::Spread, 129, "1 cpu")));
    let takes = many.scheduler.takes();
    assert!((128..=132).contains(&takes), "{takes}");
}

#[test]
fn looks_to_make_room_for_a_group_are_paid_for_by_what_is_leased() {
    let (nodes, queues) = (64, 8);
    let mut many = Many::new(nodes, "512 cpu");
    let named = |number: u32| format!("q{number}");
    many.step(Event::Queues((0..=queues).map(|at| super::sharing::queue(&named(at))).collect()));
    // Each slot is a lease, none of which may be taken.
    for at in 0..queues {
        let class = Class { queue: named(at), isolation: Isolation::Process, ..class("1 cpu") };
        let (owner, key, job) = (host(9000 + at), 0, JobId { number: u64::from(at) });
        let (class, backlog) = (Arc::new(class), nodes * 512 / queues);
        many.step(Event::Demand { owner, key, job, class, backlog, attempt: 0, locality: Vec::new() });
    }
    let leases = many.scheduler.leases().count();
    assert_eq!(leases, 64 * 512);
    many.step(wish(1, Group { queue: named(queues), ..group(Arrange::StrictSpread, 65, "512 cpu") }));
    // Room is looked for, and later nodes to be kept as well: there are too few.
    for from in [1_000, 40_000] {
        many.now = Millis(from);
        many.step(Event::Tick);
        let before = many.scheduler.examined();
        for at in 1..=40 {
            many.now = Millis(from + 50 * at);
            many.step(Event::Tick);
        }
        let after = many.scheduler.examined();
        let (looked, asked) = (after.0 - before.0, after.1 - before.1);
        assert!((leases..=24 * leases).contains(&looked), "{from}: {} times", looked / leases);
        assert!(asked <= 12 * queues as usize, "{from}: {asked}");
    }
}
