//! Hosts that put, call, return, read, drop and crash at random, over queues that keep the order of each pair and
//! nothing else. Checks O1, O4, O5 and O9 from outside: the model knows who can reach what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mobula_proto::{
    Failure, FailureKind, HostId, NodeId, ObjectId, TaskId,
    peer::{Copy, Message, State},
};

use crate::{Counts, Effect, Ownership, Via};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn some(&mut self, from: &[ObjectId], most: usize) -> Vec<ObjectId> {
        if from.is_empty() {
            return Vec::new();
        }
        (0..self.below(most + 1)).map(|_| from[self.below(from.len())]).collect()
    }
}

enum Wire {
    Peer(Message),
    Run { result: ObjectId, arguments: Vec<ObjectId> },
    Done(Done),
    Died,
}

struct Done {
    result: ObjectId,
    state: State,
    contains: Vec<ObjectId>,
    retained: Vec<ObjectId>,
}

struct Task {
    token: u64,
    caller: usize,
    result: ObjectId,
    arguments: Vec<ObjectId>,
    handles: Vec<ObjectId>,
}

struct Ending {
    token: u64,
    caller: usize,
    done: Done,
}

struct Host {
    id: HostId,
    own: Ownership,
    alive: bool,
    told: BTreeSet<usize>,
    handles: Vec<ObjectId>,
    tasks: Vec<Task>,
    endings: Vec<Ending>,
    calls: BTreeMap<ObjectId, (usize, Vec<ObjectId>)>,
    actors: Vec<ObjectId>,
    seq: u64,
}

struct World {
    random: Random,
    hosts: Vec<Host>,
    queues: BTreeMap<(usize, usize), VecDeque<Wire>>,
    /// Stored values that still exist, by attempt.
    values: BTreeMap<(ObjectId, u32), Vec<ObjectId>>,
    /// Refs that were ever inside an object's value.
    inside: BTreeMap<ObjectId, Vec<ObjectId>>,
    /// Lent by a host that crashed before the value arrived: may be kept too long (O9).
    leaky: BTreeSet<ObjectId>,
    /// Pairs whose messages take long.
    slow: BTreeSet<(usize, usize)>,
    /// How many of 100 actions drop a handle.
    drops: usize,
    crashed: bool,
    lossy: bool,
    token: u64,
}

