//! Actors that outlive their job.
//!
//! Whoever constructs an actor owns it, and the driver that wants a detached one will be gone. So each job that
//! has any gets a *steward*: one more host of its binary, which lives until the last of them is killed. The
//! driver sends it what to construct; from then on the ordinary rules hold.

use std::sync::Arc;

use mobula_host::{
    core::{Input, Kind, Nested, Spec, Template},
    registry::Function,
};
use mobula_proto::{
    Blob, Failure, FailureKind, TaskId,
    host::{Answer, Question},
    limits::Limits,
    peer::State,
    resource::Class,
};

use crate::{
    Error, ObjectRef, Options, Result,
    actor::{ask, unexpected},
    argument::Builder,
    object::{Raw, Settled},
    task::Call,
};

/// What a steward constructs.
#[crate::data]
pub(crate) struct Wish {
    function: u64,
    actor_type: String,
    class: Class,
    restarts: u32,
    limits: Option<Limits>,
    inputs: Vec<Vec<u8>>,
    name: String,
    namespace: String,
}

/// What became of it.
#[crate::data]
pub(crate) enum Made {
    /// It lives under its name.
    New(TaskId),
    /// Somebody has the name.
    Taken(TaskId),
}

/// Constructs an actor on the steward of this job; gives its name in the cluster, or whoever has the name.
pub(crate) async fn construct(
    function: &'static Function,
    options: &Options,
    arguments: &Builder,
    name: &str,
) -> Result<Made> {
    let mistake = |text: &str| Error::new(FailureKind::ActorName, text);
    if options.set().namespace.is_empty() {
        return Err(mistake(
            "a detached actor needs a namespace, in which others find it: `.namespace(\"…\")`",
        ));
    }
    let values = arguments.inputs.iter().map(|input| match input {
        Input::Value(bytes) => Some(bytes.to_vec()),
        Input::Ref(_) | Input::List(_) => None,
    });
    let inputs =
        values.collect::<Option<Vec<_>>>().filter(|_| arguments.nested.is_empty()).ok_or_else(|| {
            mistake(
                "a detached actor outlives the refs of its job: give its constructor values of up to 100 KiB",
            )
        })?;
    let template = options.template::<ObjectRef<()>>(function)?;
    let options = options.set();
    let steward = match ask(Question::Steward).await? {
        Answer::Host(host) => host,
        other => return Err(unexpected(other)),
    };
    let class = template.class.clone();
    let wish = Wish {
        function: function.id(),
        actor_type: function.name.to_owned(),
        class,
        restarts: options.restarts,
        limits: template.limits.as_deref().cloned(),
        inputs,
        name: name.to_owned(),
        namespace: options.namespace.clone(),
    };
    let options = Options::task().cpu(0.0).retries(0);
    Call::<ObjectRef<Made>>::new(construct_here_with_options::function(), options)
        .argument::<Wish>(wish)
        .submit_to(steward)
        .await
}

/// Runs on the steward.
#[crate::task(name = "mobula::detached::construct")]
async fn construct_here(wish: Wish) -> Result<Made> {
    let runtime = crate::cluster::current()?;
    let function = runtime.registry().get(wish.function).ok_or_else(|| {
        Error::new(
            FailureKind::UnknownFunction,
            format!("this program has no actor {} of that signature", wish.actor_type),
        )
    })?;
    let mut template = Template::new(function.id(), function.name);
    template.class = wish.class;
    template.limits = wish.limits.map(Box::new);
    let spec = Spec {
        template: Arc::new(template),
        kind: Kind::Construct { restarts: wish.restarts },
        inputs: wish.inputs.iter().map(|bytes| Input::Value(Blob::from_slice(bytes))).collect(),
        nested: Nested::default(),
    };
    let id = runtime.submit(spec);
    let actor = id.task();
    let handle = Raw { id, runtime: runtime.clone() };
    let question = Question::NameClaim {
        namespace: wish.namespace.clone(),
        name: wish.name.clone(),
        actor,
        actor_type: wish.actor_type,
    };
    match ask(question).await? {
        Answer::Done => runtime.named(id, &wish.namespace, &wish.name),
        Answer::Actor { actor: holder, .. } => {
            runtime.kill(actor);
            return Ok(Made::Taken(holder));
        }
        other => {
            runtime.kill(actor);
            return Err(unexpected(other));
        }
    }
    Settled::new(handle.clone()).await;
    if let Some(State::Failed(failure)) = runtime.state(id) {
        let failure: Failure = *failure;
        return Err(failure.into());
    }
    // It lives until it is killed, not until this handle goes: the steward keeps one for good.
    std::mem::forget(handle);
    Ok(Made::New(actor))
}
