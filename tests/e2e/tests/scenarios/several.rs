//! Functions with several results.

use mobula::{ErrorKind, Result};
use mobula_e2e::{
    Env, Part, Witness,
    env::{on, witness},
    eventually,
};

#[mobula::task(returns)]
fn divide(a: u64, b: u64) -> Result<(u64, String)> {
    match (a.checked_div(b), a.checked_rem(b)) {
        (Some(quotient), Some(rest)) => Ok((quotient, format!("rest {rest}"))),
        _ => Err(mobula::Error::new(ErrorKind::Returned, "division by zero")),
    }
}

#[mobula::task(returns)]
async fn corners() -> [u64; 4] {
    tokio::task::yield_now().await;
    [1, 2, 3, 4]
}

#[mobula::task(returns)]
fn parts(count: u64, bytes: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| vec![(i % 251) as u8; bytes]).collect()
}

#[mobula::task(returns = 3)]
fn three() -> Vec<u64> {
    vec![1, 2, 3]
}

#[mobula::task]
fn total(all: Vec<u64>) -> u64 {
    all.iter().sum()
}

#[mobula::task]
fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

pub async fn each_has_a_ref(_env: Env) -> Result<()> {
    let (quotient, rest) = divide.remote(17, 5);
    assert_eq!((quotient.await?, rest.await?.as_str()), (3, "rest 2"));
    let [a, b, c, d] = corners.remote();
    assert_eq!(total.remote(vec![a, b, c, d]).await?, 10);
    assert_eq!(mobula::get_all(&three.remote()).await?, [1, 2, 3]);
    let refs = parts.options().returns(5).remote(5, 10);
    assert_eq!(refs.len(), 5);
    assert_eq!((&refs[4]).await?, [4; 10]);
    assert_eq!(parts.options().returns(0).remote(0, 1).len(), 0);
    let refs = parts.options().returns(2).try_remote(2, 1).unwrap();
    assert_eq!(mobula::get_all(&refs).await?.len(), 2);
    let (quotient, _) = divide.submit(9, 3).await;
    assert_eq!(quotient.await?, 3);
    Ok(())
}

struct Halves(u64);

#[mobula::actor]
impl Halves {
    fn new(start: u64) -> Self {
        Self(start)
    }

    #[method(returns)]
    fn split(&mut self) -> (u64, u64) {
        let half = self.0 / 2;
        self.0 -= half;
        (half, self.0)
    }

    #[method(returns = 2)]
    async fn both(&self) -> Result<Vec<u64>> {
        Ok(vec![self.0, self.0 + 1])
    }
}

pub async fn methods_have_several_too(_env: Env) -> Result<()> {
    let halves = Halves::spawn(9).await?;
    let (one, two) = halves.split();
    assert_eq!((one.await?, two.await?), (4, 5));
    let (one, two) = halves.split();
    assert_eq!((one.await?, two.await?), (2, 3));
    assert_eq!(mobula::get_all(&halves.both()).await?, [3, 4]);
    let wrong = halves.with_options(|options| options.returns(3)).both();
    assert_eq!(wrong.len(), 3);
    assert_eq!(wrong[2].clone().await.unwrap_err().kind(), ErrorKind::ReturnCount);
    Ok(())
}

pub async fn three_thousand(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let last = nodes[nodes.len() - 1];
    {
        // Small ones, those that are too many for one message together, and some that lie in the store anyway.
        for (count, bytes) in [(3000, 8), (3000, 1000), (20, 200_000)] {
            let refs = parts.options().returns(count).strategy(on(last)).remote(u64::from(count), bytes);
            assert_eq!(refs.len(), count as usize);
            let lengths: Vec<_> = refs.iter().rev().take(10).map(|one| length.remote(one)).collect();
            let values = mobula::get_all(&refs).await?;
            for (at, value) in values.iter().enumerate() {
                assert!(value.len() == bytes && value[0] == (at % 251) as u8, "value {at} of {count}");
            }
            assert_eq!(mobula::get_all(&lengths).await?, [bytes; 10]);
        }
    }
    env.stores_empty().await
}