fn number(host: HostId) -> usize {
    host.seq as usize - 1
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let count = 2 + random.below(4);
        let node = NodeId { number: 1, incarnation: 1 };
        let hosts = (1..=count)
            .map(|seq| {
                let id = HostId { node, seq: u32::try_from(seq).unwrap() };
                Host {
                    id,
                    own: Ownership::new(id),
                    alive: true,
                    told: BTreeSet::new(),
                    handles: Vec::new(),
                    tasks: Vec::new(),
                    endings: Vec::new(),
                    calls: BTreeMap::new(),
                    actors: Vec::new(),
                    seq: 0,
                }
            })
            .collect();
        let slow = (0..random.below(2 * count)).map(|_| (random.below(count), random.below(count))).collect();
        let drops = 15 + random.below(50);
        Self {
            random,
            hosts,
            queues: BTreeMap::new(),
            values: BTreeMap::new(),
            inside: BTreeMap::new(),
            leaky: BTreeSet::new(),
            slow,
            drops,
            crashed: false,
            lossy: false,
            token: 0,
        }
    }

    fn send(&mut self, from: usize, to: usize, wire: Wire) {
        if self.hosts[to].alive {
            self.queues.entry((from, to)).or_default().push_back(wire);
        }
    }

    /// Calls into a host's table and carries out what comes of it.
    fn with<T>(&mut self, at: usize, call: impl FnOnce(&mut Ownership, &mut Vec<Effect>) -> T) -> T {
        let mut fx = Vec::new();
        let answer = call(&mut self.hosts[at].own, &mut fx);
        self.carry_out(at, fx);
        answer
    }

    fn carry_out(&mut self, at: usize, fx: Vec<Effect>) {
        let (mut rebuild, mut settled) = (Vec::new(), Vec::new());
        for effect in fx {
            match effect {
                Effect::Send { to, message } => {
                    let to = number(to);
                    assert_ne!(to, at, "a message to itself");
                    assert!(!self.hosts[at].told.contains(&to), "a message to the dead");
                    self.send(at, to, Wire::Peer(message));
                }
                Effect::Free { object, copy } => {
                    let freed = self.values.remove(&(object, copy.attempt));
                    assert!(freed.is_some() || self.lossy, "{object} freed twice");
                }
                Effect::Ready { object } => {
                    assert!(!matches!(self.hosts[at].own.state(object), Some(State::Pending)));
                }
                Effect::Forgotten { object } => self.assert_unreachable(object),
                Effect::Rebuild { task } => rebuild.push(task.object(0)),
                Effect::ActorMoved { .. } => {}
                Effect::Settled { token } => settled.push(token),
            }
        }
        for object in rebuild {
            self.token += 1;
            let state = self.seal(at, object, 10 + self.token as u32, Vec::new());
            let mut fx = Vec::new();
            self.hosts[at].own.complete(object, state, Vec::new(), &mut fx);
            self.carry_out(at, fx);
        }
        for token in settled {
            let place = self.hosts[at].endings.iter().position(|ending| ending.token == token).unwrap();
            let ending = self.hosts[at].endings.remove(place);
            self.done(at, ending.caller, ending.done);
        }
    }

    /// O1 from outside.
    fn assert_unreachable(&self, object: ObjectId) {
        let by = |what: &str| panic!("{object} forgotten though reachable by {what}");
        for (at, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.alive) {
            let held = host.handles.iter().chain(host.tasks.iter().flat_map(|task| &task.handles));
            for handle in held {
                if self.crashed {
                    // Unregistered refs may have lost the caller that kept them.
                    let counted = host.own.objects.get(handle).is_some_and(|entry| entry.registered > 0);
                    if *handle == object && (counted || number(object.owner) == at) {
                        by("a registered handle");
                    }
                    continue;
                }
                if *handle == object {
                    by("a handle");
                }
                if self.values.iter().any(|((of, _), refs)| of == handle && refs.contains(&object)) {
                    by("a stored value");
                }
            }
            if !self.crashed {
                if host.calls.values().any(|(_, arguments)| arguments.contains(&object)) {
                    by("an argument");
                }
                if host.endings.iter().any(|ending| ending.done.contains.contains(&object)) {
                    by("a result");
                }
            }
        }
        for wire in self.queues.values().flatten().filter(|_| !self.crashed) {
            let under_way = match wire {
                Wire::Run { arguments, .. } => arguments,
                Wire::Done(done) => &done.contains,
                Wire::Peer(_) | Wire::Died => continue,
            };
            assert!(!under_way.contains(&object), "{object} forgotten though under way");
        }
    }

    fn new_object(&mut self, at: usize) -> ObjectId {
        let host = &mut self.hosts[at];
        host.seq += 1;
        TaskId { owner: host.id, seq: host.seq }.object(0)
    }

    fn seal(&mut self, at: usize, object: ObjectId, attempt: u32, contains: Vec<ObjectId>) -> State {
        self.values.insert((object, attempt), contains);
        State::Stored(Copy { node: self.hosts[at].id.node, bytes: 1, attempt })
    }

    fn value(&mut self, at: usize, object: ObjectId, contains: &[ObjectId]) -> State {
        self.inside.entry(object).or_default().extend(contains);
        if self.random.one_in(2) {
            return State::Inline { bytes: mobula_proto::Blob::from_slice(&[1]), contains: Vec::new() };
        }
        self.seal(at, object, 1, contains.to_vec())
    }

    /// Whether `to` is inside `from`, at any depth: cycles are never freed, so the model makes none.
    fn reaches(&self, from: ObjectId, to: ObjectId) -> bool {
        from == to || self.inside.get(&from).into_iter().flatten().any(|inner| self.reaches(*inner, to))
    }

    fn put(&mut self, at: usize) {
        let object = self.new_object(at);
        let handles = self.hosts[at].handles.clone();
        let contains = self.random.some(&handles, 3);
        let state = self.value(at, object, &contains);
        self.with(at, |own, fx| own.put(object, state, contains, fx));
        self.hosts[at].handles.push(object);
    }

    fn actor(&mut self, at: usize) {
        let object = self.new_object(at);
        self.with(at, |own, _| own.create(object, false));
        self.hosts[at].handles.push(object);
        self.hosts[at].actors.push(object);
    }

    fn move_actor(&mut self, at: usize) {
        let Some(last) = self.hosts[at].actors.last().copied() else { return };
        let id = self.hosts[at].id;
        let state = match self.random.below(6) {
            0 => State::failed(Failure::new(FailureKind::ActorDied, "killed")),
            1 | 2 => State::Pending,
            _ => State::Actor { host: id, incarnation: self.random.below(9) as u32 },
        };
        self.with(at, |own, fx| own.set_actor(last, state, fx));
    }

    fn call(&mut self, at: usize, to: usize) {
        let result = self.new_object(at);
        let handles = self.hosts[at].handles.clone();
        let arguments = self.random.some(&handles, 3);
        self.with(at, |own, _| own.create(result, true));
        for argument in &arguments {
            self.with(at, |own, _| own.add_ref(*argument));
        }
        let host = &mut self.hosts[at];
        host.handles.push(result);
        host.calls.insert(result, (to, arguments.clone()));
        self.send(at, to, Wire::Run { result, arguments });
    }

    fn end(&mut self, at: usize) {
        if self.hosts[at].tasks.is_empty() {
            return;
        }
        let which = self.random.below(self.hosts[at].tasks.len());
        let Task { token, caller, result, arguments, mut handles } = self.hosts[at].tasks.remove(which);
        // Some refs go into an actor's state.
        while !handles.is_empty() && self.random.one_in(4) {
            let kept = handles.swap_remove(self.random.below(handles.len()));
            self.hosts[at].handles.push(kept);
        }
        let mut from = handles.clone();
        from.extend(&self.hosts[at].handles);
        let mut contains = self.random.some(&from, 3);
        contains.retain(|inner| !self.reaches(*inner, result));
        for inner in &contains {
            self.with(at, |own, _| own.add_ref(*inner));
        }
        for handle in handles {
            self.with(at, |own, fx| own.drop_ref(handle, fx));
        }
        let state = self.value(at, result, &contains);
        let to = self.hosts[caller].id;
        let (settled, waiting) = self.with(at, |own, fx| {
            let settled = own.settle(to, &arguments, token, fx);
            let waiting = own.lend(to, &contains, token, fx);
            (settled, waiting)
        });
        let done = Done { result, state, contains, retained: settled.retained };
        if settled.waiting || waiting {
            self.hosts[at].endings.push(Ending { token, caller, done });
        } else {
            self.done(at, caller, done);
        }
    }

    fn done(&mut self, at: usize, caller: usize, done: Done) {
        let holds = done.contains.clone();
        if self.hosts[caller].alive {
            self.send(at, caller, Wire::Done(done));
        } else if let State::Stored(copy) = done.state {
            self.values.remove(&(done.result, copy.attempt));
        }
        for inner in holds {
            self.with(at, |own, fx| own.drop_ref(inner, fx));
        }
    }

    /// Reads an object, collecting the refs inside, or waits for it.
    fn read(&mut self, at: usize, object: ObjectId) -> Vec<ObjectId> {
        let refs = match self.hosts[at].own.state(object).cloned() {
            None => panic!("{object} is unknown though held"),
            Some(State::Stored(copy)) => match self.values.get(&(object, copy.attempt)) {
                Some(refs) => refs.clone(),
                None => {
                    assert!(self.lossy || self.crashed, "{object} was freed though readable");
                    self.with(at, |own, fx| own.lost(object, copy.node, copy.attempt, fx));
                    return Vec::new();
                }
            },
            Some(State::Inline { contains, .. }) => contains,
            Some(State::Failed(failure)) => {
                assert!(
                    self.crashed || failure.kind != FailureKind::ObjectFreed,
                    "{object} was freed though held"
                );
                return Vec::new();
            }
            Some(State::Pending | State::Actor { .. }) => {
                self.with(at, |own, fx| own.want(object, fx));
                return Vec::new();
            }
        };
        for inner in &refs {
            self.with(at, |own, fx| own.receive(*inner, Via::Container(object), fx));
        }
        refs
    }

    fn deliver(&mut self) -> bool {
        let full: Vec<(usize, usize)> =
            self.queues.iter().filter(|(_, queue)| !queue.is_empty()).map(|(pair, _)| *pair).collect();
        if full.is_empty() {
            return false;
        }
        // Some pairs are slow, so that others overtake them by far.
        let (mut from, mut to) = full[self.random.below(full.len())];
        for _ in 0..8 {
            if !self.slow.contains(&(from, to)) || self.random.one_in(30) {
                break;
            }
            (from, to) = full[self.random.below(full.len())];
        }
        let wire = self.queues.get_mut(&(from, to)).unwrap().pop_front().unwrap();
        let sender = self.hosts[from].id;
        match wire {
            Wire::Peer(message) => {
                assert!(self.with(to, |own, fx| own.on_message(sender, message, fx).is_ok()));
            }
            Wire::Run { result, arguments } => {
                for argument in &arguments {
                    self.with(to, |own, fx| own.receive(*argument, Via::Argument, fx));
                }
                self.token += 1;
                let handles = arguments.clone();
                self.hosts[to].tasks.push(Task {
                    token: self.token,
                    caller: from,
                    result,
                    arguments,
                    handles,
                });
            }
            Wire::Done(Done { result, state, contains, retained }) => {
                self.with(to, |own, _| own.retained(sender, &retained));
                self.with(to, |own, fx| own.complete(result, state, contains, fx));
                self.drop_arguments(to, result);
            }
            Wire::Died => {
                self.hosts[to].told.insert(from);
                let failure = Failure::new(FailureKind::HostDied, "killed");
                self.with(to, |own, fx| own.host_died(sender, &failure, fx));
                let failed: Vec<ObjectId> = self.hosts[to]
                    .calls
                    .iter()
                    .filter(|(_, (executor, _))| *executor == from)
                    .map(|(result, _)| *result)
                    .collect();
                for result in failed {
                    self.with(to, |own, fx| own.fail(result, failure.clone(), fx));
                    self.drop_arguments(to, result);
                }
            }
        }
        true
    }

    fn drop_arguments(&mut self, at: usize, result: ObjectId) {
        let (_, arguments) = self.hosts[at].calls.remove(&result).unwrap();
        for argument in arguments {
            self.with(at, |own, fx| own.drop_ref(argument, fx));
        }
    }

    fn crash(&mut self, at: usize) {
        self.crashed = true;
        let host = &mut self.hosts[at];
        host.alive = false;
        for ending in host.endings.drain(..) {
            self.leaky.extend(ending.done.contains);
        }
        host.handles.clear();
        host.tasks.clear();
        host.calls.clear();
        for to in 0..self.hosts.len() {
            self.queues.remove(&(to, at));
            if to == at || !self.hosts[to].alive {
                continue;
            }
            let queue = self.queues.entry((at, to)).or_default();
            let kept = self.random.below(queue.len() + 1);
            for lost in queue.drain(kept..) {
                if let Wire::Done(done) = lost {
                    self.leaky.extend(done.contains);
                }
            }
            queue.push_back(Wire::Died);
        }
    }

    fn act(&mut self) {
        let alive: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].alive).collect();
        let at = alive[self.random.below(alive.len())];
        if self.random.below(100) < self.drops {
            if !self.hosts[at].handles.is_empty() {
                let which = self.random.below(self.hosts[at].handles.len());
                let handle = self.hosts[at].handles.swap_remove(which);
                self.with(at, |own, fx| own.drop_ref(handle, fx));
            }
            return;
        }
        match self.random.below(10) {
            0 => self.put(at),
            1 => self.actor(at),
            2 => self.move_actor(at),
            3 | 4 => {
                let to = alive[self.random.below(alive.len())];
                if to != at {
                    self.call(at, to);
                }
            }
            5 | 6 => self.end(at),
            7 => {
                if !self.hosts[at].handles.is_empty() {
                    let handle = self.hosts[at].handles[self.random.below(self.hosts[at].handles.len())];
                    let refs = self.read(at, handle);
                    self.hosts[at].handles.extend(refs);
                }
            }
            8 => {
                if !self.hosts[at].tasks.is_empty() {
                    let which = self.random.below(self.hosts[at].tasks.len());
                    let handles = self.hosts[at].tasks[which].handles.clone();
                    if !handles.is_empty() {
                        let handle = handles[self.random.below(handles.len())];
                        let refs = self.read(at, handle);
                        self.hosts[at].tasks[which].handles.extend(refs);
                    }
                }
            }
            _ => {
                if self.random.one_in(4) && !self.hosts[at].handles.is_empty() {
                    let handle = self.hosts[at].handles[self.random.below(self.hosts[at].handles.len())];
                    self.with(at, |own, _| own.add_ref(handle));
                    self.hosts[at].handles.push(handle);
                }
            }
        }
    }

    fn drain(&mut self) {
        loop {
            while self.deliver() {}
            let Some(busy) = self.hosts.iter().position(|host| host.alive && !host.tasks.is_empty()) else {
                break;
            };
            self.end(busy);
        }
        for host in self.hosts.iter().filter(|host| host.alive) {
            assert!(host.endings.is_empty() && host.calls.is_empty());
        }
    }

    fn run(seed: u64, counts: &mut [u64; 3]) {
        let mut world = Self::new(seed);
        let crashes = world.random.one_in(3);
        let losses = world.random.one_in(4);
        let steps = 60 + world.random.below(700);
        for _ in 0..steps {
            if world.random.one_in(2) {
                world.deliver();
            } else {
                world.act();
            }
            let alive = world.hosts.iter().filter(|host| host.alive).count();
            if crashes && alive > 1 && world.random.one_in(100) {
                let which = world.hosts.iter().position(|host| host.alive).unwrap();
                let which = (which + world.random.below(world.hosts.len())) % world.hosts.len();
                if world.hosts[which].alive {
                    world.crash(which);
                }
            }
            if losses && !world.values.is_empty() && world.random.one_in(20) {
                world.lossy = true;
                let which = world.random.below(world.values.len());
                let key = *world.values.keys().nth(which).unwrap();
                world.values.remove(&key);
            }
        }
        world.drain();
        for at in 0..world.hosts.len() {
            for handle in world.hosts[at].handles.clone() {
                world.with(at, |own, fx| own.want(handle, fx));
            }
        }
        world.drain();
        world.check_waiters();
        for at in 0..world.hosts.len() {
            for handle in std::mem::take(&mut world.hosts[at].handles) {
                if world.random.one_in(2) {
                    world.deliver();
                }
                world.with(at, |own, fx| own.drop_ref(handle, fx));
            }
        }
        world.drain();
        world.check_empty();
        counts[0] += world.hosts.iter().map(|host| host.seq).sum::<u64>();
        counts[1] += u64::from(world.crashed);
        counts[2] += world.leaky.len() as u64;
    }

    /// O5: with all messages delivered and all tasks ended, only actors that are down are pending.
    fn check_waiters(&mut self) {
        for at in 0..self.hosts.len() {
            if !self.hosts[at].alive {
                continue;
            }
            for object in self.hosts[at].handles.clone() {
                let owner = &self.hosts[number(object.owner)];
                let here = self.hosts[at].own.state(object).unwrap();
                let there = if owner.alive { owner.own.state(object) } else { None };
                if owner.actors.contains(&object) && there.is_some() {
                    assert_eq!(Some(here), there, "{object}: news of the actor did not arrive");
                } else {
                    assert!(!matches!(here, State::Pending), "{object} is waited for, for ever");
                }
            }
        }
    }

    /// O9.
    fn check_empty(&self) {
        let mut excused = self.leaky.clone();
        let mut next: Vec<ObjectId> = excused.iter().copied().collect();
        while let Some(object) = next.pop() {
            for inner in self.inside.get(&object).into_iter().flatten() {
                if excused.insert(*inner) {
                    next.push(*inner);
                }
            }
        }
        for host in self.hosts.iter().filter(|host| host.alive) {
            if !self.crashed {
                assert_eq!(host.own.counts(), Counts::default(), "{} has something left", host.id);
            }
            for (object, entry) in host.own.objects.iter() {
                assert!(excused.contains(&object), "{} still has {object}: {entry:?}", host.id);
            }
            assert!(host.own.outstanding.is_empty() && host.own.settling.is_empty());
        }
        if !self.crashed {
            assert!(self.values.is_empty(), "stored and never freed: {:?}", self.values);
        }
    }
}

#[test]
fn objects_live_exactly_as_long_as_they_are_reachable() {
    let only = std::env::var("MOBULA_SEED").ok().map(|seed| seed.parse().expect("MOBULA_SEED is a number"));
    let seeds = only.map_or(0..10_000, |seed: u64| seed..seed + 1);
    let mut counts = [0; 3];
    for seed in seeds {
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| World::run(seed, &mut counts)));
        if let Err(cause) = outcome {
            eprintln!("MOBULA_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
    let [objects, crashed, leaky] = counts;
    eprintln!("{objects} objects; {crashed} runs with crashes; {leaky} refs lent in vain");
}
