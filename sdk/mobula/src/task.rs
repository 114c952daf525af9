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
    context,
    core::{Kind, Spec},
    registry::Function,
    runtime::{Awaited, Runtime},
};
use mobula_proto::{Failure, FailureKind, HostId, ObjectId};

use crate::{
    Error, Handle, Options,
    argument::{Builder, Holds},
};

/// A call that is being put together. The code that `#[mobula::task]` makes uses it.
pub struct Call<H> {
    function: &'static Function,
    options: Options,
    arguments: Builder,
    mistake: Option<Failure>,
    kind: PhantomData<fn() -> H>,
}

/// A task, submitted by whoever runs here.
fn as_task() -> Kind {
    Kind::Task { is_child: context::is_task() }
}

impl<H: Handle> Call<H> {
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
    pub fn submit(self) -> H {
        self.submit_as(as_task())
    }

    /// Submits it as a task, or hands it back where the budget of unfinished calls is full.
    pub fn try_submit(self) -> Result<H, Refused<H>> {
        let runtime = crate::cluster::current_or_stray();
        match self.spec(as_task()) {
            Ok((spec, holds)) => Refused { runtime, spec, holds, kind: PhantomData }.try_again(),
            Err(failure) => Ok(H::failed(&runtime, failure)),
        }
    }

    /// Submits it as a task as soon as the budget of unfinished calls allows.
    pub fn submit_later(self) -> Submission<H> {
        Submission::new(self.try_submit())
    }

    /// Submits it as a call of this actor.
    pub(crate) fn submit_method(self, actor: ObjectId) -> H {
        self.submit_as(Kind::Method { actor })
    }

    /// Submits it as the construction of an actor.
    pub(crate) fn submit_construct(self) -> H {
        let restarts = self.options.set().restarts;
        self.submit_as(Kind::Construct { restarts })
    }

    /// Submits it to this very host, which runs it without a lease.
    pub(crate) fn submit_to(self, host: HostId) -> H {
        self.submit_as(Kind::Direct { host })
    }

    pub(crate) fn parts(&self) -> (&'static Function, &Builder) {
        (self.function, &self.arguments)
    }

    pub(crate) fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    fn submit_as(self, kind: Kind) -> H {
        let runtime = crate::cluster::current_or_stray();
        match self.spec(kind) {
            Ok((spec, held)) => {
                let returns = spec.template.returns;
                let id = runtime.submit(spec);
                drop(held);
                H::adopt(&runtime, id.task(), returns)
            }
            Err(failure) => H::failed(&runtime, failure),
        }
    }

    /// What to submit, and what must live until it is.
    fn spec(self, kind: Kind) -> Result<(Spec, Holds), Failure> {
        let Self { function, options, arguments, mistake, .. } = self;
        let template = match mistake {
            Some(failure) => Err(failure),
            None => options.template::<H>(function),
        };
        let template = template.map_err(|failure| failure.of(function.name))?;
        let Builder { inputs, nested, holds, .. } = arguments;
        Ok((Spec { template, kind, inputs, nested: nested.into() }, holds))
    }
}

/// A call that was not submitted since the budget of unfinished calls is full ([`crate::Builder::budget`]), or that an
/// actor refused since its inbox was full ([`Handle::take_refused`]): its arguments, encoded, to be submitted later.
pub struct Refused<H> {
    runtime: Arc<Runtime>,
    spec: Spec,
    holds: Holds,
    kind: PhantomData<fn() -> H>,
}

impl<H: Handle> Refused<H> {
    /// The call whose failure is this object, if an actor refused it.
    pub(crate) fn take(runtime: &Arc<Runtime>, object: ObjectId) -> Option<Self> {
        let spec = runtime.take_refused(object, H::is_of)?;
        let holds = Holds::of(runtime, &spec);
        Some(Self { runtime: runtime.clone(), spec, holds, kind: PhantomData })
    }

    /// Tries once more.
    pub fn try_again(self) -> Result<H, Self> {
        let Self { runtime, spec, holds, .. } = self;
        let returns = spec.template.returns;
        match runtime.try_submit(spec) {
            Ok(id) => Ok(H::adopt(&runtime, id.task(), returns)),
            Err(spec) => Err(Self { runtime, spec, holds, kind: PhantomData }),
        }
    }

    /// Submits it as soon as the budget of unfinished calls allows, and as an actor does that holds its callers back. One that
    /// refuses calls is not asked whether it has room: it may refuse this at once again, so wait a while before, best for
    /// the result of another call of it.
    pub fn submit(self) -> Submission<H> {
        Submission::new(Err(self))
    }
}

/// The future of a call's submission; of its ref, that is, not of its result. In a call, who awaits it counts as waiting for
/// an object: what runs meanwhile may be what makes room.
#[must_use = "nothing is submitted before it is awaited, if the budget is full"]
pub struct Submission<H> {
    state: Option<std::result::Result<H, Refused<H>>>,
    /// While there is no room.
    awaited: Option<Awaited>,
}

impl<H> Submission<H> {
    fn new(tried: std::result::Result<H, Refused<H>>) -> Self {
        Self { state: Some(tried), awaited: None }
    }
}

impl<H: Handle> Future for Submission<H> {
    type Output = H;

    fn poll(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<H> {
        let Self { state, awaited } = self.get_mut();
        loop {
            match state.take() {
                Some(Ok(submitted)) => {
                    *awaited = None;
                    return Poll::Ready(submitted);
                }
                Some(Err(refused)) if refused.runtime.poll_room(refused.spec.kind, poller.waker()) => {
                    *state = Some(refused.try_again());
                }
                pending => {
                    if let (Some(Err(refused)), None) = (&pending, &awaited) {
                        *awaited = Awaited::begin(&refused.runtime);
                    }
                    *state = pending;
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<H> fmt::Display for Refused<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.spec.template.name;
        write!(
            f,
            "{name} was not submitted: as many calls as the budget, or its actor's inbox, allows are unfinished; await some, or use `submit`"
        )
    }
}

impl<H> fmt::Debug for Refused<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refused({})", self.spec.template.name)
    }
}

impl<H> std::error::Error for Refused<H> {}

impl<H> From<Refused<H>> for Error {
    fn from(refused: Refused<H>) -> Self {
        Self::new(FailureKind::Limit, refused.to_string())
    }
}