pub async fn another_number_is_an_error(env: Env) -> Result<()> {
    for (asked, given, bytes) in [(3, 2, 10), (2, 3, 200_000), (0, 1, 200_000)] {
        let refs = parts.options().returns(asked).remote(given, bytes);
        for one in refs {
            let error = one.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ReturnCount, "{error}");
            let text = error.to_string();
            assert!(text.contains(&format!("returned {given} values")) && text.contains("parts#"), "{text}");
        }
    }
    let unsaid = parts.remote(1, 1);
    let error = unsaid[0].clone().await.unwrap_err();
    assert!(error.to_string().contains(".options().returns(count)"), "{error}");
    let (wrong, _) = divide.options().returns(2).remote(1, 1);
    assert_eq!(wrong.await.unwrap_err().kind(), ErrorKind::ReturnCount);
    let one = length.options().returns(2).remote(vec![1]);
    assert_eq!(one.await.unwrap_err().kind(), ErrorKind::ReturnCount);
    env.stores_empty().await
}

#[mobula::task(returns)]
async fn never(started: String) -> (u64, u64) {
    witness::note(&started);
    std::future::pending().await
}

pub async fn all_fail_together(_env: Env) -> Result<()> {
    let (quotient, rest) = divide.remote(1, 0);
    let errors = [quotient.await.map(drop).unwrap_err(), rest.await.map(drop).unwrap_err()];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Returned, "{error}");
        assert!(error.to_string().contains("division by zero"), "{error}");
    }
    let witness = Witness::new()?;
    let (one, two) = never.remote(witness.place("started"));
    witness.sees("started").await?;
    assert!(two.cancel());
    for error in [one.await.unwrap_err(), two.await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    }
    Ok(())
}

/// One reference less frees one value, and no other.
pub async fn some_can_be_dropped(env: Env) -> Result<()> {
    let stored = async || -> Result<u64> {
        Ok(env.cluster.snapshot().await?.nodes.iter().map(|node| node.usage.objects).sum())
    };
    let mut refs = parts.options().returns(6).remote(6, 200_000);
    mobula::wait(&refs, 6, None).await?;
    eventually("six values in the stores", async || Ok(stored().await? == 6)).await?;
    refs.truncate(4);
    drop(refs.remove(1));
    eventually("three values in the stores", async || Ok(stored().await? == 3)).await?;
    assert_eq!(refs[1].clone().await?, [2; 200_000]);
    // Dropped before they are made: nothing is left of them either.
    let witness = Witness::new()?;
    let gate = witness.gate("go")?;
    let mut late = gated.options().returns(3).remote(witness.place("started"), gate.place());
    witness.sees("started").await?;
    late.truncate(1);
    gate.open()?;
    assert_eq!(late.remove(0).await?, [0; 200_000]);
    drop((refs, late));
    env.stores_empty().await
}

#[mobula::task(returns)]
fn gated(started: String, gate: String) -> Vec<Vec<u8>> {
    witness::note(&started);
    witness::pass(&gate);
    (0..3).map(|i| vec![i; 200_000]).collect()
}

#[mobula::task(returns)]
fn dies_once(place: String) -> Result<(u32, Vec<u8>)> {
    witness::note(&place);
    let attempt = mobula::context::current()?.attempt;
    if attempt == 1 {
        std::process::abort();
    }
    Ok((attempt, vec![7; 200_000]))
}

pub async fn a_dead_host_is_no_loss(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (attempt, bytes) = dies_once.options().isolation("process").remote(witness.place("ran"));
    assert_eq!((attempt.await?, bytes.await?), (2, vec![7; 200_000]));
    assert_eq!(witness.count("ran"), 2);
    env.stores_empty().await
}

#[mobula::task(returns)]
fn counted(place: String) -> Vec<Vec<u8>> {
    witness::note(&place);
    (0..5).map(|i| vec![i; 200_000]).collect()
}

/// The node with the only copies dies: the task runs once more, for those that somebody holds.
pub async fn lost_values_are_made_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let nodes = env.nodes().await?;
    let last = nodes[nodes.len() - 1];
    let soft = mobula::Strategy::Node { node: last, soft: true };
    let mut refs = counted.options().returns(5).strategy(soft).remote(witness.place("made"));
    mobula::wait(&refs, 5, None).await?;
    drop(refs.remove(2));
    {
        let mut rig = env.rig().unwrap();
        let place = usize::from(rig.number(1).unwrap() == last.number);
        rig.kill(Part::Node(place)).unwrap();
    }
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await?;
    let values = mobula::get_all(&refs).await?;
    assert_eq!(values.iter().map(|value| value[0]).collect::<Vec<_>>(), [0, 1, 3, 4]);
    assert_eq!(witness.count("made"), 2);
    drop(refs);
    env.stores_empty().await
}
