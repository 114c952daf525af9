//! Waiting on a plain thread or in a sync task. In async code these are typed errors: await instead.

use std::time::{Duration, Instant};

use mobula_host::codec::Data;
use mobula_store::Object;

use crate::{ObjectRef, Result, object::Raw};

/// All the values, in order; the first failure otherwise.
pub fn get_all<T: Data>(refs: &[ObjectRef<T>]) -> Result<Vec<T>> {
    let Some(first) = refs.first() else { return Ok(Vec::new()) };
    let ids: Vec<_> = refs.iter().map(|one| one.raw.id).collect();
    first.raw.runtime.wait(&ids, ids.len(), None)?;
    let mut values = Vec::with_capacity(refs.len());
    while values.len() < refs.len() {
        for object in first.raw.runtime.read_some(&ids[values.len()..])? {
            values.push(refs[values.len()].decode(object?)?);
        }
    }
    Ok(values)
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
    let ready = first.raw.runtime.wait(
        &ids,
        count,
        timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
    )?;
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
    if let Some(result) = raw.runtime.read_here(raw.id) {
        return Ok(result?);
    }
    let mut objects = raw.runtime.read_some(&[raw.id])?;
    // One for each.
    Ok(objects.remove(0)?)
}
