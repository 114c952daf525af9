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
