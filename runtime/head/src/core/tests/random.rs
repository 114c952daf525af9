//! Seeded sequences of everything that may come in, sense and nonsense alike: nothing is lost, nothing leaks.

use super::*;
use crate::state::{Journal, Memory};

const SEEDS: u64 = 300;
const STEPS: u32 = 150;

/// A small generator (xorshift), so that a seed means the same for ever.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

struct Run {
    world: World,
    dice: Dice,
    agents: Vec<Agent>,
    jobs: Vec<JobId>,
    /// Every lease that a node was asked to reserve and not told the end of.
    reserved: BTreeSet<(Link, LeaseId)>,
    /// Every lease that an owner was told of and not told the end of, or gave back.
    held: BTreeSet<LeaseId>,
}

impl Run {
    fn agent(&mut self) -> Agent {
        self.agents[self.dice.roll(self.agents.len() as u64) as usize]
    }

    fn host(&mut self) -> HostId {
        let agent = self.agent();
        agent.host(self.dice.roll(4) as u32)
    }

    fn job(&mut self) -> JobId {
        let any = JobId { number: 1 + self.dice.roll(6) };
        match self.jobs.len() as u64 {
            0 => any,
            n => self.jobs[self.dice.roll(n) as usize],
        }
    }

    fn lease(&mut self) -> LeaseId {
        let known = self.reserved.len() as u64;
        match known {
            0 => LeaseId { number: self.dice.roll(20) },
            _ => {
                let at = self.dice.roll(known) as usize;
                self.reserved.iter().nth(at).map(|(_, lease)| *lease).unwrap()
            }
        }
    }

    fn question(&mut self) -> Question {
        let name = format!("n{}", self.dice.roll(3));
        let actor = TaskId::numbered(self.host(), self.dice.roll(3));
        let namespace = if self.dice.roll(2) == 0 { String::new() } else { "shared".to_owned() };
        match self.dice.roll(6) {
            0 | 1 => Question::NameClaim { namespace, name, actor, actor_type: "T".to_owned() },
            2 => Question::NameFind { namespace, name },
            3 => Question::NameDrop { namespace, name, actor },
            4 => Question::Snapshot,
            _ => Question::Steward,
        }
    }

    fn step(&mut self) {
        // Mostly the host's own agent speaks; sometimes another one, or a link that is long gone.
        let host = self.host();
        let own = self.agents.iter().find(|a| a.node == host.node).map(|a| a.link);
        let link = match self.dice.roll(12) {
            0 => self.agent().link,
            _ => own.unwrap_or(Link(0)),
        };
        let (job, lease, slots) = (self.job(), self.lease(), self.dice.roll(3) as u32);
        let message = match self.dice.roll(24) {
            0 => {
                let kind = if self.dice.roll(3) == 0 { PeerKind::Driver } else { PeerKind::Agent };
                let cpus = if kind == PeerKind::Driver { 0 } else { self.dice.roll(4) };
                let name = format!("node{}", self.dice.roll(4));
                let total = Resources::cpu(Quantity::whole(cpus));
                self.world.register(kind, &name, Hello::new(Role::Agent), total);
                return;
            }
            1 => return self.world.step(Event::Lost { link, why: "chance".to_owned() }),
            2 => ToHead::JobStart {
                request: 1,
                driver: host,
                name: String::new(),
                namespace: if self.dice.roll(2) == 0 { String::new() } else { "shared".to_owned() },
                queue: String::new(),
                binary: BinaryHash([0; 32]),
                arguments: Vec::new(),
                files: Vec::new(),
            },
            3 => ToHead::JobEnd { job, failure: died() },
            4..=8 => {
                let resources = Resources::cpu(Quantity::whole(self.dice.roll(3)));
                let class = Class { resources, priority: self.dice.roll(2) as i32, ..Class::default() };
                let (key, backlog) = (self.dice.roll(3) as u32, self.dice.roll(5) as u32);
                ToHead::Demand { owner: host, job, key, class, backlog, locality: vec![(host.node, 5)] }
            }
            9 => ToHead::Release { lease },
            10 => ToHead::Renew { leases: vec![lease] },
            11 => ToHead::Block { lease, slots },
            12 => ToHead::Unblock { lease, slots },
            13..=16 => ToHead::LeaseReady { lease, host },
            17 => ToHead::LeaseFailed { lease, failure: died() },
            18 => ToHead::HostEnded { host, job, failure: died() },
            19 => ToHead::StewardReady { job, host },
            20 => return self.world.pass(100 * self.dice.roll(8)),
            21 if self.dice.roll(4) == 0 => ToHead::Leave,
            _ => ToHead::Ask { host, job, request: 1, question: self.question() },
        };
        let given_back = match message {
            ToHead::Release { lease } => Some(lease),
            _ => None,
        };
        self.world.says(link, message);
        // Only the owner's own agent is heeded, in which case the lease is gone by now.
        if let Some(lease) = given_back.filter(|lease| self.world.core.scheduler.lease(*lease).is_none()) {
            self.held.remove(&lease);
        }
    }

