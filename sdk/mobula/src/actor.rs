//! Actors: spawning them, and handles to them.

use std::{
    fmt,
    future::{Future, IntoFuture},
    marker::PhantomData,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use mobula_host::{codec, core::Kind, registry::Function, runtime::Awaited};
use mobula_proto::{
    Failure, FailureKind, ObjectId, TaskId,
    host::{Answer, Question},
    peer::State,
};
use rkyv::{
    Archive, Deserialize, Place, Resolver, Serialize,
    rancor::{Fallible, Source},
};

use crate::{
    Error, ErrorKind, Handle, ObjectRef, Options, Result,
    detached::Made,
    object::{ArchivedRefName, Raw, RefName, Settled},
    task::Call,
};

/// A type whose values live as actors. `#[mobula::actor]` implements it.
pub trait Actor: Send + 'static {
    /// The typed handle, with a method for each of the actor's.
    type Handle: From<ActorHandle> + Deref<Target = ActorHandle> + Clone + Send;
    /// `crate::module::Type`.
    const NAME: &'static str;
}

/// A handle to an actor, which lives while one does, in whichever process. `#[mobula::actor]` makes a typed one
/// around it.
pub struct ActorHandle {
    raw: Raw,
    /// What calls on this very handle change in their options; it does not travel.
    change: Option<Change>,
}

type Change = Arc<dyn Fn(Options) -> Options + Send + Sync>;

impl ActorHandle {
    /// The actor's name in the cluster.
    pub fn id(&self) -> TaskId {
        self.raw.id.task()
    }

    /// Ends it for good, whoever else holds a handle. Calls on their way fail with `ActorDied`. A `new` that still runs is asked
    /// to stop, as a cancelled task is, and keeps its resources until it has returned; where it has a process to itself, that is
    /// ended five seconds later if need be.
    pub fn kill(&self) {
        self.raw.runtime.kill(self.raw.id.task());
    }

    /// Waits, in async code, until a call would not be held up: neither by the budget of unfinished calls nor by calls
    /// of this process that fill up the actor's inbox and wait for room there already. In a call this counts as
    /// waiting for an object. Others may be faster between this and the call, which then is held up all the same.
    pub async fn room(&self) {
        let kind = Kind::Method { actor: self.raw.id };
        let mut awaited: Option<Awaited> = None;
        std::future::poll_fn(|poller| {
            if self.raw.runtime.poll_room(kind, poller.waker()) {
                return Poll::Ready(());
            }
            if awaited.is_none() {
                awaited = Awaited::begin(&self.raw.runtime);
            }
            Poll::Pending
        })
        .await;
    }

    /// Whether it is known here to have ended for good.
    pub fn is_dead(&self) -> bool {
        matches!(self.raw.runtime.state(self.raw.id), Some(State::Failed(_)))
    }

    /// Waits until its constructor has run; fails as the constructor did.
    pub async fn constructed(&self) -> Result<()> {
        Settled::new(self.raw.clone()).await;
        match self.raw.runtime.state(self.raw.id) {
            Some(State::Failed(failure)) => Err((*failure).into()),
            _ => self.raw.runtime.ended().map_or(Ok(()), |failure| Err(failure.into())),
        }
    }

    /// Where it lives, once it does; `None` while it is being made or started again.
    pub fn node(&self) -> Option<mobula_proto::NodeId> {
        match self.raw.runtime.state(self.raw.id) {
            Some(State::Actor { host, .. }) => Some(host.node),
            _ => None,
        }
    }

    #[doc(hidden)]
    pub fn with_options(&self, change: impl Fn(Options) -> Options + Send + Sync + 'static) -> Self {
        Self { raw: self.raw.clone(), change: Some(Arc::new(change)) }
    }

    fn of(raw: Raw) -> Self {
        Self { raw, change: None }
    }

    #[doc(hidden)]
    pub fn call<H: Handle>(&self, function: &'static Function, options: Options) -> MethodCall<H> {
        let options = match &self.change {
            Some(change) => change(options),
            None => options,
        };
        MethodCall { call: Call::new(function, options), actor: self.raw.id }
    }
}

