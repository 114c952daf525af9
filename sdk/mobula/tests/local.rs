//! The same program over processes.

use mobula::prelude::*;

#[mobula::task]
fn square(x: u64) -> u64 {
    x * x
}

#[mobula::task]
fn total(all: Vec<u64>) -> u64 {
    all.iter().sum()
}

#[mobula::task]
fn place() -> mobula::Result<u32> {
    Ok(mobula::context::current()?.node().number)
}

#[mobula::task]
fn big(n: usize) -> mobula::Result<Tensor> {
    Tensor::from_vec(&[n], vec![2.0f32; n])
}

#[mobula::task]
fn sum(tensor: Tensor) -> mobula::Result<f64> {
    Ok(tensor.as_slice::<f32>()?.iter().map(|x| f64::from(*x)).sum())
}

#[mobula::test(nodes = 1)]
async fn tasks_over_processes() -> mobula::Result<()> {
    assert_eq!(square.remote(7).await?, 49);
    let squares: Vec<ObjectRef<u64>> = (0..1000).map(|i| square.remote(i)).collect();
    assert_eq!(total.remote(&squares[..]).await?, 332_833_500);
    Ok(())
}

#[mobula::test(nodes = 2)]
async fn objects_cross_nodes(cluster: Cluster) -> mobula::Result<()> {
    let on = |node| mobula::Strategy::Node { node, soft: false };
    let nodes = cluster.nodes().await?;
    assert_eq!(nodes.len(), 2);
    for node in &nodes {
        assert_eq!(place.options().strategy(on(*node)).remote().await?, node.number);
    }
    let made = big.options().strategy(on(nodes[0])).remote(1 << 20);
    for node in &nodes {
        assert_eq!(sum.options().strategy(on(*node)).remote(&made).await?, 2.0 * f64::from(1 << 20));
    }
    assert_eq!(made.await?.len(), 1 << 20);
    Ok(())
}

struct Keeper {
    kept: Vec<String>,
}

#[mobula::actor]
impl Keeper {
    fn new(first: String) -> Self {
        Self { kept: vec![first] }
    }

    fn keep(&mut self, word: String) -> usize {
        self.kept.push(word);
        self.kept.len()
    }
}

#[mobula::test(nodes = 1)]
async fn detached_actors_are_found_by_name() -> mobula::Result<()> {
    let made = Keeper::spawn("one").name("words").namespace("library").detached().await?;
    drop(made);
    let again = Keeper::spawn("two").name("words").namespace("library").detached().get_or_create().await?;
    assert_eq!(again.keep("three").await?, 2);
    let error = Keeper::spawn("four").name("words").namespace("library").detached().await.unwrap_err();
    assert_eq!(error.kind(), mobula::ErrorKind::ActorName, "{error}");
    again.kill();
    assert_eq!(again.keep("five").await.unwrap_err().kind(), mobula::ErrorKind::ActorDied);
    Ok(())
}

#[mobula::test(nodes = 1)]
async fn a_detached_actor_needs_a_namespace() -> mobula::Result<()> {
    let error = Keeper::spawn("one").name("words").detached().await.unwrap_err();
    assert!(error.to_string().contains("namespace"), "{error}");
    Ok(())
}
