//! Placement groups: made, reserved and given back.

use std::io::Write;

use mobula::{GroupBuilder, PlacementGroup};
use tokio::task::JoinSet;

use crate::{
    measure::{Result, latencies, quantile, rate},
    row::{
        Place, Probe, Row, Stage,
        Target::{self, OfPeer},
    },
};

/// Groups in one go, as in Ray's loop.
const GROUPS: usize = 100;
/// What the store writes at a time.
const PAGE_BYTES: usize = 4096;
/// Ray's name for it.
const RAY: &str = "placement group create/removal";

const fn groups(name: &'static str, targets: &'static [Target]) -> Row {
    Row::more(name, "1/s").peer(RAY).targets(targets)
}

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe { rows: &[groups(RAY, &[OfPeer(5.0)])], stage: Stage::OneNode, run: one_by_one },
    Probe {
        rows: &[groups("placement group create/removal, pipelined", &[OfPeer(30.0)])],
        stage: Stage::OneNode,
        run: pipelined,
    },
    Probe {
        rows: &[
            Row::more("detached placement group create/removal, pipelined", "1/s"),
            Row::more("detached placement group create/removal, one by one", "1/s"),
            Row::less("a page written and synced where the head's store is", "µs").is_limit(),
        ],
        stage: Stage::OneNode,
        run: detached,
    },
];

fn one() -> GroupBuilder {
    PlacementGroup::pack().bundle(&[("cpu", 0.001)])
}

/// Gives all back, and waits until that is done: it is done in order.
async fn give_up(groups: Vec<PlacementGroup>) -> Result<()> {
    let Some((last, others)) = groups.split_last() else { return Ok(()) };
    others.iter().try_for_each(|group| group.give_up())?;
    Ok(last.remove().await?)
}

/// Waits for all at once.
async fn all(
    asked: impl Iterator<Item = impl Future<Output = mobula::Result<PlacementGroup>> + Send + 'static>,
) -> Result<Vec<PlacementGroup>> {
    let mut running: JoinSet<_> = asked.collect();
    let mut groups = Vec::with_capacity(running.len());
    while let Some(group) = running.join_next().await {
        groups.push(group??);
    }
    Ok(groups)
}

/// Ray's loop: all are made, each is waited for, all are removed.
fn one_by_one(place: &Place) -> Result<Vec<f64>> {
    let each = || {
        place.runtime.block_on(async {
            let mut groups = Vec::with_capacity(GROUPS);
            for _ in 0..GROUPS {
                groups.push(one().create().await?);
            }
            for group in &groups {
                group.ready().await?;
            }
            give_up(groups).await
        })
    };
    Ok(vec![rate(place.scale, GROUPS as f64, each)?])
}

/// The same, but nobody waits for one before the next is asked for.
fn pipelined(place: &Place) -> Result<Vec<f64>> {
    let each =
        || place.runtime.block_on(async { give_up(all((0..GROUPS).map(|_| one().reserve())).await?).await });
    Ok(vec![rate(place.scale, GROUPS as f64, each)?])
}

/// What is on disk before it is promised: the second number is one over the time that the disk takes twice, and the third
/// what one sync of it takes.
fn detached(place: &Place) -> Result<Vec<f64>> {
    let named = |at: usize| one().name(&format!("bench-{at}")).namespace("bench").detached().reserve();
    let many = || place.runtime.block_on(async { give_up(all((0..GROUPS).map(named)).await?).await });
    let single = || place.runtime.block_on(async { Ok(named(0).await?.remove().await?) });
    // The cluster's home is a temporary folder, too.
    let mut file = tempfile::tempfile()?;
    let synced = || {
        file.write_all(&[1; PAGE_BYTES])?;
        Ok(file.sync_data()?)
    };
    let (many, single) = (rate(place.scale, GROUPS as f64, many)?, rate(place.scale, 1.0, single)?);
    Ok(vec![many, single, quantile(&latencies(place.scale, synced)?, 0.5) * 1e6])
}
