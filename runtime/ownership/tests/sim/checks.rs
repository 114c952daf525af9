//! What is looked at from outside: what may not be gone, what may not be left, and who may not wait.

use std::collections::BTreeSet;

use mobula_ownership::Counts;
use mobula_proto::{ObjectId, TaskId, peer::State};

use super::{Event, Host, Wire, World};

impl World {
    /// O1 and O10 from outside.
    pub fn assert_unreachable(&self, object: ObjectId) {
        let by = |what: &str| panic!("{object} forgotten though reachable by {what}");
        let all = !self.crashed || self.strict;
        for host in self.hosts.iter().filter(|host| host.alive) {
            for handle in host.handles.iter().chain(host.tasks.iter().flat_map(|task| &task.handles)) {
                if !all {
                    // Refs that are not registered yet may have lost the caller that kept them.
                    if *handle == object && (host.registered.contains(&object) || host.id == object.owner) {
                        by("a registered handle");
                    }
                    continue;
                }
                if self.leads_to(host, *handle, object) {
                    by("a handle");
                }
            }
            if all {
                if host.calls.values().any(|(_, arguments)| arguments.contains(&object)) {
                    by("an argument");
                }
                if host.endings.iter().any(|ending| ending.done.contains.contains(&object)) {
                    by("a result");
                }
            }
        }
        for event in self.events.values().filter(|_| all) {
            let under_way = match event {
                // What comes from or goes to the dead may be lost.
                Event::Arrive { from, to, .. } if [from, to].into_iter().any(|at| !self.is_alive(*at)) => {
                    continue;
                }
                Event::Arrive { wire: Wire::Run { arguments, .. }, .. } => arguments,
                Event::Arrive { wire: Wire::Done(done), .. } => &done.contains,
                _ => continue,
            };
            assert!(!under_way.contains(&object), "{object} forgotten though under way");
        }
    }

    pub fn is_alive(&self, party: usize) -> bool {
        self.hosts.get(party).is_none_or(|host| host.alive)
    }

    /// Whether who holds a ref can get at an object, through values that there are.
    pub fn leads_to(&self, host: &Host, handle: ObjectId, object: ObjectId) -> bool {
        let (mut seen, mut next) = (BTreeSet::new(), vec![handle]);
        while let Some(at) = next.pop() {
            if at == object {
                return true;
            }
            if !seen.insert(at) {
                continue;
            }
            let owner = &self.hosts[self.number(at.owner)];
            // What the owner says, or said last.
            match (owner.own.state(at), host.own.state(at)) {
                (Some(State::Inline { contains, .. }), _) if owner.alive => next.extend(contains),
                (_, Some(State::Inline { contains, .. })) => next.extend(contains),
                (Some(State::Failed(_) | State::Inline { .. }), _) | (_, Some(State::Failed(_))) => {}
                _ => {
                    let stored = self.values.range((at, 0)..=(at, u32::MAX));
                    let stored = stored.filter(|(key, _)| self.may_be_claimed(**key));
                    // Of several attempts' values only one counts.
                    next.extend(stored.take(1).flat_map(|(_, refs)| refs.iter().copied()));
                }
            }
        }
        false
    }

    /// O5: with all messages delivered and all tasks ended, only actors that are down are pending.
    pub fn check_waiters(&mut self) {
        for at in 0..self.hosts.len() {
            if !self.hosts[at].alive {
                continue;
            }
            for object in self.hosts[at].handles.clone() {
                let owner = &self.hosts[self.number(object.owner)];
                // As the owner knew it last.
                let stored = match owner.own.state(object) {
                    Some(State::Stored(copy)) => self.values.contains_key(&(object, copy.attempt)),
                    _ => false,
                };
                if !owner.alive && stored && self.is_safe(at, object) {
                    let here = self.hosts[at].own.state(object);
                    let copy = match here {
                        Some(State::Stored(copy)) => *copy,
                        other => panic!("{object} is in a store, and {other:?}"),
                    };
                    assert!(self.values.contains_key(&(object, copy.attempt)), "{object} is not there");
                }
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
    pub fn check_empty(&self) {
        let mut excused = self.leaky.clone();
        let mut next: Vec<ObjectId> = excused.iter().copied().collect();
        while let Some(object) = next.pop() {
            for inner in self.inside.get(&object).into_iter().flatten() {
                if excused.insert(*inner) {
                    next.push(*inner);
                }
            }
        }
        let known: Vec<ObjectId> = self
            .hosts
            .iter()
            .flat_map(|host| (1..=host.seq).map(|seq| TaskId::numbered(host.id, seq).object(0)))
            .collect();
        for host in self.hosts.iter().filter(|host| host.alive) {
            if !self.crashed {
                assert_eq!(host.own.counts(), Counts::default(), "{} has something left", host.id);
            }
            for object in known.iter().filter(|object| !excused.contains(object)) {
                assert_eq!(host.own.state(*object), None, "{} still has {object}", host.id);
            }
            assert_eq!(host.own.counts().unacknowledged, 0, "{} waits for an acknowledgement", host.id);
        }
        for key in self.values.keys() {
            assert!(
                self.orphans.contains(key) && self.hosts[self.number(key.0.owner)].alive
                    || excused.contains(&key.0),
                "{} of attempt {} is stored and never freed",
                key.0,
                key.1
            );
        }
    }
}