impl Clone for ActorHandle {
    fn clone(&self) -> Self {
        Self { raw: self.raw.clone(), change: self.change.clone() }
    }
}

impl fmt::Debug for ActorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ActorHandle({})", self.raw.id.task())
    }
}

/// A call of a method that is being put together.
#[doc(hidden)]
pub struct MethodCall<H> {
    call: Call<H>,
    actor: ObjectId,
}

impl<H: Handle> MethodCall<H> {
    pub fn argument<T>(self, argument: impl crate::IntoArgument<T>) -> Self {
        Self { call: self.call.argument(argument), actor: self.actor }
    }

    pub fn submit(self) -> H {
        self.call.submit_method(self.actor)
    }
}

impl Archive for ActorHandle {
    type Archived = ArchivedRefName;
    type Resolver = Resolver<RefName>;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        self.raw.name().resolve(resolver, out);
    }
}

impl<S> Serialize<S> for ActorHandle
where
    S: Fallible + ?Sized,
    S::Error: Source,
{
    fn serialize(&self, serializer: &mut S) -> std::result::Result<Self::Resolver, S::Error> {
        codec::collect_ref(&self.raw.runtime, self.raw.id).map_err(S::Error::new)?;
        self.raw.name().serialize(serializer)
    }
}

impl<D> Deserialize<ActorHandle, D> for ArchivedRefName
where
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, deserializer: &mut D) -> std::result::Result<ActorHandle, D::Error> {
        Ok(ActorHandle::of(self.receive(None, deserializer)?))
    }
}

/// An actor that is about to be made: set its options, then await it for a handle.
pub struct Spawn<A: Actor> {
    call: Call<ObjectRef<()>>,
    kind: PhantomData<fn() -> A>,
}

impl<A: Actor> Spawn<A> {
    /// By this constructor.
    #[doc(hidden)]
    pub fn new(function: &'static Function, options: Options) -> Self {
        Self { call: Call::new(function, options), kind: PhantomData }
    }

    #[doc(hidden)]
    pub fn argument<T>(mut self, argument: impl crate::IntoArgument<T>) -> Self {
        self.call = self.call.argument(argument);
        self
    }

    /// Changes its options.
    pub fn options(mut self, change: impl FnOnce(Options) -> Options) -> Self {
        let options = self.call.options();
        *options = change(std::mem::take(options));
        self
    }

    /// A name under which others find it; unique in its namespace.
    pub fn name(self, name: &str) -> Self {
        self.options(|options| options.name(name))
    }

    /// The namespace of its name; the job's own unless set.
    pub fn namespace(self, namespace: &str) -> Self {
        self.options(|options| options.namespace(namespace))
    }

    /// If the name is taken, gives a handle to whoever has it instead of failing.
    pub fn get_or_create(self) -> Self {
        self.options(|options| options.get_or_create(true))
    }

    /// Starts it without waiting for its constructor; calls on the handle wait. A failed constructor fails them.
    /// Not for named actors, whose name must be claimed first: await those.
    pub fn start(self) -> A::Handle {
        A::Handle::from(ActorHandle::of(self.call.submit_construct().raw.clone()))
    }

    async fn finish(mut self) -> Result<A::Handle> {
        let options = self.call.options();
        let (name, set) = (options.take_name(), options.set());
        let namespace = set.namespace.clone();
        let (get_or_create, detached) = (set.get_or_create, set.detached);
        if detached {
            return self.finish_detached(name, get_or_create).await;
        }
        if let (Some(name), true) = (&name, get_or_create)
            && let Some(found) = find::<A>(name, &namespace).await?
        {
            return Ok(found);
        }
        let construction = self.call.submit_construct();
        if let Some(name) = &name {
            let actor = construction.raw.id.task();
            let question = Question::NameClaim {
                namespace: namespace.clone(),
                name: name.clone(),
                actor,
                actor_type: A::NAME.to_owned(),
            };
            match ask(question).await? {
                Answer::Done => construction.raw.runtime.named(construction.raw.id, &namespace, name),
                Answer::Actor { .. } if get_or_create => {
                    // Somebody was faster: this one is given up.
                    construction.raw.runtime.kill(actor);
                    return find::<A>(name, &namespace).await?.ok_or_else(|| no_such(name, &namespace));
                }
                Answer::Actor { actor: holder, .. } => {
                    construction.raw.runtime.kill(actor);
                    return Err(taken(name, holder));
                }
                other => return Err(unexpected(other)),
            }
        }
        let handle = ActorHandle::of(construction.raw.clone());
        handle.constructed().await?;
        Ok(A::Handle::from(handle))
    }
}

