//! Giving up.

use std::time::{Duration, Instant};

use mobula::{ErrorKind, Result};
use mobula_e2e::{
    Env, Witness,
    env::{WAIT, witness},
};

struct Noted(String);

impl Drop for Noted {
    fn drop(&mut self) {
        witness::note(&self.0);
    }
}

#[mobula::task]
async fn for_ever(started: String, dropped: String) {
    let _noted = Noted(dropped);
    witness::note(&started);
    std::future::pending::<()>().await;
}

#[mobula::task]
fn until_cancelled(started: String, seen: String) -> bool {
    witness::note(&started);
    let began = Instant::now();
    while began.elapsed() < WAIT {
        if mobula::context::cancelled() {
            witness::note(&seen);
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[mobula::task]
fn runs(place: String) {
    witness::note(&place);
}

#[mobula::task]
fn plus_one(x: u32) -> u32 {
    x + 1
}

pub async fn async_code_is_dropped_at_its_await(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let object = for_ever.remote(witness.place("started"), witness.place("dropped"));
    witness.sees("started").await?;
    assert!(!witness.saw("dropped"));
    assert!(object.cancel());
    let error = (&object).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    witness.sees("dropped").await?;
    assert!(!object.cancel(), "it is over");
    let done = plus_one.remote(1);
    assert_eq!((&done).await?, 2);
    assert!(!done.cancel());
    assert_eq!(done.await?, 2);
    Ok(())
}

pub async fn what_waits_never_runs(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let nodes = env.nodes().await?.len();
    // One on each CPU, so that nothing else can start.
    let busy: Vec<_> = (0..nodes)
        .map(|at| until_cancelled.remote(witness.place(&format!("busy {at}")), witness.place("seen")))
        .collect();
    for at in 0..nodes {
        witness.sees(&format!("busy {at}")).await?;
    }
    let queued = runs.remote(witness.place("queued"));
    let dependent = plus_one.remote(&until_count.remote(&busy[0]));
    assert!(queued.cancel() && dependent.cancel());
    for error in [queued.await.unwrap_err(), dependent.await.map(|_| ()).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    }
    for one in &busy {
        assert!(one.cancel());
    }
    runs.remote(witness.place("after")).await?;
    assert!(!witness.saw("queued"));
    assert!(witness.saw("after"));
    Ok(())
}

#[mobula::task]
fn until_count(value: bool) -> u32 {
    u32::from(value)
}

pub async fn sync_code_is_asked(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let object = until_cancelled.remote(witness.place("started"), witness.place("seen"));
    witness.sees("started").await?;
    assert!(object.cancel());
    let error = object.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    witness.sees("seen").await
}

#[mobula::task]
fn passes(started: String, gate: String) -> u32 {
    witness::note(&started);
    witness::pass(&gate);
    7
}

#[mobula::task]
fn waits_in_get(started: String, gate: String, dropped: String) -> Result<u32> {
    let _noted = Noted(dropped);
    passes.remote(started, gate).get()
}

#[mobula::task]
fn hands_on(started: String, gate: String) -> impl Iterator<Item = u32> {
    witness::note(&started);
    std::iter::once_with(move || {
        witness::pass(&gate);
        7
    })
}

#[mobula::task]
fn waits_for_an_item(started: String, gate: String, dropped: String) -> Result<u32> {
    let _noted = Noted(dropped);
    hands_on.remote(started, gate).into_iter().sum()
}

pub async fn sync_code_that_waits_is_woken(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let get = waits_in_get.remote(witness.place("got"), gate.place(), witness.place("get dropped"));
    let item = waits_for_an_item.remote(witness.place("made"), gate.place(), witness.place("item dropped"));
    for (object, started, dropped) in [(&get, "got", "get dropped"), (&item, "made", "item dropped")] {
        witness.sees(started).await?;
        assert!(object.cancel());
        witness.sees(dropped).await?;
    }
    let short = Duration::from_millis(700);
    let late = waits_in_get.options().timeout(short).remote(
        witness.place("late"),
        gate.place(),
        witness.place("late dropped"),
    );
    let error = late.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    witness.sees("late dropped").await?;
    gate.open()
}

#[mobula::task]
fn deaf(started: String) {
    witness::note(&started);
    std::thread::sleep(4 * WAIT);
}

pub async fn force_needs_a_process(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let shared = until_cancelled.remote(witness.place("shared"), witness.place("seen"));
    witness.sees("shared").await?;
    let error = shared.cancel_by_force().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CannotForce, "{error}");
    assert!(shared.cancel());
    let own = deaf.options().isolation("process").remote(witness.place("own"));
    witness.sees("own").await?;
    assert!(own.cancel_by_force()?);
    let error = own.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(plus_one.options().isolation("process").remote(1).await?, 2);
    Ok(())
}

pub async fn time_runs_out(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    // Long enough to begin, however busy the machine is.
    let short = Duration::from_millis(700);
    let waits = for_ever.options().timeout(short).remote(witness.place("started"), witness.place("dropped"));
    let error = waits.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(error.to_string().contains("for_ever"), "{error}");
    witness.sees("dropped").await?;
    let computes =
        until_cancelled.options().timeout(short).remote(witness.place("computes"), witness.place("seen"));
    let error = computes.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    witness.sees("seen").await?;
    assert_eq!(plus_one.options().timeout(WAIT).remote(1).await?, 2);
    Ok(())
}
