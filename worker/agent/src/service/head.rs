//! The link to the head: registration, the pump in both directions, and what happens when it breaks.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mobula_net::{
    identity::Role,
    quic::{Connection, Endpoint, Receiver, Sender, StreamKind},
};
use mobula_proto::{
    Failure, NodeId,
    head::{Node, Register, ToAgent, ToHead},
    wire::{self, Hello},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use super::actor::{Message, Post};

/// Most messages to the head that wait, those of a broken link included.
pub const QUEUE_MAX: usize = 65_536;
/// How long a registration may take.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why there is no link to the head.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The head refused this agent.
    #[error("the head refused this agent: {0}")]
    Refused(Failure),
    /// The head was restarted, or gave this agent up, and would take it only as a new incarnation.
    #[error(
        "the head was restarted, or gave up {was} after a silence: the node would be {now} from now on, and what it ran is over"
    )]
    Stale {
        /// Who the agent was.
        was: NodeId,
        /// Who it would be.
        now: NodeId,
    },
    /// It could not be reached.
    #[error("the head could not be reached: {0}")]
    Net(#[from] mobula_net::quic::Error),
    /// It does not speak this protocol.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// It said something else, nothing, or closed the link.
    #[error(
        "the head did not answer the registration within {REGISTER_TIMEOUT:?}, or answered something else"
    )]
    NoAnswer,
    /// It was lost for too long.
    #[error("the head was lost for {0:?}")]
    Lost(Duration),
    /// It ended in good order.
    #[error("the head ended, and the cluster with it")]
    Shutdown,
    /// The node has drained, or had no more time for it.
    #[error("the node has drained, and left the cluster")]
    Dismissed,
}

/// A registered link.
pub(super) enum Link {
    Quic(Box<Quic>),
    Memory { to_head: mpsc::Sender<ToHead>, from_head: mpsc::Receiver<ToAgent> },
}

pub(super) struct Quic {
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
    register: Register,
    lost_max: Duration,
    connection: Connection,
    sender: Sender,
    receiver: Receiver,
}

/// What the head said to the registration.
pub(super) struct Registered {
    pub(super) node: NodeId,
    pub(super) nodes: Vec<Node>,
}

fn registration(node: Register) -> ToHead {
    ToHead::Register { hello: Hello::new(wire::Role::Agent), node }
}

fn registered(answer: ToAgent) -> Result<Registered, Error> {
    match answer {
        ToAgent::Registered { node, nodes } => Ok(Registered { node, nodes }),
        ToAgent::Refused(failure) => Err(Error::Refused(failure)),
        _ => Err(Error::NoAnswer),
    }
}

/// Registers in memory.
pub(super) async fn register_memory(
    to_head: mpsc::Sender<ToHead>,
    mut from_head: mpsc::Receiver<ToAgent>,
    node: Register,
) -> Result<(Link, Registered), Error> {
    let exchange = async {
        to_head.send(registration(node)).await.map_err(|_| Error::NoAnswer)?;
        registered(from_head.recv().await.ok_or(Error::NoAnswer)?)
    };
    let registered = timeout(REGISTER_TIMEOUT, exchange).await.map_err(|_| Error::NoAnswer)??;
    Ok((Link::Memory { to_head, from_head }, registered))
}

async fn dial(
    endpoint: &Endpoint,
    address: SocketAddr,
    node: &Register,
) -> Result<(Connection, Sender, Receiver, Registered), Error> {
    let exchange = async {
        let connection = endpoint.connect(address, Role::Head).await?;
        let (mut sender, mut receiver) = connection.open(StreamKind::Control).await?;
        sender.send(&wire::encode(&registration(node.clone()))?).await?;
        let answer = receiver.recv().await?.ok_or(Error::NoAnswer)?;
        let registered = registered(wire::decode(&answer)?)?;
        Ok((connection, sender, receiver, registered))
    };
    timeout(REGISTER_TIMEOUT, exchange).await.map_err(|_| Error::NoAnswer)?
}

