//! The attributes of the `mobula` crate. See there for what they mean to an author.

#![forbid(unsafe_code)]

mod actor;
mod data;
mod entry;
mod function;
mod options;
mod task;

use proc_macro::TokenStream;

/// Makes a function a task: `function.remote(…)` runs it elsewhere and gives an `ObjectRef` of its result,
/// `function.options().cpu(2.0).remote(…)` changes how, and `function.local(…)` calls it right here. Where very many
/// calls are unfinished (see `Builder::budget`), `remote` waits; `function.try_remote(…)` hands the call back instead,
/// and `function.submit(…).await` waits without a thread.
///
/// The function's name becomes a type and its one value, so no variable or parameter in its scope can have that name.
///
/// `#[mobula::task(cpu = 2, gpu = 0.5, memory = "2GiB", retries = 5, timeout_ms = 1000, isolation = "process",
/// name = "stable::name")]`, all optional: one CPU and three retries unless said otherwise. Arguments and result
/// must be `mobula::Data`; a `Result` is recognised by its name and its `Err` becomes the caller's error. An
/// `async fn` shares its thread with others.
///
/// A function that returns `impl Iterator<Item = T>` or, async or not, `impl Stream<Item = T>` gives an
/// `ObjectStream<T>`: its items are read as they are made, and an `Err` item ends it. `buffer_items` and `buffer_bytes`
/// bound what is made and not yet read.
///
/// With `returns`, each part of a tuple or array that the function returns has an `ObjectRef` of its own, and so has
/// each element of a vector: as many as the call asks for with `.options().returns(3000)`, or `returns = 3000` here.
#[proc_macro_attribute]
pub fn task(attributes: TokenStream, item: TokenStream) -> TokenStream {
    task::expand(attributes.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a type an actor: put it on its one `impl` block. `Type::spawn(…)` takes what `new` takes and is awaited for
/// a `TypeHandle`, which has a method for each of the actor's that gives an `ObjectRef`.
///
/// `&mut self` methods run one at a time, in each caller's order; `&self` methods may run at once. `new` and the
/// methods may be `async` and may return a `Result`. `#[mobula::actor(restarts = 3, call_retries = 2, cpu = 1)]`: no
/// resources and no restarts unless said otherwise. A call that was on its way when the actor's host died fails as
/// `MaybeExecuted`; with `call_retries` it is made again on the restarted actor, so it may run more than once. A
/// private method, marked `#[local]`, stays the type's own.
///
/// Methods return streams and several results as tasks do; `#[method(returns)]`, `#[method(buffer_items = 8)]` say what
/// `#[mobula::task(…)]` says of a task, and `handle.with_options(|options| options.returns(8))` changes it for a call. An
/// actor is busy while a `&mut self` method streams.
#[proc_macro_attribute]
pub fn actor(attributes: TokenStream, item: TokenStream) -> TokenStream {
    actor::expand(attributes.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Derives what a struct or enum needs to cross to another process.
#[proc_macro_attribute]
pub fn data(attributes: TokenStream, item: TokenStream) -> TokenStream {
    data::expand(attributes.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes an `async fn main` a driver. With a parameter, it gets the `Cluster` (embedded, or the one that
/// `MOBULA_ADDRESS` names); without one, it starts its own. A process that an agent started from this binary
/// becomes a host instead, and never reaches the body.
#[proc_macro_attribute]
pub fn main(attributes: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand_main(attributes.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes an `async fn` a test with a cluster of its own, embedded unless `#[mobula::test(nodes = 2)]` asks for
/// processes. The test fails if its `Result` is `Err`, or if anything is left over at its end.
#[proc_macro_attribute]
pub fn test(attributes: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand_test(attributes.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
