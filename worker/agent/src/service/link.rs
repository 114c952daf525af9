//! The tasks that read from and write to hosts.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mobula_net::link::{AsyncReceiver, AsyncSender, split_async};
use mobula_proto::{
    Failure, FailureKind, HostId,
    host::{ToAgent, ToHost},
    relay as wire_relay, wire,
};
use mobula_telemetry::task;
use tokio::{net::UnixListener, sync::Semaphore, time::timeout};
use tracing::{debug, warn};

use super::{
    actor::{Message, Post},
    local::{FromLocal, ToLocal},
    relay,
    routes::{Direct, Outbox, Queue, Routes, What, each, may_overtake, runs},
};

/// How long a host or driver may take to say hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the agent looks after everything else before it takes a further batch that is small, in which time more
/// comes in. Each round costs about a microsecond; a packet some ten, on either side.
const GATHER_ROUNDS: u32 = 8;
/// A batch is small below this. Unit: bytes.
const GATHER_BYTES: usize = 16 * 1024;
/// How often it is looked whether a host that hears nothing is still there.
const HEARING: Duration = Duration::from_secs(1);
/// How long at most the next message of a host in this process waits for it to read its answers.
const LOCAL_PAUSE_MAX: Duration = Duration::from_millis(1);
/// Most messages of a host's socket that wait for their turn: few carry a descriptor, and its ring tells of each at once.
const EARLY_MAX: usize = 64;
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

fn broken(why: impl std::fmt::Display) -> End {
    End::Broken(why.to_string())
}

/// What becomes of what a host says.
struct Ear {
    host: HostId,
    post: Post,
    permits: Arc<Semaphore>,
    routes: Arc<Routes>,
    outbox: Outbox,
    relay: Option<relay::Reader>,
    /// Whether the host has said hello.
    greeted: bool,
    /// What came over the socket before its turn, of which the ring tells.
    early: VecDeque<mobula_net::link::Message>,
}

impl Ear {
    /// A message that came over the socket.
    async fn hear(&mut self, message: mobula_net::link::Message, socket: &AsyncReceiver) -> Result<(), End> {
        let message = message.whole().map_err(broken)?;
        let mut fds = message.descriptors;
        match wire::decode::<ToAgent>(&message.body).map_err(broken)? {
            ToAgent::Relay { to, body } => {
                let mut batch = Vec::with_capacity(body.len() + 2 * wire_relay::HEAD_BYTES);
                wire_relay::push(&mut batch, to, &body).map_err(broken)?;
                self.routes.relay(self.host, batch).await.map_err(broken)?;
            }
            said => {
                // In front of everything that will be for this host.
                let first = !std::mem::replace(&mut self.greeted, true);
                if matches!(said, ToAgent::Hello { .. }) && first && !fds.is_empty() {
                    let (reader, writer) = relay::map(std::mem::take(&mut fds)).map_err(broken)?;
                    self.relay = Some(reader);
                    self.outbox.ring(writer).await;
                }
                if first {
                    // Behind the news of the link, which only the actor takes.
                    self.post_to_actor(vec![said], fds).await;
                } else {
                    self.said(vec![said], fds, socket).await?;
                }
            }
        }
        Ok(())
    }

    /// What the host tells the agent itself: done at once if that is possible. Of a host that does not read its answers
    /// nothing more is read.
    async fn said(&self, said: Vec<ToAgent>, fds: Vec<OwnedFd>, socket: &AsyncReceiver) -> Result<(), End> {
        while timeout(HEARING, self.outbox.heard()).await.is_err() {
            if socket.is_hung_up() {
                return Err(End::Closed);
            }
        }
        if let Err((said, fds)) = self.post.at_once(&self.permits, self.host, said, fds) {
            self.post_to_actor(said, fds).await;
        }
        Ok(())
    }

    async fn post_to_actor(&self, said: Vec<ToAgent>, fds: Vec<OwnedFd>) {
        let host = self.host;
        self.post.send(&self.permits, |permit| Message::Host(host, said, fds, permit)).await;
    }

