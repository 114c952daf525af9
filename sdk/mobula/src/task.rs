//! Submitting a call.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use mobula_host::{
    core::{Kind, Spec},
    registry::Function,
    runtime::Runtime,
};
use mobula_proto::{Failure, FailureKind, HostId, ObjectId};

use crate::{
    Error, ObjectRef, Options,
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

    /// Submits it as a task, or hands it back where the budget of unfinished calls is full.
    pub fn try_submit(self) -> Result<ObjectRef<R>, Refused<R>> {
        let runtime = crate::cluster::current_or_stray();
        match self.spec(Kind::Task) {
            Ok((spec, holds)) => Refused { runtime, spec, holds, kind: PhantomData }.try_again(),
            Err(failure) => {
                let id = runtime.failed(failure);
                Ok(ObjectRef::adopt(runtime, id))
            }
        }
    }

    /// Submits it as a task as soon as the budget of unfinished calls allows.
    pub fn submit_later(self) -> Submission<R> {
        Submission(Some(self.try_submit()))
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

/// A call that was not submitted since the budget of unfinished calls is full ([`crate::Builder::budget`]), or that an
/// actor refused since its inbox was full ([`ObjectRef::take_refused`]): its arguments, encoded, to be submitted later.
pub struct Refused<R> {
    runtime: Arc<Runtime>,
    spec: Spec,
    holds: Holds,
    kind: PhantomData<fn() -> R>,
}

impl<R> Refused<R> {
    /// The call whose failure is this object, if an actor refused it.
    pub(crate) fn take(runtime: &Arc<Runtime>, object: ObjectId) -> Option<Self> {
        let spec = runtime.take_refused(object)?;
        let holds = Holds::of(runtime, &spec);
        Some(Self { runtime: runtime.clone(), spec, holds, kind: PhantomData })
    }

    /// Tries once more.
    pub fn try_again(self) -> Result<ObjectRef<R>, Self> {
        let Self { runtime, spec, holds, .. } = self;
        match runtime.try_submit(spec) {
            Ok(id) => Ok(ObjectRef::adopt(runtime, id)),
            Err(spec) => Err(Self { runtime, spec, holds, kind: PhantomData }),
        }
    }

    /// Submits it as soon as there is room.
    pub fn submit(self) -> Submission<R> {
        Submission(Some(Err(self)))
    }
}

/// The future of a call's submission; of its ref, that is, not of its result.
#[must_use = "nothing is submitted before it is awaited, if the budget is full"]
pub struct Submission<R>(Option<std::result::Result<ObjectRef<R>, Refused<R>>>);

impl<R> Future for Submission<R> {
    type Output = ObjectRef<R>;

    fn poll(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<ObjectRef<R>> {
        let state = &mut self.get_mut().0;
        loop {
            match state.take() {
                Some(Ok(submitted)) => return Poll::Ready(submitted),
                Some(Err(refused)) if refused.runtime.poll_room(refused.spec.kind, poller.waker()) => {
                    *state = Some(refused.try_again());
                }
                pending => {
                    *state = pending;
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<R> fmt::Display for Refused<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.spec.template.name;
        write!(
            f,
            "{name} was not submitted: as many calls as the budget, or its actor's inbox, allows are unfinished; await some, or use `submit`"
        )
    }
}

impl<R> fmt::Debug for Refused<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refused({})", self.spec.template.name)
    }
}

impl<R> std::error::Error for Refused<R> {}

impl<R> From<Refused<R>> for Error {
    fn from(refused: Refused<R>) -> Self {
        Self::new(FailureKind::Limit, refused.to_string())
    }
}
