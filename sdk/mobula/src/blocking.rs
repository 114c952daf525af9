//! Waiting on a plain thread or in a sync task. In async code these are typed errors: await instead.

use std::{
    sync::mpsc::sync_channel,
    time::{Duration, Instant},
};

use mobula_host::{codec::Data, context};
use mobula_proto::FailureKind;
use mobula_store::Object;

use crate::{Error, ObjectRef, Result, object::Raw};

/// All the values, in order; the first failure otherwise.
pub fn get_all<T: Data>(refs: &[ObjectRef<T>]) -> Result<Vec<T>> {
    if let Some(first) = refs.first() {
        let ids: Vec<_> = refs.iter().map(|one| one.raw.id).collect();
        first.raw.runtime.wait(&ids, ids.len(), None)?;
    }
    let Some(first) = refs.first() else { return Ok(Vec::new()) };
    let here = first.raw.runtime.read_all_here(refs.iter().map(|one| one.raw.id));
    let values = refs.iter().zip(here).map(|(one, here)| match here {
        Some(result) => one.decode(result?),
        None => one.decode(read_raw(&one.raw)?),
    });
    values.collect()
}

/// Waits until `count` of the refs are ready or the time is up; gives the positions of the first so many that are
/// (fewer if time ran out), and those of all others, both in order.
pub fn wait<T>(
    refs: &[ObjectRef<T>],
    count: usize,
    timeout: Option<Duration>,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let Some(first) = refs.first() else { return Ok(Default::default()) };
    let ids: Vec<_> = refs.iter().map(|one| one.raw.id).collect();
    let ready = first.raw.runtime.wait(&ids, count, timeout.map(|timeout| Instant::now() + timeout))?;
    Ok(crate::object::split(refs.len(), &ready))
}

pub(crate) fn wait_raw(raws: &[Raw], count: usize, deadline: Option<Instant>) -> Result<()> {
    let Some(first) = raws.first() else { return Ok(()) };
    match raws {
        [one] => first.runtime.wait(&[one.id], count, deadline)?,
        many => first.runtime.wait(&many.iter().map(|raw| raw.id).collect::<Vec<_>>(), count, deadline)?,
    };
    Ok(())
}

pub(crate) fn read_raw(raw: &Raw) -> Result<Object> {
    if context::is_async() {
        return Err(Error::new(
            FailureKind::BlockingInAsync,
            "a blocking read inside async code would stop everything that runs on the same thread: use `.await`",
        ));
    }
    if let Some(result) = raw.runtime.read_here(raw.id) {
        return Ok(result?);
    }
    let (sender, receiver) = sync_channel(1);
    raw.runtime.read(raw.id, move |result| {
        // Nobody listens only if the process is ending.
        let _unwanted = sender.send(result);
    });
    match receiver.recv() {
        Ok(result) => Ok(result?),
        Err(_) => Err(raw
            .runtime
            .ended()
            .map_or_else(|| Error::new(FailureKind::Internal, "the runtime dropped a read"), Error::from)),
    }
}