impl<A: Actor> Spawn<A> {
    async fn finish_detached(mut self, name: Option<String>, get_or_create: bool) -> Result<A::Handle> {
        let options = self.call.options().clone();
        let name = name.ok_or_else(|| {
            Error::new(
                ErrorKind::ActorName,
                "a detached actor needs a name, under which others find it: `.name(\"…\")`",
            )
        })?;
        if get_or_create && let Some(found) = find::<A>(&name, &options.set().namespace).await? {
            return Ok(found);
        }
        let (function, arguments) = self.call.parts();
        match crate::detached::construct(function, &options, arguments, &name).await? {
            Made::Taken(holder) if !get_or_create => Err(taken(&name, holder)),
            Made::New(_) | Made::Taken(_) => find_actor::<A>(&name, &options.set().namespace).await,
        }
    }

    /// Lives until it is killed, even after its job has ended. Needs a name and a namespace.
    pub fn detached(self) -> Self {
        self.options(|options| options.detached(true))
    }
}

fn taken(name: &str, holder: TaskId) -> Error {
    Error::new(
        ErrorKind::ActorName,
        format!("the name {name:?} is taken by {holder}: use another, or `get_or_create`"),
    )
}

impl<A: Actor> IntoFuture for Spawn<A> {
    type Output = Result<A::Handle>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<A::Handle>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.finish())
    }
}

/// The actor of this name, in the job's own namespace where `namespace` is empty.
pub async fn find_actor<A: Actor>(name: &str, namespace: &str) -> Result<A::Handle> {
    find::<A>(name, namespace).await?.ok_or_else(|| no_such(name, namespace))
}

async fn find<A: Actor>(name: &str, namespace: &str) -> Result<Option<A::Handle>> {
    let question = Question::NameFind { namespace: namespace.to_owned(), name: name.to_owned() };
    match ask(question).await? {
        Answer::NoSuchName => Ok(None),
        Answer::Actor { actor, actor_type } => {
            if actor_type != A::NAME {
                return Err(Error::new(
                    ErrorKind::ActorName,
                    format!("the actor {name:?} is a {actor_type}, not a {}", A::NAME),
                ));
            }
            let runtime = crate::cluster::current()?;
            let id = actor.object(0);
            runtime.borrow(id);
            Ok(Some(A::Handle::from(ActorHandle::of(Raw { id, runtime }))))
        }
        other => Err(unexpected(other)),
    }
}

fn no_such(name: &str, namespace: &str) -> Error {
    let place = if namespace.is_empty() {
        "the job's own namespace".to_owned()
    } else {
        format!("namespace {namespace:?}")
    };
    Error::new(
        ErrorKind::ActorName,
        format!("there is no actor {name:?} in {place}: spawn it with that name first"),
    )
}

pub(crate) fn unexpected(answer: Answer) -> Error {
    match answer {
        Answer::Failed(failure) => failure.into(),
        other => Failure::new(FailureKind::Internal, format!("the head answered {other:?}")).into(),
    }
}

pub(crate) async fn ask(question: Question) -> Result<Answer> {
    let runtime = crate::cluster::current()?;
    let user = runtime.user().clone();
    user.spawn_blocking(move || runtime.ask(question)).await.map_err(|error| {
        Error::new(ErrorKind::Internal, format!("a question to the head was interrupted: {error}"))
    })
}
