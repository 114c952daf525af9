//! What errors say.

use mobula::{ErrorKind, Result};
use mobula_e2e::{Env, Witness, env::witness};

#[derive(Debug)]
struct Outer(std::num::ParseIntError);

impl std::fmt::Display for Outer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the page has no number")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[mobula::task]
fn explode(x: u64) -> u64 {
    assert!(x == 0, "x is {x}");
    x
}

#[mobula::task]
async fn explode_async() {
    tokio::task::yield_now().await;
    let none: Option<u8> = std::hint::black_box(None);
    none.expect("there is something");
}

#[mobula::task]
fn parse(text: String) -> Result<u64, Outer> {
    text.parse().map_err(Outer)
}

/// What went wrong, where it says what to do, and where one can read more.
fn names_cure(error: &mobula::Error, kind: ErrorKind, cure: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    assert!(text.contains(cure), "{cure:?} is not in {text:?}");
    assert!(text.contains(&format!("[{}]", error.code())), "no code in {text:?}");
}

pub async fn errors_name_their_cure(env: Env) -> Result<()> {
    let impossible = plus_one.options().resource("unobtainium", 1.0).remote(1).await.unwrap_err();
    names_cure(&impossible, ErrorKind::Infeasible, "unobtainium");
    let one = mobula::put(&1u64)?;
    names_cure(&one.get().unwrap_err(), ErrorKind::BlockingInAsync, ".await");
    let forced = plus_one.remote(&parse.remote("1")).cancel_by_force();
    if let Err(forced) = forced {
        names_cure(&forced, ErrorKind::CannotForce, "isolation = \"process\"");
    }
    let none = mobula::find_actor::<Touchy>("nobody", "").await.map(drop).unwrap_err();
    names_cure(&none, ErrorKind::ActorName, "spawn it with that name first");
    let touchy = Touchy::spawn().name("touchy").await?;
    let taken = Touchy::spawn().name("touchy").await.map(drop).unwrap_err();
    names_cure(&taken, ErrorKind::ActorName, "use another, or `get_or_create`");
    drop(touchy);
    let homeless = Touchy::spawn().name("touchy").detached().await.map(drop).unwrap_err();
    names_cure(&homeless, ErrorKind::ActorName, "`.namespace(");
    let nameless = Touchy::spawn().namespace("here").detached().await.map(drop).unwrap_err();
    names_cure(&nameless, ErrorKind::ActorName, "`.name(");
    let wrong = mobula::Tensor::from_bools(&[1], &[true])?.as_slice::<f32>().unwrap_err();
    assert!(wrong.to_string().contains("bool"), "{wrong}");
    assert!(env.cluster.nodes().await.is_ok());
    Ok(())
}

#[mobula::task]
fn plus_one(x: u64) -> u64 {
    x + 1
}

const HERE: &str = "tests/scenarios/telling.rs:";

pub async fn a_panic_names_its_place(_env: Env) -> Result<()> {
    let fine: Vec<_> = (0..20).map(|i| plus_one.remote(i)).collect();
    let error = explode.remote(3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked);
    let text = error.to_string();
    for part in ["task ", "telling::explode#", " on node-", HERE, "x is 3", "[MOB3001]"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let text = explode_async.remote().await.unwrap_err().to_string();
    for part in ["telling::explode_async#", " on node-", HERE, "there is something"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(mobula::get_all(&fine).await?, (1..21).collect::<Vec<_>>());
    assert_eq!(explode.remote(0).await?, 0);
    Ok(())
}

pub async fn an_error_keeps_its_causes(_env: Env) -> Result<()> {
    assert_eq!(parse.remote("12").await?, 12);
    let error = parse.remote("twelve").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Returned);
    let text = error.to_string();
    for part in [
        "telling::parse#",
        " on node-",
        "error at tests/e2e/tests/scenarios/telling.rs:",
        "the page has no number",
        "\n  caused by: invalid digit",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    Ok(())
}

pub async fn a_failed_argument_fails_what_needs_it(_env: Env) -> Result<()> {
    let end = plus_one.remote(&plus_one.remote(&parse.remote("x")));
    let error = end.await.unwrap_err();
    let text = error.to_string();
    for part in [
        "telling::plus_one#",
        "an argument failed",
        "caused by: task ",
        "parse#",
        "no number",
        "invalid digit",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(error.kind(), ErrorKind::Returned);
    Ok(())
}

#[mobula::task]
fn fails_twice(place: String) -> Result<u32> {
    witness::note(&place);
    let attempt = mobula::context::current()?.attempt;
    if attempt == 1 {
        return Err(mobula::Error::new(ErrorKind::Unreachable, "the first time"));
    }
    assert!(attempt > 2, "the second time");
    Ok(attempt)
}

pub async fn errors_are_retried_on_request(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let error = fails_twice.remote(witness.place("never")).await.unwrap_err();
    assert!(error.to_string().contains("the first time"), "{error}");
    assert_eq!(witness.count("never"), 1, "an Err is final unless told otherwise");
    let retried = fails_twice.options().retry_errors(true).retries(2);
    assert_eq!(retried.remote(witness.place("twice")).await?, 3);
    assert_eq!(witness.count("twice"), 3);
    let error = retried.retries(1).remote(witness.place("once")).await.unwrap_err();
    assert!(error.to_string().contains("the second time"), "{error}");
    assert!(error.to_string().contains("(attempt 2 of 2)"), "{error}");
    Ok(())
}

struct Touchy {
    sum: u64,
}

#[mobula::actor]
impl Touchy {
    fn new() -> Self {
        Self { sum: 0 }
    }

    fn add(&mut self, x: u64) -> Result<u64, std::io::Error> {
        assert!(x < 100, "{x} is far too much");
        if x > 10 {
            return Err(std::io::Error::other(format!("{x} is too much")));
        }
        self.sum += x;
        Ok(self.sum)
    }
}

pub async fn a_failing_actor_lives_on(_env: Env) -> Result<()> {
    let touchy = Touchy::spawn().await?;
    let calls = [touchy.add(1), touchy.add(11), touchy.add(2), touchy.add(100), touchy.add(3)];
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await);
    }
    assert_eq!(results[0].as_ref().unwrap(), &1);
    assert_eq!(results[2].as_ref().unwrap(), &3);
    assert_eq!(results[4].as_ref().unwrap(), &6);
    let error = results[1].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Returned);
    for part in ["Touchy::add#", " on node-", "11 is too much"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    let error = results[3].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked);
    for part in ["Touchy::add#", HERE, "100 is far too much"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    Ok(())
}
