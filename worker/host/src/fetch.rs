//! Finding the bytes of a call's arguments.

use std::{collections::HashMap, sync::Arc};

use mobula_proto::{
    Failure, FailureKind, ObjectId,
    peer::{Argument, Copy, Part},
};
use mobula_store::{Bytes, Object};
use smallvec::SmallVec;

use crate::{codec::Value, runtime::Runtime};

pub(crate) type Given = SmallVec<[Argument; 1]>;
type Values = SmallVec<[Value; 1]>;

/// The arguments, where all came inside the message; else they come back.
pub(crate) fn here(arguments: Given) -> Result<Result<Values, Failure>, Given> {
    if arguments.iter().flat_map(parts).any(|part| matches!(part, Part::Stored { .. })) {
        return Err(arguments);
    }
    Ok(assemble(arguments, &HashMap::new()))
}

/// What of the arguments lies in a store.
pub(crate) fn stored(arguments: &Given) -> impl Iterator<Item = (ObjectId, Copy)> {
    arguments.iter().flat_map(parts).filter_map(|part| match part {
        Part::Stored { object, copy } => Some((*object, *copy)),
        Part::Inline(_) => None,
    })
}

/// How many bytes of the arguments lie in a store.
pub(crate) fn stored_bytes(arguments: &Given) -> u64 {
    // One that is there twice is read once.
    stored(arguments).collect::<HashMap<_, _>>().into_values().map(|copy| copy.bytes).sum()
}

/// Makes every argument readable here, then calls `ready` (on whichever thread brought the last). `ahead`: the call could
/// not start yet if they were here.
pub(crate) fn all(
    runtime: &Arc<Runtime>,
    arguments: Given,
    ahead: bool,
    ready: impl FnOnce(&Arc<Runtime>, Result<Values, Failure>) + Send + 'static,
) {
    let wanted = stored(&arguments).collect();
    let weak = Arc::downgrade(runtime);
    runtime.open_all(wanted, ahead, move |opened| {
        if let Some(runtime) = weak.upgrade() {
            ready(&runtime, opened.and_then(|stored| assemble(arguments, &stored)));
        }
    });
}

fn parts(argument: &Argument) -> &[Part] {
    match argument {
        Argument::One(part) => std::slice::from_ref(part),
        Argument::List(parts) => parts,
    }
}

fn assemble(arguments: Given, stored: &HashMap<ObjectId, Bytes>) -> Result<Values, Failure> {
    let one = |part: Part| {
        let parsed = match part {
            Part::Inline(blob) => Object::from_message(blob),
            Part::Stored { object, .. } => match stored.get(&object) {
                Some(bytes) => Object::parse(bytes.clone()),
                None => {
                    let message = format!("object {object} was not fetched");
                    return Err(Failure::new(FailureKind::ObjectLost, message));
                }
            },
        };
        parsed.map_err(|error| Failure::new(FailureKind::Codec, error.to_string()))
    };
    let values = arguments.into_iter().map(|argument| {
        Ok(match argument {
            Argument::One(part) => Value::One(one(part)?),
            Argument::List(parts) => Value::List(parts.into_iter().map(one).collect::<Result<_, Failure>>()?),
        })
    });
    values.collect()
}
