//! `mobula head`.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use mobula_head::{Handle, Head, Options};
use mobula_net::quic;

use crate::{
    args::HeadArgs,
    error::{Error, taken},
    home::Home,
    ready::{Ready, say},
    signals::Signals,
};

/// Runs a head until it is asked to end.
pub async fn run(args: &HeadArgs) -> Result<(), Error> {
    let home = Home::of(&args.home)?;
    let mut signals = Signals::take(args.by_up)?;
    let _claim = home.claim("head")?;
    let options = Options {
        quic_address: args.quic,
        http_address: args.http,
        cluster_name: args.name.clone(),
        ..Options::new(home.path())
    };
    let head = tokio::select! {
        head = Head::start(options) => head.map_err(|error| failed(error, args))?,
        () = signals.next() => return Ok(()),
    };
    if let (Some(quic), Some(http)) = (head.quic_address(), head.http_address()) {
        match args.by_up {
            Some(_) => Ready::Head { quic, http }.say(),
            None => greet(&head, quic, http, &home),
        }
    }
    let ended = tokio::select! {
        () = signals.next() => false,
        () = head.closed() => true,
    };
    signals.while_ending(head.shutdown()).await;
    if ended { Err(Error::HeadEnded) } else { Ok(()) }
}

fn failed(error: mobula_head::Error, args: &HeadArgs) -> Error {
    match error {
        mobula_head::Error::HttpBind { source, .. } if taken(&source) => {
            Error::PortInUse { protocol: "TCP", address: args.http, option: "--http" }
        }
        mobula_head::Error::Network(quic::Error::Bind { source, .. }) if taken(&source) => {
            Error::PortInUse { protocol: "UDP", address: args.quic, option: "--quic" }
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
