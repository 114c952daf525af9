//! What may be given where a task wants a `T`.

use std::sync::Arc;

use mobula_host::{
    codec::{self, Arguments, Data, Held},
    context,
    core::{Input, Spec},
    runtime::Runtime,
    site::Site,
};
use mobula_proto::{Failure, ObjectId, wire::INLINE_BYTES_MAX};
use smallvec::SmallVec;

use crate::{ObjectRef, View, object::Raw};

/// Arguments on their way into a call.
#[derive(Default)]
pub struct Builder {
    pub(crate) inputs: SmallVec<[Input; 1]>,
    pub(crate) nested: Vec<ObjectId>,
    inline_bytes: u64,
    pub(crate) holds: Holds,
}

/// References that are kept until a call is submitted, which takes its own.
#[derive(Default)]
pub(crate) struct Holds {
    held: Vec<Held>,
    raws: Vec<Raw>,
}

impl Holds {
    /// Takes over the references that a call held which has come back.
    pub(crate) fn of(runtime: &Arc<Runtime>, spec: &Spec) -> Self {
        let raws = spec.refs().map(|id| Raw { id, runtime: runtime.clone() }).collect();
        Self { held: Vec::new(), raws }
    }
}

impl Builder {
    fn value<T: Data>(&mut self, value: &T) -> Result<(), Failure> {
        let output = codec::encode(value)?;
        let bytes = output.encoded.len();
        let full = || context::runtime().is_some_and(|runtime| runtime.is_inline_full(bytes));
        if self.inline_bytes + bytes > INLINE_BYTES_MAX as u64 || full() {
            let runtime = crate::cluster::current().map_err(Failure::from)?;
            let id = runtime.put_stored(&output, Site::Arguments)?;
            self.inputs.push(Input::Ref(id));
            self.holds.raws.push(Raw { id, runtime });
            return Ok(());
        }
        self.inline_bytes += bytes;
        let encoded = output
            .encoded
            .to_blob()
            .map_err(|error| Failure::new(mobula_proto::FailureKind::Codec, error.to_string()))?;
        self.inputs.push(Input::Value(encoded));
        if !output.refs.ids().is_empty() {
            self.nested.extend_from_slice(output.refs.ids());
            self.holds.held.push(output.refs);
        }
        Ok(())
    }

    fn object<T>(&mut self, object: &ObjectRef<T>) {
        self.inputs.push(Input::Ref(object.raw.id));
        self.holds.raws.push(object.raw.clone());
    }

    fn list<'a, T: 'a>(&mut self, objects: impl Iterator<Item = &'a ObjectRef<T>>) {
        let raws: Vec<Raw> = objects.map(|object| object.raw.clone()).collect();
        self.inputs.push(Input::List(raws.iter().map(|raw| raw.id).collect()));
        self.holds.raws.extend(raws);
    }
}

/// What a call accepts where its function wants a `T`: a `T`, a ref to one, or, for a `Vec<T>`, several refs.
///
/// Refs given so are resolved before the function runs; refs inside values stay refs.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be given where the task or actor wants `{T}`",
    label = "expected a `{T}` or an `ObjectRef` of one",
    note = "closures, trait objects and references cannot be sent: pass a value that derives `#[mobula::data]`, or a ref to it"
)]
pub trait IntoArgument<T> {
    /// Adds the argument to the call.
    #[doc(hidden)]
    fn add_to(self, call: &mut Builder) -> Result<(), Failure>;
}

impl<T: Data> IntoArgument<T> for T {
    fn add_to(self, call: &mut Builder) -> Result<(), Failure> {
        call.value(&self)
    }
}

impl<T: Data> IntoArgument<View<T>> for T {
    fn add_to(self, call: &mut Builder) -> Result<(), Failure> {
        call.value(&self)
    }
}

macro_rules! refs {
    ($($given:ty, $wanted:ty, |$self:ident, $call:ident| $add:expr;)*) => {$(
        impl<T: Data> IntoArgument<$wanted> for $given {
            fn add_to($self, $call: &mut Builder) -> Result<(), Failure> {
                $add;
                Ok(())
            }
        }
    )*};
}

refs! {
    ObjectRef<T>, T, |self, call| call.object(&self);
    &ObjectRef<T>, T, |self, call| call.object(self);
    ObjectRef<T>, View<T>, |self, call| call.object(&self);
    &ObjectRef<T>, View<T>, |self, call| call.object(self);
    Vec<ObjectRef<T>>, Vec<T>, |self, call| call.list(self.iter());
    &Vec<ObjectRef<T>>, Vec<T>, |self, call| call.list(self.iter());
    &[ObjectRef<T>], Vec<T>, |self, call| call.list(self.iter());
}

impl IntoArgument<String> for &str {
    fn add_to(self, call: &mut Builder) -> Result<(), Failure> {
        call.value(&self.to_owned())
    }
}

/// How a function takes an argument out of what arrived.
#[doc(hidden)]
pub trait FromArgument: Sized {
    /// The next argument.
    fn take(arguments: &mut Arguments) -> Result<Self, Failure>;
}

impl<T: Data> FromArgument for T {
    fn take(arguments: &mut Arguments) -> Result<Self, Failure> {
        arguments.next_decoded()
    }
}

impl<T: Data> FromArgument for View<T> {
    fn take(arguments: &mut Arguments) -> Result<Self, Failure> {
        View::new(arguments.next_object()?)
    }
}