    /// A batch out of the host's ring: what is for the agent itself, and for other hosts, in order.
    async fn pass(&mut self, batch: Vec<u8>, socket: &mut AsyncReceiver) -> Result<(), End> {
        for (to, run) in runs(batch.into(), |to| to == wire_relay::TO_AGENT).map_err(broken)? {
            if to != wire_relay::TO_AGENT {
                self.routes.relay(self.host, run).await.map_err(broken)?;
                continue;
            }
            let mut said = Vec::new();
            for entry in wire_relay::entries(&run) {
                let body = entry.map_err(broken)?.body;
                if !body.is_empty() {
                    said.push(wire::decode::<ToAgent>(body).map_err(broken)?);
                    continue;
                }
                if !said.is_empty() {
                    self.said(std::mem::take(&mut said), Vec::new(), socket).await?;
                }
                let message = match self.early.pop_front() {
                    Some(message) => message,
                    None => socket.recv().await.map_err(broken)?.ok_or(End::Closed)?,
                };
                self.hear(message, socket).await?;
            }
            if !said.is_empty() {
                self.said(said, Vec::new(), socket).await?;
            }
        }
        Ok(())
    }

    /// Passes on what lies in the host's ring, until nothing does.
    async fn pass_on(&mut self, socket: &mut AsyncReceiver) -> Result<(), End> {
        let Some(ring) = &self.relay else { return Ok(()) };
        ring.begin();
        let mut first = true;
        while let Some(ring) = &mut self.relay {
            let relay::Taken { batch, messages } = ring.take().map_err(broken)?;
            if messages == 0 {
                if ring.end() {
                    break;
                }
                ring.begin();
                continue;
            }
            self.pass(batch, socket).await?;
            if messages == 1 && std::mem::take(&mut first) {
                // Likely nothing comes behind it, and whoever sends it on runs once this task waits.
                continue;
            }
            first = false;
            // The others forward it, and meanwhile more gathers here.
            tokio::task::yield_now().await;
            // Behind a first batch a host is likely in the middle of sending many: where little has come, a moment more
            // makes fewer and larger packets. A single message never waits, since nothing comes behind it.
            for _ in 0..GATHER_ROUNDS {
                let Some(1..GATHER_BYTES) = self.relay.as_ref().map(relay::Reader::ready_bytes) else {
                    break;
                };
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

/// What there is from a host.
enum Heard {
    Socket(Result<Option<mobula_net::link::Message>, mobula_net::link::Error>),
    Bell(Result<(), relay::Error>),
}

/// Hands on what a host says, until it ends.
pub(super) async fn read_all(
    host: HostId,
    mut receiver: AsyncReceiver,
    outbox: Outbox,
    post: Post,
    routes: Arc<Routes>,
) -> End {
    let permits = post.permits();
    let mut ear =
        Ear { host, post, permits, routes, outbox, relay: None, greeted: false, early: VecDeque::new() };
    loop {
        let heard = match &ear.relay {
            Some(ring) => tokio::select! {
                biased;
                rung = ring.rung() => Heard::Bell(rung),
                received = receiver.recv() => Heard::Socket(received),
            },
            None if !ear.greeted => match timeout(HELLO_TIMEOUT, receiver.recv()).await {
                Ok(received) => Heard::Socket(received),
                Err(_) => return End::NoHello,
            },
            None => Heard::Socket(receiver.recv().await),
        };
        let handled = match heard {
            // The ring says when it is its turn.
            Heard::Socket(Ok(Some(message))) if ear.relay.is_some() => {
                ear.early.push_back(message);
                if ear.early.len() <= EARLY_MAX {
                    Ok(())
                } else {
                    Err(broken("it says too much out of turn"))
                }
            }
            Heard::Socket(Ok(Some(message))) => ear.hear(message, &receiver).await,
            // Its last words, if it had no time to say that there are any. A socket breaks, too, of a host that was killed
            // before it had read what it was told, or in the middle of a message.
            Heard::Socket(Ok(None)) => ear.pass_on(&mut receiver).await.and(Err(End::Closed)),
            Heard::Socket(Err(error)) => ear.pass_on(&mut receiver).await.and(Err(broken(error))),
            Heard::Bell(Ok(())) => ear.pass_on(&mut receiver).await,
            Heard::Bell(Err(error)) => Err(broken(error)),
        };
        if let Err(end) = handled {
            return end;
        }
    }
}

/// Writes what there is for a host. Ends when its outboxes are gone, or with the link.
pub(super) async fn write_all(mut sender: AsyncSender, queue: Queue) {
    let Queue { mut items, direct } = queue;
    while let Some(item) = items.recv().await {
        let sent = match &item.what {
            What::Say(message, fds) if !fds.is_empty() || !may_overtake(message) => {
                say(&mut sender, message, fds).await
            }
            what => match (what, &mut *direct.ring.lock().await) {
                (What::Say(message, _), Some(ring)) => answer(ring, message).await,
                (What::Say(message, fds), None) => say(&mut sender, message, fds).await,
                (What::Relayed { from, same_job, batch }, Some(ring)) => {
                    ring.send(*from, *same_job, batch).await.map_err(|error| error.to_string())
                }
                (What::Relayed { from, same_job, batch }, None) => {
                    say_each(&mut sender, each(*from, *same_job, batch)).await
                }
                (What::Flush, Some(ring)) => ring.flush().await.map_err(|error| error.to_string()),
                (What::Flush, None) => Ok(()),
                (What::Reclaim, ring) => reclaim(ring.as_mut(), &mut sender, &direct).await,
            },
        };
        direct.done(&item);
        if let Err(error) = sent {
            debug!(%error, "a host's link ended");
            break;
        }
        if matches!(item.what, What::Say(ToHost::Refused(_), _)) {
            break;
        }
    }
    direct.end();
    sender.shutdown();
}

/// Says what is to be reclaimed by now.
async fn reclaim(
    ring: Option<&mut relay::Writer>,
    sender: &mut AsyncSender,
    direct: &Direct,
) -> Result<(), String> {
    let messages = direct.reclaims.lock().take();
    let Some(ring) = ring else { return say_each(sender, messages.into_iter()).await };
    for message in messages {
        answer(ring, &message).await?;
    }
    Ok(())
}

async fn answer(ring: &mut relay::Writer, message: &ToHost) -> Result<(), String> {
    let body = wire::encode(message).map_err(|error| error.to_string())?;
    ring.say(&body).await.map_err(|error| error.to_string())
}

async fn say(sender: &mut AsyncSender, message: &ToHost, fds: &[Arc<OwnedFd>]) -> Result<(), String> {
    let body = wire::encode(message).map_err(|error| error.to_string())?;
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    sender.send(&body, &fds).await.map_err(|error| error.to_string())
}

async fn say_each(
    sender: &mut AsyncSender,
    messages: impl Iterator<Item = ToHost> + Send,
) -> Result<(), String> {
    for message in messages {
        say(sender, &message, &[]).await?;
    }
    Ok(())
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
    let end = tokio::select! {
        end = read_all(host, receiver, outbox, post.clone(), routes) => end,
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
    let permits = post.permits();
    let end = loop {
        // Of whoever does not read its answers little more is read, and not nothing: the thread that would read them may
        // itself wait until a message to the agent is taken.
        tokio::select! {
            _slowed = timeout(LOCAL_PAUSE_MAX, outbox.heard()) => {}
            () = close.notified() => break End::Broken("the agent ended the link".to_owned()),
        }
        let (message, fds) = tokio::select! {
            received = from_host.recv() => match received {
                Some(received) => received,
                None => break End::Closed,
            },
            () = close.notified() => break End::Broken("the agent ended the link".to_owned()),
        };
        match message {
            ToAgent::Relay { to, body } => {
                let mut batch = Vec::new();
                let mut next = Some((to, body));
                // With all that waits behind it, but for what is to come after it.
                let behind = loop {
                    if let Some((to, body)) = next.take()
                        && let Err(error) = wire_relay::push(&mut batch, to, &body)
                    {
                        warn!(%host, %error, "a message is not relayed");
                    }
                    if batch.len() >= wire_relay::BATCH_BYTES {
                        break None;
                    }
                    match from_host.try_recv() {
                        Ok((ToAgent::Relay { to, body }, _)) => next = Some((to, body)),
                        Ok(other) => break Some(other),
                        Err(_) => break None,
                    }
                };
                if let Err(error) = routes.relay(host, batch).await {
                    warn!(%host, %error, "messages are not relayed");
                }
                if let Some((said, fds)) = behind {
                    post.send(&permits, |permit| Message::Host(host, vec![said], fds, permit)).await;
                }
            }
            said => {
                post.send(&permits, |permit| Message::Host(host, vec![said], fds, permit)).await;
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
