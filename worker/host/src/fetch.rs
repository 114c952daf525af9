//! Finding the bytes of a call's arguments.

use std::{collections::HashMap, sync::Arc};

use mobula_proto::{
    Failure, FailureKind, ObjectId,
    peer::{Argument, Copy, Part},
};
use mobula_store::{Bytes, Object};
use smallvec::SmallVec;

use crate::{codec::Value, runtime::Runtime, store::Unopened};

pub(crate) type Given = SmallVec<[Argument; 1]>;
type Values = SmallVec<[Value; 1]>;

/// Arguments that are not readable here.
pub(crate) struct Unread {
    pub(crate) failure: Failure,
    /// Those that are not where they were said to lie, if that is all: their owners can say where they are, or have them made
    /// again.
    pub(crate) lost: Vec<(ObjectId, Copy)>,
    given: Given,
}

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
    given: Given,
    ahead: bool,
    ready: impl FnOnce(&Arc<Runtime>, Result<Values, Unread>) + Send + 'static,
) {
    let wanted: Vec<_> = stored(&given).collect();
    if wanted.is_empty() {
        return ready(runtime, assemble(given, &HashMap::new()).map_err(Unread::from));
    }
    let weak = Arc::downgrade(runtime);
    runtime.open_all(wanted, ahead, move |opened| {
        let Some(runtime) = weak.upgrade() else { return };
        let read = match opened {
            Ok(stored) => assemble(given, &stored).map_err(Unread::from),
            Err(Unopened { failure, lost }) => Err(Unread { failure, lost, given }),
        };
        ready(&runtime, read);
    });
}

/// Has the owners of what was lost find it, or have it made again, and waits for that: the arguments, as they are then.
pub(crate) async fn again(runtime: &Arc<Runtime>, unread: Unread) -> Result<Given, Failure> {
    let Unread { failure, lost, mut given } = unread;
    let found = runtime.find_again(&lost, &failure).await?;
    let parts = given.iter_mut().flat_map(|argument| match argument {
        Argument::One(part) => std::slice::from_mut(part),
        Argument::List(parts) => parts,
    });
    for part in parts {
        if let Part::Stored { object, .. } = part
            && let Some(now) = found.get(object)
        {
            *part = now.clone();
        }
    }
    Ok(given)
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Self {
        Self { failure, lost: Vec::new(), given: Given::new() }
    }
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
