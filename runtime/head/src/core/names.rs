//! Who is called what.

use std::collections::BTreeMap;

use mobula_proto::{
    Failure, FailureKind, JobId, TaskId,
    host::Answer,
    resource::{NAME_BYTES_MAX, check_name},
};
use mobula_scheduler::Millis;
use tracing::info;

use super::{Asker, Core, NAMES_MAX};
use crate::state::Record;

/// A namespace and a name in it.
pub(super) type Key = (String, String);

#[derive(Debug)]
pub(super) struct Name {
    pub actor: TaskId,
    pub actor_type: String,
    /// The job that claimed it; `None` for what was on disk when the head started.
    job: Option<JobId>,
    /// Outlives its job's driver, and is on disk.
    detached: bool,
}

/// The names, and when those found on disk at the start are given up.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub names: BTreeMap<Key, Name>,
    recovery_ends: Option<Millis>,
}

impl Directory {
    pub fn recover(&mut self, key: Key, actor: TaskId, actor_type: String) {
        self.names.insert(key, Name { actor, actor_type, job: None, detached: true });
    }

    pub fn recovery_ends(&mut self, at: Millis) {
        self.recovery_ends = (!self.names.is_empty()).then_some(at);
    }

    pub fn deadline(&self) -> Option<Millis> {
        self.recovery_ends
    }
}

fn refuse(message: impl Into<String>) -> Answer {
    Answer::Failed(Failure::new(FailureKind::ActorName, message))
}

impl Core {
    /// The full key of a name, or why it cannot be one. The empty namespace is the asking job's own.
    pub(super) fn name_key(&self, asker: Asker, namespace: String, name: String) -> Result<Key, Answer> {
        check_name(&name).map_err(|e| refuse(e.to_string()))?;
        if namespace.is_empty() {
            let own = self.jobs.get(&asker.job).map(|entry| entry.job.namespace.clone());
            return Ok((own.unwrap_or_else(|| asker.job.to_string()), name));
        }
        check_name(&namespace).map_err(|e| refuse(e.to_string()))?;
        Ok((namespace, name))
    }

    pub(super) fn name_claim(
        &mut self,
        asker: Asker,
        namespace: String,
        name: String,
        actor: TaskId,
        actor_type: String,
    ) {
        let answer = self
            .name_key(asker, namespace, name)
            .map_or_else(|refusal| refusal, |key| self.claim(asker, key, actor, actor_type));
        self.answer(asker, answer);
    }

    fn claim(&mut self, asker: Asker, key: Key, actor: TaskId, actor_type: String) -> Answer {
        if let Some(held) = self.names.names.get(&key) {
            return match held.actor == actor {
                true => Answer::Done,
                false => Answer::Actor { actor: held.actor, actor_type: held.actor_type.clone() },
            };
        }
        if self.names.names.len() >= NAMES_MAX {
            let text = format!("{NAMES_MAX} actors have names, the most that may");
            return Answer::Failed(Failure::new(FailureKind::Limit, text));
        }
        if actor_type.len() > 4 * NAME_BYTES_MAX {
            return refuse(format!("the actor's type has a name longer than {} bytes", 4 * NAME_BYTES_MAX));
        }
        if self.link_of(actor.owner.node).is_none() {
            return refuse(format!("the actor's owner {} is not alive", actor.owner));
        }
        let detached = self.jobs.get(&asker.job).is_some_and(|entry| entry.steward() == Some(actor.owner));
        if detached {
            let (namespace, name) = key.clone();
            self.persist(Record::Name { namespace, name, actor, actor_type: actor_type.clone() });
        }
        self.names.names.insert(key, Name { actor, actor_type, job: Some(asker.job), detached });
        Answer::Done
    }

    pub(super) fn name_find(&mut self, asker: Asker, namespace: String, name: String) {
        let answer = self.name_key(asker, namespace, name).map_or_else(
            |refusal| refusal,
            |key| match self.names.names.get(&key) {
                Some(held) => Answer::Actor { actor: held.actor, actor_type: held.actor_type.clone() },
                None => Answer::NoSuchName,
            },
        );
        self.answer(asker, answer);
    }

    pub(super) fn name_drop(&mut self, asker: Asker, namespace: String, name: String, actor: TaskId) {
        let key = match self.name_key(asker, namespace, name) {
            Ok(key) => key,
            Err(refusal) => return self.answer(asker, refusal),
        };
        match self.names.names.get(&key) {
            None => self.answer(asker, Answer::NoSuchName),
            Some(held) if held.actor != actor => {
                let text = format!("{} is the name of another actor, {}", key.1, held.actor);
                self.answer(asker, refuse(text));
            }
            Some(_) => {
                let job = self.forget_name(&key);
                self.answer(asker, Answer::Done);
                if let Some(job) = job {
                    self.end_if_forgotten(job);
                }
            }
        }
    }

    fn forget_name(&mut self, key: &Key) -> Option<JobId> {
        let gone = self.names.names.remove(key)?;
        if gone.detached {
            self.persist(Record::NameGone { namespace: key.0.clone(), name: key.1.clone() });
        }
        gone.job
    }

    /// Drops the names of which `gone` is true of job and actor. Names found on disk belong to no job.
    pub(super) fn drop_names(&mut self, gone: impl Fn(JobId, TaskId) -> bool) {
        let none = JobId { number: 0 };
        self.drop_where(|name| gone(name.job.unwrap_or(none), name.actor));
    }

    /// Drops the names of actors on earlier incarnations of a node.
    pub(super) fn drop_names_of_node(&mut self, number: u32, incarnation: u32) {
        self.drop_where(|name| {
            let owner = name.actor.owner.node;
            owner.number == number && owner.incarnation < incarnation
        });
    }

    fn drop_where(&mut self, gone: impl Fn(&Name) -> bool) {
        let keys: Vec<Key> =
            self.names.names.iter().filter(|(_, name)| gone(name)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.forget_name(&key);
        }
    }

    pub(super) fn time_out_names(&mut self) {
        if self.names.recovery_ends.is_some_and(|at| at <= self.now) {
            self.names.recovery_ends = None;
            let before = self.names.names.len();
            self.drop_where(|name| name.job.is_none());
            info!(names = before - self.names.names.len(), "gave up names whose nodes did not come back");
        }
    }

    pub(super) fn has_detached_names(&self, job: JobId) -> bool {
        self.names.names.values().any(|name| name.detached && name.job == Some(job))
    }
}
