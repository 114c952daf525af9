//! Values to bytes and back.
//!
//! A value becomes a small rkyv archive plus the raw buffers of its tensors beside it
//! ([`mobula_store::layout`]). Refs inside a value are collected while it is encoded, and received while it is
//! decoded, so that their owners know who holds them without the author doing anything. Both use a
//! thread-local context, since rkyv's traits have no place for ours.

use std::{cell::RefCell, sync::Arc, thread::LocalKey};

use mobula_ownership::Via;
use mobula_proto::{
    Failure, FailureKind, ObjectId,
    peer::{CONTAINS_MAX, Copy},
    wire,
};
use mobula_store::{Bytes, Encoded, Object, layout};
use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};

use smallvec::SmallVec;

use crate::{context, runtime::Runtime};

/// What can be an argument, a result, or be `put`: everything that derives `#[mobula::data]`, and what is made of
/// numbers, strings, tuples, vectors, options, maps, tensors, refs and actor handles.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot cross to another process",
    label = "this type is not `mobula::Data`",
    note = "put `#[mobula::data]` on the struct or enum; wrap a type that only offers serde in `mobula::Serde`; closures, trait objects and references cannot be sent"
)]
pub trait Data: private::Bounds {}

impl<T: private::Bounds> Data for T {}

mod private {
    use super::*;

    pub trait Bounds:
        Archive<
            Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                          + Deserialize<Self, HighDeserializer<rancor::Error>>,
        > + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
        + Sized
        + Send
        + 'static
    {
    }

    impl<T> Bounds for T where
        T: Archive<
                Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                              + Deserialize<Self, HighDeserializer<rancor::Error>>,
            > + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
            + Sized
            + Send
            + 'static
    {
    }
}

/// Most refs inside one value, and inside all that a call returns together; a stream's items are counted one by one.
pub const REFS_MAX: usize = CONTAINS_MAX;

/// Fails where a value holds, or values hold together, more refs than [`REFS_MAX`].
pub(crate) fn check_refs(count: usize) -> Result<(), Failure> {
    if count <= REFS_MAX {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Limit,
        format!(
            "{count} refs are inside a value, and at most {REFS_MAX} may be: put parts of it, and pass refs to those"
        ),
    ))
}

/// An encoded value and the refs inside it, which stay alive as long as this does.
#[derive(Default)]
pub struct Output {
    /// The value.
    pub encoded: Encoded,
    /// The refs inside it.
    pub refs: Held,
}

/// What a call returned: one value as a rule.
pub type Results = SmallVec<[Output; 1]>;

/// References that are given back when this is dropped.
#[derive(Default)]
pub struct Held {
    runtime: Option<Arc<Runtime>>,
    ids: Vec<ObjectId>,
}

impl Held {
    /// The objects.
    pub fn ids(&self) -> &[ObjectId] {
        &self.ids
    }

    /// Takes over what another holds.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        if self.ids.is_empty() {
            std::mem::swap(self, &mut other);
        } else {
            self.ids.append(&mut other.ids);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(runtime) = &self.runtime {
            for object in self.ids.drain(..) {
                runtime.drop_ref(object);
            }
        }
    }
}

#[derive(Default)]
struct Collector {
    held: Held,
    buffers: Vec<Bytes>,
}

struct Source {
    object: Object,
    via: Via,
}

thread_local! {
    static COLLECTORS: RefCell<Vec<Collector>> = const { RefCell::new(Vec::new()) };
    static SOURCES: RefCell<Vec<Source>> = const { RefCell::new(Vec::new()) };
}

/// What lies on top of a thread's stack for as long as this lives: a value's own code may panic, and whoever encodes or
/// decodes next on the thread must find nothing of it.
struct Pushed<T: 'static> {
    stack: &'static LocalKey<RefCell<Vec<T>>>,
    below: usize,
}

impl<T> Pushed<T> {
    fn new(stack: &'static LocalKey<RefCell<Vec<T>>>, top: T) -> Self {
        let below = stack.with_borrow_mut(|stack| {
            stack.push(top);
            stack.len() - 1
        });
        Self { stack, below }
    }

    fn take(&self) -> Option<T> {
        self.stack.with_borrow_mut(|stack| (stack.len() > self.below).then(|| stack.pop()).flatten())
    }
}

impl<T> Drop for Pushed<T> {
    fn drop(&mut self) {
        // Let go of outside of the stack, since that may give refs back.
        drop(self.take());
    }
}

/// Encodes a value.
pub fn encode<T: Data>(value: &T) -> Result<Output, Failure> {
    let pushed = Pushed::new(&COLLECTORS, Collector::default());
    let encoded = wire::encode_with(value, layout::HEADER_BYTES, |front| {
        let Collector { held, buffers } = pushed.take().unwrap_or_default();
        (Encoded::new(front, buffers), held)
    });
    let (encoded, refs) = encoded.map_err(|error| codec_failure::<T>("encoded", &error.to_string()))?;
    check_refs(refs.ids.len())?;
    Ok(Output { encoded, refs })
}

/// Memory of the store in which an object is built: `meta` is what its archive holds, and refers to its one buffer, of
/// so many bytes, as number 0. `fill` writes that buffer, whose contents are unspecified before. [`encode`] of a value
/// with the same archive and the buffer returned is then kept where it lies.
///
/// # Errors
/// `StoreFull` and `ObjectTooLarge`, as when a value is put.
pub fn build<T: wire::Message>(
    runtime: &Arc<Runtime>,
    meta: &T,
    buffer_bytes: u64,
    fill: impl FnOnce(&mut [u8]),
) -> Result<Bytes, Failure> {
    let front = wire::encode_with(meta, layout::HEADER_BYTES, |front| layout::front_of(front, buffer_bytes))
        .map_err(|error| codec_failure::<T>("encoded", &error.to_string()))?;
    let mut block = runtime.store().allocate(runtime, buffer_bytes.saturating_add(front.len() as u64))?;
    let (head, buffer) = block.as_mut_slice().split_at_mut(front.len());
    head.copy_from_slice(&front);
    fill(buffer);
    let bytes = block.seal().bytes();
    bytes.slice(front.len()..).map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
}

