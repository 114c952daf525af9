//! Submitting a call.

use std::marker::PhantomData;

use mobula_host::{
    core::{Kind, Spec},
    registry::Function,
};
use mobula_proto::{Failure, HostId, ObjectId};

use crate::{
    ObjectRef, Options,
    argument::{Builder, Holds},
};

/// A call that is being put together. The code that `#[mobula::task]` makes uses it.
pub struct Call<R> {
    function: &'static Function,
    options: Options,
    arguments: Builder,
    mistake: Option<Failure>,
    kind: PhantomData<fn() -> R>,
}

impl<R> Call<R> {
    /// A call of this function.
    pub fn new(function: &'static Function, options: Options) -> Self {
        Self { function, options, arguments: Builder::default(), mistake: None, kind: PhantomData }
    }

    /// One more argument.
    pub fn argument<T>(mut self, argument: impl crate::IntoArgument<T>) -> Self {
        if self.mistake.is_none() {
            self.mistake = argument.add_to(&mut self.arguments).err();
        }
        self
    }

    /// Submits it as a task. Returns at once; a mistake becomes the failure of the ref.
    pub fn submit(self) -> ObjectRef<R> {
        self.submit_as(Kind::Task)
    }

    /// Submits it as a call of this actor.
    pub(crate) fn submit_method(self, actor: ObjectId) -> ObjectRef<R> {
        self.submit_as(Kind::Method { actor })
    }

    /// Submits it as the construction of an actor.
    pub(crate) fn submit_construct(self) -> ObjectRef<R> {
        let restarts = self.options.set().restarts;
        self.submit_as(Kind::Construct { restarts })
    }

    /// Submits it to this very host, which runs it without a lease.
    pub(crate) fn submit_to(self, host: HostId) -> ObjectRef<R> {
        self.submit_as(Kind::Direct { host })
    }

    pub(crate) fn parts(&self) -> (&'static Function, &Builder) {
        (self.function, &self.arguments)
    }

    pub(crate) fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    fn submit_as(self, kind: Kind) -> ObjectRef<R> {
        let runtime = crate::cluster::current_or_stray();
        match self.spec(kind) {
            Ok((spec, held)) => {
                let id = runtime.submit(spec);
                drop(held);
                ObjectRef::adopt(runtime, id)
            }
            Err(failure) => {
                let id = runtime.failed(failure);
                ObjectRef::adopt(runtime, id)
            }
        }
    }

    /// What to submit, and what must live until it is.
    fn spec(self, kind: Kind) -> Result<(Spec, Holds), Failure> {
        let Self { function, options, arguments, mistake, .. } = self;
        let template = match mistake {
            Some(failure) => Err(failure),
            None => options.template(function),
        };
        let template = template.map_err(|failure| failure.of(function.name))?;
        let Builder { inputs, nested, holds, .. } = arguments;
        Ok((Spec { template, kind, inputs, nested }, holds))
    }
}
