//! What hosts of other jobs may say: what one job may ask of another, about what they were told of. Names of this host's own
//! objects are compared here, since it knows those by their numbers; names of others it looks up with their keys.

use mobula_proto::{
    Names, ObjectId,
    peer::{Message, Target},
};

/// Whether a host of another job may send this to the host whose names these are.
pub(crate) fn may(names: &Names, message: &Message) -> bool {
    let object = |object: &ObjectId| names.is_true(object.task());
    match message {
        Message::Run(call) => matches!(call.target, Target::Method { .. }),
        Message::RunStream(stream) => matches!(stream.call.target, Target::Method { .. }),
        Message::Resolve { object: of }
        | Message::Borrow { object: of, .. }
        | Message::Return { object: of, .. }
        | Message::Lost { object: of, .. } => object(of),
        Message::Kill { actor } | Message::Room { actor, .. } => names.is_true(*actor),
        Message::NoRoom { task, .. } | Message::Expired { task, .. } => names.is_true(*task),
        Message::Done(done) => names.is_true(done.task) && done.retained.iter().all(object),
        Message::Item(item) => names.is_true(item.task),
        Message::Consumed { .. }
        | Message::Cancel { .. }
        | Message::Resolved { .. }
        | Message::Borrowed { .. }
        | Message::Took { .. }
        | Message::WantRoom { .. }
        | Message::Piece { .. } => true,
        Message::Terminate { .. }
        | Message::Retire { .. }
        | Message::Retired { .. }
        | Message::Recall { .. }
        | Message::Recalled { .. }
        | Message::Limits { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::{
        FailureKind, HostId, JobId, NodeId, TaskId,
        peer::{Copy, Done, Outcome},
    };

    use super::*;

    #[test]
    fn strangers_are_heard_only_of_what_they_can_name() {
        let me = HostId { node: NodeId::EMBEDDED, seq: 1 };
        let names = Names::new(me);
        let copy = Copy { node: me.node, bytes: 1, attempt: 1, job: JobId { number: 1 } };
        let failure = mobula_proto::Failure::new(FailureKind::Cancelled, "made up");
        let done = |task: TaskId, retained| {
            let outcome = Outcome::Failed(Box::new(failure.clone()));
            Message::Done(Done { task, attempt: 1, outcome, retained, nanos: 0 })
        };
        let about = |task: TaskId| {
            let object = task.object(0);
            [
                Message::Resolve { object },
                Message::Borrow { object, token: 1 },
                Message::Return { object, count: 1 },
                Message::Lost { object, copy },
                Message::Kill { actor: task },
                Message::Room { actor: task, incarnation: 1, calls: 1 },
                Message::NoRoom { task, inbox: 1 },
                Message::Expired { task, attempt: 1, failure: Box::new(failure.clone()) },
                done(task, vec![]),
                done(names.task(1), vec![object]),
            ]
        };
        for told in about(names.task(7)) {
            assert!(may(&names, &told), "{told:?}");
        }
        for guess in [TaskId::numbered(me, 7), TaskId { seq: 8, ..names.task(7) }] {
            for guessed in about(guess) {
                assert!(!may(&names, &guessed), "{guessed:?}");
            }
        }
        // Nor do they end actors for their owners, whatever they were told.
        assert!(!may(&names, &Message::Terminate { actor: names.task(7), incarnation: 1 }));
    }
}