    /// Reads what was said, and checks that it makes sense.
    fn read(&mut self) {
        for (link, message) in std::mem::take(&mut self.world.said) {
            match message {
                ToAgent::Registered { node, .. } => self.agents.push(Agent { link, node }),
                ToAgent::JobStarted { job, .. } => self.jobs.push(job.job),
                ToAgent::Reserve { lease, .. } => {
                    assert!(self.reserved.insert((link, lease)), "{lease} twice")
                }
                ToAgent::LeaseEnded { lease, .. } => drop(self.reserved.remove(&(link, lease))),
                ToAgent::Granted { grant, .. } => {
                    assert!(self.held.insert(grant.lease), "{} announced twice", grant.lease);
                }
                ToAgent::Revoked { lease, kind, .. } => {
                    assert!(self.held.contains(&lease), "{lease} revoked, but never announced");
                    let goes_on = match kind {
                        Revocation::Idle | Revocation::Preempted { .. } => true,
                        Revocation::Evicted { keep, .. } => keep > 0,
                        _ => false,
                    };
                    if !goes_on {
                        self.held.remove(&lease);
                    }
                }
                _ => {}
            }
        }
        let core = &self.world.core;
        // What a node reserves, or an owner holds, is a lease of the scheduler's, and the other way round.
        let live: BTreeSet<LeaseId> = core.scheduler.leases().map(|view| view.lease.id).collect();
        let of_living = |(link, _): &&(Link, LeaseId)| core.links.contains_key(link);
        let reserved: BTreeSet<LeaseId> = self.reserved.iter().filter(of_living).map(|(_, l)| *l).collect();
        assert_eq!(reserved, live);
        assert_eq!(core.nodes.len(), core.links.len());
        self.held.retain(|lease| live.contains(lease));
        self.jobs.retain(|job| core.jobs.contains_key(job));
    }
}

#[test]
fn nothing_is_lost_and_nothing_leaks_whatever_comes_in() {
    let seeds = match std::env::var("MOBULA_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 1..SEEDS + 1,
    };
    for seed in seeds {
        // Printed only if the test fails: the last line says which seed to run again.
        println!("MOBULA_SEED={seed}");
        let mut run = Run {
            world: World::new(),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            agents: Vec::new(),
            jobs: Vec::new(),
            reserved: BTreeSet::new(),
            held: BTreeSet::new(),
        };
        for name in ["node0", "node1"] {
            run.world.register(
                PeerKind::Agent,
                name,
                Hello::new(Role::Agent),
                Resources::cpu(Quantity::whole(3)),
            );
        }
        run.read();
        for _ in 0..STEPS {
            run.step();
            run.read();
            if run.dice.roll(8) == 0 {
                // Those that are idle drain; those of them that are needed, or not empty in time, stay.
                let (one, other) = (run.agent().node, run.agent().node);
                let done = run.world.core.settle(&[one], &[other], Millis(500), run.world.now);
                run.world.keep(Ok(done)).unwrap();
                run.read();
            }
        }
        // Every wait has an end.
        run.world.pass(RESERVE_MS_MAX + 5000);
        run.read();
        for job in run.world.core.jobs.values().map(|entry| entry.job.clone()).collect::<Vec<_>>() {
            let link = run.world.core.link_of(job.driver.node);
            if let Some(link) = link {
                run.world.says(link, ToHead::JobEnd { job: job.job, failure: died() });
            }
        }
        for link in run.world.core.links.keys().copied().collect::<Vec<_>>() {
            run.world.says(link, ToHead::Leave);
        }
        run.read();
        run.world.assert_idle();
        assert!(run.world.attached.is_empty());

        // The records alone make the same cluster again.
        let journal = Memory::default();
        journal.append(&run.world.records).unwrap();
        let later = World::with(journal.load().unwrap());
        assert!(later.core.names.names.is_empty());
        assert_eq!(later.core.known, run.world.core.known, "seed {seed}");
        assert_eq!(later.core.next_node, run.world.core.next_node);
        assert!(later.core.next_job >= run.world.core.next_job);
    }
}
