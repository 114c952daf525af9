//! What calls are given: it is final before they are sent (C-1), and is found or made again where it is lost.

use mobula_proto::{
    Failure, FailureKind, ObjectId,
    peer::{Argument, Copy, Part, State},
};
use smallvec::SmallVec;

use super::{ARGUMENT_BYTES_MAX, Action, Core, Input, Kind, Phase, Spec};

/// What is known of a call's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Some are not final.
    NotAll,
    /// All are final, and at least one has failed.
    Failed,
    /// All are final.
    All,
}

impl Core {
    /// Whether all of a call's arguments are final; else it waits for the others from now on. To be asked whenever it is about
    /// to go on: what lay in a store that is gone meanwhile is being made again. It waits for none yet.
    pub(super) fn has_arguments(&mut self, seq: u64) -> bool {
        self.given(seq) != Given::NotAll
    }

    /// [`Self::has_arguments`], and whether it can start with them.
    pub(super) fn given(&mut self, seq: u64) -> Given {
        let Some(task) = self.tasks.get_mut(&seq) else { return Given::NotAll };
        debug_assert_eq!(task.missing, 0, "it would be counted twice among the dependents");
        let mut given = Given::All;
        for dependency in task.spec.dependencies() {
            match self.objects.state(dependency) {
                Some(State::Pending) => {
                    task.missing += 1;
                    self.dependents.entry(dependency).or_default().push(seq);
                    self.objects.want(dependency, &mut self.effects);
                }
                Some(State::Failed(_)) => given = Given::Failed,
                Some(State::Inline { .. } | State::Stored(_) | State::Actor { .. }) | None => {}
            }
        }
        if task.missing > 0 {
            task.phase = Phase::Waiting;
            given = Given::NotAll;
        }
        given
    }

    /// A task or a construction whose arguments are final and of which this is wrong fails. What it gave before it was to
    /// run again is not made again, since it would fail in the same way each time. Its class's key, which wants
    /// [`Self::pump`]ing where that is not being done.
    pub(super) fn cannot_start(&mut self, seq: u64, failure: &Failure, out: &mut Vec<Action>) -> Option<u32> {
        let title = self.tasks.get(&seq)?.spec.title(self.ids.task(seq));
        self.end(seq, failure.cause_of(&title), out)
    }

    /// A task or a construction has not started, since these of its arguments are not where they were said to lie: it waits
    /// until they are found or made again, which costs it no attempt. Each further time some copy was lost, so it is not
    /// for ever.
    pub(super) fn on_lost_arguments(&mut self, seq: u64, lost: &[(ObjectId, Copy)], out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get(&seq) else { return };
        if task.cancelled {
            let failure = Failure::new(FailureKind::Cancelled, "it was cancelled before it started");
            return self.conclude(seq, failure, out);
        }
        if !matches!(task.spec.kind, Kind::Task { .. } | Kind::Construct { .. }) {
            let failure = Failure::new(
                FailureKind::Internal,
                "a call that needs no lease came back for its arguments, which its executor should have asked for",
            );
            return self.conclude(seq, failure, out);
        }
        for (object, copy) in lost {
            self.objects.lost(*object, copy, &mut self.effects);
        }
        self.give_slot_back(seq);
        self.enqueue(seq, true, out);
    }

    /// What to send of a call's inputs, where all are final and have values.
    pub(super) fn arguments(&self, spec: &Spec) -> Result<SmallVec<[Argument; 1]>, Failure> {
        let part = |object: &ObjectId| match self.objects.state(*object) {
            Some(State::Inline { bytes, .. }) => Ok(Part::Inline(bytes.clone())),
            Some(State::Stored(copy)) => Ok(Part::Stored { object: *object, copy: *copy }),
            Some(State::Failed(failure)) => Err((**failure).clone()),
            Some(State::Actor { .. } | State::Pending) | None => {
                Err(Failure::new(FailureKind::ObjectFreed, format!("object {object} has no value")))
            }
        };
        // What each takes in the message, and what small values in lists add.
        let mut bytes = 0;
        let mut element = |object: &ObjectId| {
            let part = part(object)?;
            bytes += size_of::<Part>() + if let Part::Inline(blob) = &part { blob.len() } else { 0 };
            Ok(part)
        };
        let arguments = spec
            .inputs
            .iter()
            .map(|input| {
                Ok(match input {
                    Input::Value(bytes) => Argument::One(Part::Inline(bytes.clone())),
                    Input::Ref(object) => Argument::One(part(object)?),
                    Input::List(objects) => {
                        Argument::List(objects.iter().map(&mut element).collect::<Result<_, _>>()?)
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        if bytes > ARGUMENT_BYTES_MAX {
            return Err(Failure::new(
                FailureKind::Limit,
                format!(
                    "the lists of refs given to it make a message of {bytes} bytes, and at most {ARGUMENT_BYTES_MAX} are allowed: give fewer refs, or refs to fewer and larger values"
                ),
            ));
        }
        Ok(arguments)
    }
}
