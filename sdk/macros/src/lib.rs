//! The attributes of the `mobula` crate. See there for what they mean to an author.

#![forbid(unsafe_code)]

mod actor;
mod data;
mod entry;
mod function;
mod limits;
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
/// `async fn` shares its thread with others; it runs in a tokio task, and may go on in another one after its first wait.
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
/// Limits, all optional, all in calls:
///
/// | attribute | meaning | unless said otherwise |
/// |---|---|---|
/// | `concurrency = 8` | so many `&self` calls run at once | 1,024 |
/// | `groups(io = 4, compute = 1)` | `&self` methods marked `#[method(group = "io")]` run up to 4 at once, beside the others, and do not count for `concurrency` | no groups |
/// | `inbox = 1000` | so many calls wait here; one that runs does not count | 65,536 |
/// | `when_full = "refuse"` | a call that finds the inbox full fails as `Overloaded`, and `Handle::take_refused` gives it back. With `"wait"` it waits with its caller: as many as `inbox` in each process, and who calls more often than that is held up in the call; async code that runs in a call is not, but where it awaits `handle.room()` | `"wait"` |
/// | `unordered` | a call that is ready overtakes earlier ones of its caller that still wait for their arguments | each caller's order |
///
/// `Type::spawn(…).options(…)` can set the numbers for one actor. A `&self` call that waits for an object lets another
/// run meanwhile (up to 4,096 wait so), and goes on without waiting for its turn, so actors may call each other in a
/// circle; a `&mut self` call keeps its actor while it waits. Where the inbox of an actor is full and all that it
/// runs has been waiting for five seconds, calls *made by other calls* that wait for room there fail as `Overloaded`,
/// since they might be what is waited for: a circle ends with an error. What a program submits outside of calls goes
/// on waiting.
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
/// processes. The test fails if its `Result` is `Err`, or if anything is left over: refs, leases, calls and actors, what
/// lies in any node's store or on its disk; and when the job is over, memory, hosts, files, or descriptors of the cluster's
/// processes. What goes by itself may take 10 s. Detached actors are to be killed before.
#[proc_macro_attribute]
pub fn test(attributes: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand_test(attributes.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
