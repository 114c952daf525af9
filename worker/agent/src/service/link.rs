//! The tasks that read from and write to hosts.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mobula_net::link::{AsyncReceiver, AsyncSender, split_async};
use mobula_proto::{
    Failure, FailureKind, HostId,
    host::{ToAgent, ToHost},
    wire,
};
use mobula_telemetry::task;
use tokio::{net::UnixListener, sync::mpsc, time::timeout};
use tracing::{debug, warn};

use super::{
    actor::{Message, Post},
    local::{FromLocal, ToLocal},
    routes::{ForHost, Outbox, Routes},
};

/// How long a host or driver may take to say hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last messages to a host may take once its link is to end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Why no more comes from a host.
pub(super) enum End {
    /// It closed its side in order.
    Closed,
    /// It broke the protocol, or its socket broke.
    Broken(String),
    /// It did not say hello in time.
    NoHello,
}

/// Hands on what a host says, until it ends.
pub(super) async fn read_all(
    host: HostId,
    mut receiver: AsyncReceiver,
    post: Post,
    routes: Arc<Routes>,
) -> End {
    let permits = post.permits();
    let mut first = true;
    loop {
        let received = if first {
            match timeout(HELLO_TIMEOUT, receiver.recv()).await {
                Ok(received) => received,
                Err(_) => return End::NoHello,
            }
        } else {
            receiver.recv().await
        };
        first = false;
        let message = match received {
            Ok(Some(message)) => message,
            Ok(None) => return End::Closed,
            Err(error) => return End::Broken(error.to_string()),
        };
        match wire::decode::<ToAgent>(&message.body) {
            Ok(ToAgent::Relay { to, body }) => routes.relay(host, to, body).await,
            Ok(said) => {
                let fds = message.descriptors;
                post.send(&permits, |permit| Message::Host(host, Box::new(said), fds, permit)).await;
            }
            Err(error) => return End::Broken(error.to_string()),
        }
    }
}

/// Writes what there is for a host. Ends when its outboxes are gone, or with the link.
pub(super) async fn write_all(mut sender: AsyncSender, mut queue: mpsc::Receiver<ForHost>) {
    while let Some(ForHost { message, fds, .. }) = queue.recv().await {
        let sent = match wire::encode(&message) {
            Ok(body) => {
                let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
                sender.send(&body, &fds).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            debug!(%error, "a host's link ended");
            break;
        }
        if matches!(message, ToHost::Refused(_)) {
            break;
        }
    }
    sender.shutdown();
}

/// One driver on the agent's socket, from its first byte to its last.
async fn driver(stream: std::os::unix::net::UnixStream, post: Post, routes: Arc<Routes>) {
    let (sender, receiver) = match split_async(stream) {
        Ok(halves) => halves,
        Err(error) => {
            warn!(%error, "a driver's socket cannot be used");
            return;
        }
    };
    let (outbox, queue) = Outbox::socket();
    let writing = task::spawn("driver-write", write_all(sender, queue));
    let close = Arc::new(tokio::sync::Notify::new());
    let Some(host) = arrive(&post, &outbox, Arc::clone(&close), false).await else { return };
    drop(outbox);
    let end = tokio::select! {
        end = read_all(host, receiver, post.clone(), routes) => end,
        () = close.notified() => End::Broken("the agent ended the link".to_owned()),
    };
    post.ended(host, ended(host, &end));
    // The writer flushes what is queued, then closes; a driver that does not read is cut off.
    if timeout(FLUSH_TIMEOUT, writing).await.is_err() {
        debug!(%host, "a driver's link was cut off");
    }
}

async fn arrive(
    post: &Post,
    outbox: &Outbox,
    close: Arc<tokio::sync::Notify>,
    in_process: bool,
) -> Option<HostId> {
    match post.driver_arrived(outbox.clone(), close, in_process).await {
        Ok(host) => Some(host),
        Err(failure) => {
            // A driver that is gone needs no answer.
            let _gone = outbox.tell(ToHost::Refused(failure), Vec::new());
            None
        }
    }
}

fn ended(host: HostId, end: &End) -> Failure {
    let why = match end {
        End::Closed => "it closed its link".to_owned(),
        End::Broken(why) => why.clone(),
        End::NoHello => format!("it did not say hello within {HELLO_TIMEOUT:?}"),
    };
    Failure::new(FailureKind::HostDied, why).of(host.to_string())
}

/// A host in this process.
pub(super) async fn local(mut from_host: FromLocal, to_host: ToLocal, post: Post, routes: Arc<Routes>) {
    let outbox = Outbox::local(to_host);
    let close = Arc::new(tokio::sync::Notify::new());
    let Some(host) = arrive(&post, &outbox, Arc::clone(&close), true).await else { return };
    drop(outbox);
    let permits = post.permits();
    let end = loop {
        let (message, fds) = tokio::select! {
            received = from_host.recv() => match received {
                Some(received) => received,
                None => break End::Closed,
            },
            () = close.notified() => break End::Broken("the agent ended the link".to_owned()),
        };
        match message {
            ToAgent::Relay { to, body } => routes.relay(host, to, body).await,
            said => {
                post.send(&permits, |permit| Message::Host(host, Box::new(said), fds, permit)).await;
            }
        }
    };
    post.ended(host, ended(host, &end));
}

/// Opens the agent's socket for drivers: its folder is 0700, the socket 0600.
pub(super) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        super::provision::create_private(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    if path.exists() {
        // Nobody answers on what an agent that was killed left behind.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The socket's file, removed at the end.
#[derive(Debug)]
pub(super) struct SocketFile(pub(super) PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            debug!(path = %self.0.display(), %error, "the agent's socket was gone already");
        }
    }
}

/// Takes drivers of the agent's own user until the listener fails for good.
pub(super) async fn accept(listener: UnixListener, post: Post, routes: Arc<Routes>) {
    let own = rustix::process::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: that passes.
                warn!(%error, "a driver cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own => {}
            Ok(peer) => {
                warn!(uid = peer.uid(), "a driver of another user was turned away");
                continue;
            }
            Err(error) => {
                warn!(%error, "a driver's user is unknown");
                continue;
            }
        }
        match stream.into_std() {
            Ok(stream) => drop(task::spawn("driver", driver(stream, post.clone(), Arc::clone(&routes)))),
            Err(error) => warn!(%error, "a driver's socket cannot be used"),
        }
    }
}
