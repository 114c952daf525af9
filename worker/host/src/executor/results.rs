//! Sending what a call returned to its caller.

use std::sync::Arc;

use mobula_proto::{
    Failure, FailureKind, HostId, ObjectId,
    host::ToAgent,
    peer::{ARGUMENTS_MAX, Copy, Done, Outcome, Returned, Target, Value},
    wire::INLINE_BYTES_MAX,
};
use smallvec::SmallVec;

use super::{Executor, Header, Run};
use crate::{
    codec::{Held, Results},
    runtime::Runtime,
    site::Site,
};

/// Most bytes of values that a call with several results returns inside its message, but for those of up to
/// [`TINY_BYTES`]: as many as one value may have there, so that the caller's own memory is asked for no more. Further ones
/// go to the store.
const INLINE_BYTES_TOGETHER: u64 = INLINE_BYTES_MAX as u64;
/// Values up to so many bytes always travel inside the message: [`ARGUMENTS_MAX`] of them fit into one.
const TINY_BYTES: u64 = 128;

/// Whether some of these go to the store, where they may have to wait for room.
pub(super) fn are_stored(results: &Results) -> bool {
    results.iter().any(|output| output.encoded.len() > INLINE_BYTES_TOGETHER)
}

impl Executor {
    pub(super) fn send_done(
        &self,
        runtime: &Arc<Runtime>,
        caller: HostId,
        (call, function): (Header, &'static str),
        nanos: u64,
        result: Result<Results, Failure>,
        received: &[ObjectId],
    ) {
        let is_construct = matches!(call.target, Target::Construct { .. });
        let mut contains = Held::default();
        let outcome = match result {
            Ok(_) if is_construct => Outcome::Values(SmallVec::new()),
            Ok(results) => match keep_results(runtime, caller, (call, function), results, &mut contains) {
                Ok(values) => Outcome::Values(values),
                Err(failure) => Outcome::failed(failure),
            },
            Err(failure) => Outcome::failed(failure),
        };
        let done = Done { task: call.task, attempt: call.attempt, outcome, retained: Vec::new(), nanos };
        runtime.reply(caller, done, received, contains);
    }

    /// Gives a call back that has not started, since these of its arguments are lost.
    pub(super) fn give_back(&self, runtime: &Arc<Runtime>, run: &Run, lost: Vec<(ObjectId, Copy)>) {
        self.state.lock().unlist(&run.context);
        let (task, attempt) = (run.call.task, run.call.attempt);
        let done = Done { task, attempt, outcome: Outcome::Lost(lost), retained: Vec::new(), nanos: 0 };
        runtime.reply(run.caller, done, &[], Held::default());
    }
}

/// Keeps each result where it belongs: all of them or, where one cannot be kept, none.
fn keep_results(
    runtime: &Arc<Runtime>,
    caller: HostId,
    (call, function): (Header, &'static str),
    results: Results,
    contains: &mut Held,
) -> Result<SmallVec<[Returned; 1]>, Failure> {
    if results.len() > ARGUMENTS_MAX {
        return Err(Failure::new(
            FailureKind::Limit,
            format!(
                "it returned {} values, and a task may return {ARGUMENTS_MAX}: return a stream, or larger values",
                results.len()
            ),
        ));
    }
    crate::codec::check_refs(results.iter().map(|output| output.refs.ids().len()).sum())?;
    let several = results.len() > 1;
    let mut inline = 0;
    let mut kept: SmallVec<[Returned; 1]> = SmallVec::with_capacity(results.len());
    for (index, output) in results.into_iter().enumerate() {
        let object = call.task.object(index as u32);
        let bytes = output.encoded.len();
        let value = if several && bytes > TINY_BYTES && inline + bytes > INLINE_BYTES_TOGETHER {
            runtime.keep_stored(object, call.attempt, &output, Site::Results(function))
        } else {
            runtime.keep_result_for(caller, object, call.attempt, &output, Site::Results(function))
        };
        match value {
            Ok(value) => {
                if matches!(value, Value::Inline(_)) {
                    inline += bytes;
                }
                kept.push(Returned { value, contains: output.refs.ids().to_vec() });
                contains.absorb(output.refs);
            }
            Err(failure) => {
                for (index, returned) in kept.into_iter().enumerate() {
                    if let Value::Stored(copy) = returned.value {
                        let object = call.task.object(index as u32);
                        runtime.tell(ToAgent::Decline { object, copy });
                    }
                }
                return Err(failure);
            }
        }
    }
    Ok(kept)
}