/// Registers over QUIC. A link that breaks later is dialled again for at most `lost_max`.
pub(super) async fn register_quic(
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
    register: Register,
    lost_max: Duration,
) -> Result<(Link, Registered), Error> {
    let (connection, sender, receiver, registered) = dial(&endpoint, address, &register).await?;
    let link = Quic { endpoint, address, register, lost_max, connection, sender, receiver };
    Ok((Link::Quic(Box::new(link)), registered))
}

/// Pumps both directions until the link is lost for good (`Err`) or the queue to the head ends (`Ok`).
pub(super) async fn run(
    link: Link,
    me: NodeId,
    mut queue: mpsc::Receiver<ToHead>,
    post: Post,
) -> Result<(), Error> {
    match link {
        Link::Memory { to_head, mut from_head } => {
            let permits = post.permits();
            loop {
                tokio::select! {
                    biased;
                    said = from_head.recv() => match said {
                        Some(said) => hand_on(&post, &permits, said).await?,
                        None => return Err(Error::Shutdown),
                    },
                    to_say = queue.recv() => match to_say {
                        // The head's inbox is bounded, and so is this agent's; neither waits for the other, since
                        // the head gives up an agent rather than wait.
                        Some(to_say) => to_head.send(to_say).await.map_err(|_| Error::Shutdown)?,
                        None => return Ok(()),
                    },
                }
            }
        }
        Link::Quic(mut link) => loop {
            match link.pump(&mut queue, &post).await {
                Ok(()) => {
                    link.leave().await;
                    return Ok(());
                }
                Err(error @ (Error::Refused(_) | Error::Shutdown | Error::Dismissed)) => return Err(error),
                Err(error) => warn!(%error, "the link to the head broke"),
            }
            link.again(me).await?;
        },
    }
}

async fn hand_on(post: &Post, permits: &Arc<tokio::sync::Semaphore>, said: ToAgent) -> Result<(), Error> {
    match said {
        ToAgent::Shutdown => Err(Error::Shutdown),
        ToAgent::Dismissed => Err(Error::Dismissed),
        ToAgent::Refused(failure) => Err(Error::Refused(failure)),
        said => {
            post.send(permits, |permit| Message::Head(Box::new(said), permit)).await;
            Ok(())
        }
    }
}

impl Quic {
    async fn pump(&mut self, queue: &mut mpsc::Receiver<ToHead>, post: &Post) -> Result<(), Error> {
        let (sender, receiver) = (&mut self.sender, &mut self.receiver);
        let writing = async {
            while let Some(message) = queue.recv().await {
                sender.feed(&wire::encode(&message)?).await?;
                while let Ok(message) = queue.try_recv() {
                    sender.feed(&wire::encode(&message)?).await?;
                }
                sender.flush().await?;
            }
            Ok(())
        };
        let permits = post.permits();
        let reading = async {
            while let Some(bytes) = receiver.recv().await? {
                hand_on(post, &permits, wire::decode(&bytes)?).await?;
            }
            Err(Error::NoAnswer)
        };
        tokio::select! {
            ended = writing => ended,
            ended = reading => ended,
        }
    }

    async fn again(&mut self, me: NodeId) -> Result<(), Error> {
        let deadline = Instant::now() + self.lost_max;
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            match timeout_at(deadline, dial(&self.endpoint, self.address, &self.register)).await {
                Ok(Ok((connection, sender, receiver, registered))) => {
                    if registered.node != me {
                        connection.close("this agent had been given up");
                        return Err(Error::Stale { was: me, now: registered.node });
                    }
                    info!("the head is back");
                    (self.connection, self.sender, self.receiver) = (connection, sender, receiver);
                    return Ok(());
                }
                Ok(Err(error @ Error::Refused(_))) => return Err(error),
                Ok(Err(error)) => warn!(%error, "dialling the head again"),
                Err(_) => return Err(Error::Lost(self.lost_max)),
            }
            if Instant::now() + pause >= deadline {
                return Err(Error::Lost(self.lost_max));
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn leave(&mut self) {
        let leaving = async {
            self.sender.send(&wire::encode(&ToHead::Leave)?).await?;
            self.sender.finish().await?;
            self.sender.delivered().await?;
            Ok::<(), Error>(())
        };
        // A head that does not hear of it will notice.
        let _unheard = timeout(Duration::from_secs(1), leaving).await;
        self.connection.close("the agent leaves");
    }
}
