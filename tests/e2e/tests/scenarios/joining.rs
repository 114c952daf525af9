//! Who is let in, and who is not.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use mobula::{Cluster, ErrorKind, private};
use mobula_rig::{For, Offer, Rig};

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

#[mobula::task]
fn nothing() {}

async fn connect(builder: mobula::Builder) -> mobula::Result<()> {
    let cluster = builder.quiet().start().await?;
    cluster.shutdown();
    Ok(())
}

/// Tries to become a driver, and gives the reason why not.
fn refusal(builder: mobula::Builder) -> Result<mobula::Error, String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(connect(builder)).err().ok_or_else(|| "it was let in".to_owned())
}

pub fn tokens_are_for_one() -> Outcome {
    let mut rig = Rig::nodes(1).cpus(1.0).start()?;
    // A driver's token lets one driver in.
    let token = rig.driver_token()?;
    let run = async |_: Cluster| nothing.remote().await;
    let (outcome, _) = private::drive(Cluster::connect(&rig.address()).token(&token).quiet(), run)?;
    outcome?;
    let error = refusal(Cluster::connect(&rig.address()).token(&token))?;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("token"), "{error}");
    // An agent's token lets no driver in, nor a driver's an agent.
    let agent = rig.token(For::Agent, mobula_rig::TOKEN_LIFETIME)?;
    let error = refusal(Cluster::connect(&rig.address()).token(&agent))?;
    assert!(error.to_string().contains("token"), "{error}");
    let driver = rig.driver_token()?;
    let error = rig.add_node(driver, Offer::default()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
    // One that has expired lets nobody in.
    let short = rig.token(For::Driver, Duration::from_secs(1))?;
    let made = Instant::now();
    rig.wait("a token to expire", Duration::from_secs(5), |_| {
        Ok(made.elapsed() > Duration::from_millis(1100))
    })?;
    let error = refusal(Cluster::connect(&rig.address()).token(&short))?;
    assert!(error.to_string().contains("expired"), "{error}");
    rig.finish()?;
    Ok(())
}

pub fn strangers_are_refused() -> Outcome {
    let (ours, theirs) = (Rig::nodes(1).cpus(1.0).start()?, Rig::nodes(1).cpus(1.0).start()?);
    let error = refusal(Cluster::connect(&ours.address()).token(&theirs.driver_token()?))?;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    for nonsense in ["", "mobula-join-xyz", "\u{fffd}"] {
        let error = refusal(Cluster::connect(&ours.address()).token(nonsense))?;
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains("token"), "{error}");
    }
    theirs.finish()?;
    ours.finish()?;
    Ok(())
}

pub fn an_unknown_head_is_named() -> Outcome {
    let rig = Rig::nodes(0).start()?;
    let token = rig.driver_token()?;
    // Bound but deaf: nothing ever answers there.
    let deaf = UdpSocket::bind("127.0.0.1:0")?;
    let address = deaf.local_addr()?.to_string();
    let began = Instant::now();
    let error = refusal(Cluster::connect(&address).token(&token))?;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains(&address), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "it gives up in time");
    for wrong in ["nowhere", "unix:/nowhere/agent.sock", "127.0.0.1:notaport"] {
        let error = refusal(Cluster::connect(wrong).token(&token))?;
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains(wrong.trim_start_matches("unix:")), "{error}");
    }
    rig.finish()?;
    Ok(())
}
