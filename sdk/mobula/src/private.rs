//! What the macros' code uses. No part of the public interface.

use std::sync::Arc;

use futures_core::Stream;

pub use mobula_host::{
    codec::{Arguments, Results},
    linkme,
    registry::{ActorState, Entry, FUNCTIONS, Function, Invocation, Rules, Running},
};
use mobula_proto::FailureKind;
pub use mobula_proto::{Failure, limits::WhenFull};
use smallvec::smallvec;
use tokio::sync::{Mutex, RwLock};

use crate::Data;
pub use crate::{
    actor::Actor,
    argument::FromArgument,
    cluster::{Outcome, drive, drive_within, run_as_child as become_child, run_main, run_test},
    handle::{Handle, Several},
    task::Call,
};

/// Encodes what a function returned.
pub fn finish<T: Data>(value: T) -> Result<Results, Failure> {
    Ok(smallvec![mobula_host::codec::encode(&value)?])
}

/// Encodes what a function returned, or says why it failed.
pub fn finish_result<T: Data, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    result: Result<T, E>,
) -> Result<Results, Failure> {
    match result {
        Ok(value) => finish(value),
        Err(error) => Err(returned(error)),
    }
}

/// What a function returned, or why it failed.
pub fn value<T, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    result: Result<T, E>,
) -> Result<T, Failure> {
    result.map_err(returned)
}

/// Encodes what a function with several results returned.
pub fn finish_several<T: Several>(value: T) -> Result<Results, Failure> {
    value.encode()
}

/// Sends the items of an iterator as they are made.
pub fn finish_iterator<T: Data>(items: impl Iterator<Item = T>) -> Result<Results, Failure> {
    mobula_host::stream::produce(items, Ok)
}

/// [`finish_iterator`] where an item may be an error, which ends the stream.
pub fn finish_iterator_of_results<T: Data, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    items: impl Iterator<Item = Result<T, E>>,
) -> Result<Results, Failure> {
    mobula_host::stream::produce(items, |item| item.map_err(returned))
}

/// Sends the items of a stream as they are made.
pub async fn finish_stream<T: Data>(items: impl Stream<Item = T> + Send) -> Result<Results, Failure> {
    mobula_host::stream::produce_async(items, Ok).await
}

/// [`finish_stream`] where an item may be an error, which ends the stream.
pub async fn finish_stream_of_results<T: Data, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    items: impl Stream<Item = Result<T, E>> + Send,
) -> Result<Results, Failure> {
    mobula_host::stream::produce_async(items, |item: Result<T, E>| item.map_err(returned)).await
}

/// What user code failed with.
pub fn returned<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> Failure {
    crate::error::returned(error.into().as_ref())
}

/// The elements of a vector argument: one vector, or several objects.
pub fn take_list<T: Data>(arguments: &mut Arguments) -> Result<Vec<T>, Failure>
where
    Vec<T>: Data,
{
    arguments.next_list()
}

/// The state of an actor that has `&self` methods.
pub struct Shared<T>(pub RwLock<T>);

/// The state of an actor that has none, and need not be `Sync`.
pub struct Exclusive<T>(pub Mutex<T>);

fn wrong_state() -> Failure {
    Failure::new(FailureKind::Internal, "an actor's state is not what its method expects")
}

impl<T: Send + Sync + 'static> Shared<T> {
    /// For the registry.
    pub fn state(value: T) -> ActorState {
        Arc::new(Self(RwLock::new(value)))
    }

    /// Of this actor.
    pub fn of(state: &ActorState) -> Result<Arc<Self>, Failure> {
        state.clone().downcast::<Self>().map_err(|_| wrong_state())
    }
}

impl<T: Send + 'static> Exclusive<T> {
    /// For the registry.
    pub fn state(value: T) -> ActorState {
        Arc::new(Self(Mutex::new(value)))
    }

    /// Of this actor.
    pub fn of(state: &ActorState) -> Result<Arc<Self>, Failure> {
        state.clone().downcast::<Self>().map_err(|_| wrong_state())
    }
}

/// A method was called while another had the actor to itself, which the executor rules out.
pub fn busy() -> Failure {
    Failure::new(FailureKind::Internal, "the actor's state is in use")
}
