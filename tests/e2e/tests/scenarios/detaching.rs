//! Actors that outlive the driver that made them.

use mobula::{Builder, Cluster, ErrorKind, Result, private};
use mobula_e2e::eventually;
use mobula_rig::Rig;

use super::driver::Outcome;

struct Ledger {
    entries: Vec<u64>,
}

#[mobula::actor]
impl Ledger {
    fn new(first: u64) -> Self {
        Self { entries: vec![first] }
    }

    fn push(&mut self, entry: u64) -> usize {
        self.entries.push(entry);
        self.entries.len()
    }

    fn all(&self) -> Vec<u64> {
        self.entries.clone()
    }
}

const NAME: &str = "ledger";
const SPACE: &str = "accounts";

/// Runs this as a driver, of which nothing stays.
pub fn drive(builder: Builder, run: impl AsyncFnOnce(Cluster) -> Result<()>) -> Outcome {
    let (outcome, left) = private::drive(builder.quiet(), async |cluster: Cluster| run(cluster).await)?;
    outcome?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

fn network(rig: &Rig) -> Result<Builder, mobula_rig::Error> {
    Ok(Cluster::connect(&rig.address()).token(&rig.driver_token()?))
}

/// Joins through the socket of the first node.
pub fn socket(rig: &Rig) -> Result<Builder, mobula_rig::Error> {
    Ok(Cluster::connect(&rig.socket(0)?))
}

/// One driver makes it, another uses it, a third kills it, whichever way they come in.
pub fn a_detached_actor_serves_the_next_driver() -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).start()?;
    for (first, then) in
        [(network as fn(&Rig) -> _, network as fn(&Rig) -> _), (socket, network), (network, socket)]
    {
        drive(first(&rig)?, async |_| {
            let ledger = Ledger::spawn(1).name(NAME).namespace(SPACE).detached().await?;
            assert_eq!(ledger.push(2).await?, 2);
            let taken = Ledger::spawn(9).name(NAME).namespace(SPACE).detached().await.map(drop).unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::ActorName, "{taken}");
            Ok(())
        })?;
        let snapshot = rig.snapshot()?;
        assert_eq!((snapshot.jobs.len(), snapshot.names.len()), (1, 1), "it keeps its job");
        drive(then(&rig)?, async |_| {
            let ledger = mobula::find_actor::<Ledger>(NAME, SPACE).await?;
            assert_eq!(ledger.push(3).await?, 3);
            let same = Ledger::spawn(9).name(NAME).namespace(SPACE).detached().get_or_create().await?;
            assert_eq!(same.push(4).await?, 4);
            let elsewhere = mobula::find_actor::<Ledger>(NAME, "elsewhere").await.map(drop).unwrap_err();
            assert_eq!(elsewhere.kind(), ErrorKind::ActorName, "{elsewhere}");
            Ok(())
        })?;
        assert_eq!(rig.snapshot()?.jobs.len(), 1, "that of the actor, not that of its visitor");
        drive(first(&rig)?, async |cluster| {
            let ledger = mobula::find_actor::<Ledger>(NAME, SPACE).await?;
            assert_eq!(ledger.all().await?, [1, 2, 3, 4]);
            ledger.kill();
            // The word goes by way of its owner, and calls go straight to it.
            eventually("its death", async || match ledger.push(5).await {
                Ok(_) => Ok(false),
                Err(error) if error.kind() == ErrorKind::ActorDied => Ok(true),
                Err(error) => Err(error),
            })
            .await?;
            eventually("its job to end", async || {
                let snapshot = cluster.snapshot().await?;
                Ok(snapshot.names.is_empty() && snapshot.jobs.len() == 1)
            })
            .await
        })?;
        rig.idle()?;
    }
    rig.finish()?;
    Ok(())
}
