//! `mobula head`.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use mobula_head::{Handle, Head, Options};
use mobula_net::quic;

use crate::{
    args::HeadArgs,
    error::{Error, taken},
    home::Home,
    local,
    ready::{Ready, say},
    settings,
    signals::Signals,
};

/// Runs a head until it is asked to end.
pub async fn run(args: &HeadArgs, home: &Home) -> Result<(), Error> {
    let mut signals = Signals::take(args.by_up)?;
    let _claim = home.claim("head")?;
    let mut options = options(&args.head, home);
    options.scaling = local::scaling(&args.head.node_type, home, args.log.level.as_deref());
    let (quic, http) = (options.quic_address, options.http_address);
    let head = tokio::select! {
        head = Head::start(options) => head.map_err(|error| failed(error, quic, http))?,
        () = signals.next() => return Ok(()),
    };
    if let (Some(quic), Some(http)) = (head.quic_address(), head.http_address()) {
        match args.by_up {
            Some(_) => Ready::Head { quic, http }.say(),
            None => greet(&head, quic, http, home),
        }
    }
    let ended = tokio::select! {
        () = signals.next() => false,
        () = head.closed() => true,
    };
    signals.while_ending(head.shutdown()).await;
    if ended { Err(Error::HeadEnded) } else { Ok(()) }
}

/// What is set, over the defaults.
fn options(set: &settings::Head, home: &Home) -> Options {
    let default = Options::new(home.path());
    Options {
        quic_address: set.quic.unwrap_or(default.quic_address),
        http_address: set.http.unwrap_or(default.http_address),
        cluster_name: set.name.clone().unwrap_or_else(|| default.cluster_name.clone()),
        idle_timeout: set.node_timeout.unwrap_or(default.idle_timeout),
        ..default
    }
}

fn failed(error: mobula_head::Error, quic: SocketAddr, http: SocketAddr) -> Error {
    match error {
        mobula_head::Error::HttpBind { source, .. } if taken(&source) => {
            Error::PortInUse { protocol: "TCP", address: http, option: "--http" }
        }
        mobula_head::Error::Network(quic::Error::Bind { source, .. }) if taken(&source) => {
            Error::PortInUse { protocol: "UDP", address: quic, option: "--quic" }
        }
        other => Error::Head(other),
    }
}

fn greet(head: &Handle, quic: SocketAddr, http: SocketAddr, home: &Home) {
    let option = home.option();
    let cluster = head.cluster();
    let reach = reachable(quic);
    say(&format!(
        "The head of cluster {cluster} is up: UDP {quic} for nodes and drivers, http://{http} for people.\n\n\
         To add a machine, make a token here (good for one machine, for 10 minutes):\n  \
         mobula token create{option}\n\
         and on that machine run:\n  \
         mobula node --head {reach} --join TOKEN\n\n\
         To see the cluster:\n  \
         mobula status{option}\n\n\
         Ctrl-C ends the head and the cluster."
    ));
}

/// Where other machines most likely reach an address that this one has open.
pub fn reachable(open: SocketAddr) -> SocketAddr {
    if !open.ip().is_unspecified() {
        return open;
    }
    // The address that the system would send from; choosing a route sends nothing. The target is one that the
    // standards keep for documentation, so that it is outside every local network.
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    let ip = outward.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip());
    SocketAddr::new(ip, open.port())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::args::HomeArg;

    #[test]
    fn every_setting_reaches_the_head() {
        let home = Home::of(&HomeArg { home: Some("/nowhere".into()) }).unwrap();
        let set = settings::Head {
            quic: Some("127.0.0.1:1".parse().unwrap()),
            http: Some("127.0.0.1:2".parse().unwrap()),
            name: Some("lab".to_owned()),
            node_timeout: Some(Duration::from_secs(7)),
            node_type: vec![crate::values::node_type("a=0..2 4 cpu").unwrap()],
        };
        let options = options(&set, &home);
        assert_eq!(options.quic_address.to_string(), "127.0.0.1:1");
        assert_eq!(options.http_address.to_string(), "127.0.0.1:2");
        assert_eq!((options.cluster_name.as_str(), options.idle_timeout), ("lab", Duration::from_secs(7)));
        let scaling = local::scaling(&set.node_type, &home, None).unwrap();
        assert_eq!(scaling.types, set.node_type);
        assert!(local::scaling(&[], &home, None).is_none());
    }
}