/// Decodes a value out of `object`; `via` says what keeps the refs inside it alive meanwhile.
pub fn decode<T: Data>(object: &Object, via: Via) -> Result<T, Failure> {
    let _pushed = Pushed::new(&SOURCES, Source { object: object.clone(), via });
    rkyv::from_bytes::<T, rancor::Error>(object.archive())
        .map_err(|error| codec_failure::<T>("decoded", &error.to_string()))
}

fn codec_failure<T>(what: &str, detail: &str) -> Failure {
    let line = detail.lines().next().unwrap_or_default();
    Failure::new(
        FailureKind::Codec,
        format!("a value of type {} could not be {what}: {line}", std::any::type_name::<T>()),
    )
}

/// Why a ref or tensor cannot be encoded or decoded where it is tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A ref or tensor is encoded by something other than [`encode`], or decoded by something other than
    /// [`decode`]. Nobody would count who holds it; so it is refused, and nothing is counted.
    #[error(
        "refs, actor handles and tensors travel only as arguments, results or objects of a cluster: pass the value \
         that holds them, or its `Packed` form, to a task or to `put`, rather than encode it [{}]",
        FailureKind::Codec.code()
    )]
    OutsideContext,
    /// There is no cluster.
    #[error("there is no cluster on this thread: start one, or use `#[mobula::main]`")]
    NoCluster,
    /// The archive speaks of a buffer that is not there.
    #[error("the object has no buffer {0}")]
    NoBuffer(u32),
}

/// Called while a ref is encoded: takes a reference for as long as the encoded value lives. Where the ref's own value lies,
/// if it is known to lie in a store.
pub fn collect_ref(runtime: &Arc<Runtime>, object: ObjectId) -> Result<Option<Copy>, Error> {
    COLLECTORS.with_borrow_mut(|stack| {
        let collector = stack.last_mut().ok_or(Error::OutsideContext)?;
        let place = runtime.add_ref(object);
        collector.held.runtime.get_or_insert_with(|| runtime.clone());
        collector.held.ids.push(object);
        Ok(place)
    })
}

/// Called while a tensor is encoded: puts its bytes beside the archive, and says under which number.
pub fn collect_buffer(bytes: Bytes) -> Result<u32, Error> {
    COLLECTORS.with_borrow_mut(|stack| {
        let collector = stack.last_mut().ok_or(Error::OutsideContext)?;
        collector.buffers.push(bytes);
        Ok(collector.buffers.len() as u32 - 1)
    })
}

/// Called while a ref is decoded: this process holds one more reference to it, which the caller must give back.
/// `place`: where its value lies, as far as whoever wrote the ref knew.
pub fn receive_ref(object: ObjectId, place: Option<Copy>) -> Result<Arc<Runtime>, Error> {
    let via =
        SOURCES.with_borrow(|stack| stack.last().map(|source| source.via)).ok_or(Error::OutsideContext)?;
    let runtime = context::runtime().ok_or(Error::NoCluster)?;
    runtime.receive(object, via, place);
    if matches!(via, Via::Argument)
        && let Some(task) = context::task()
    {
        task.received(object);
    }
    Ok(runtime)
}

/// Called while a tensor is decoded: its bytes, where they lie.
pub fn receive_buffer(number: u32) -> Result<Bytes, Error> {
    SOURCES.with_borrow(|stack| {
        let source = stack.last().ok_or(Error::OutsideContext)?;
        source.object.buffer(number as usize).map_err(|_| Error::NoBuffer(number))
    })
}

/// One argument as it arrived.
#[derive(Clone)]
pub enum Value {
    /// A value.
    One(Object),
    /// The elements of a vector.
    List(Vec<Object>),
}

/// The arguments of a call, in order.
pub struct Arguments {
    values: smallvec::IntoIter<[Value; 1]>,
}

impl Arguments {
    /// These values.
    pub fn new(values: SmallVec<[Value; 1]>) -> Self {
        Self { values: values.into_iter() }
    }

    /// The next argument, whatever it is.
    pub fn next_value(&mut self) -> Result<Value, Failure> {
        self.values.next().ok_or_else(|| Failure::new(FailureKind::Codec, "the call has too few arguments"))
    }

    /// The next argument as one object, to be viewed where it lies.
    pub fn next_object(&mut self) -> Result<Object, Failure> {
        match self.next_value()? {
            Value::One(object) => Ok(object),
            Value::List(_) => {
                Err(Failure::new(FailureKind::Codec, "a list was given where one value is expected"))
            }
        }
    }

    /// The next argument, decoded.
    pub fn next_decoded<T: Data>(&mut self) -> Result<T, Failure> {
        decode(&self.next_object()?, Via::Argument)
    }

    /// The next argument as a vector: either one encoded vector or a list of objects.
    pub fn next_list<T: Data>(&mut self) -> Result<Vec<T>, Failure>
    where
        Vec<T>: Data,
    {
        match self.next_value()? {
            Value::One(object) => decode(&object, Via::Argument),
            Value::List(objects) => objects.iter().map(|object| decode(object, Via::Argument)).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
