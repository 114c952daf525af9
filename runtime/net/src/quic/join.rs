//! How a machine gets its certificate.
//!
//! The machine dials the head with nothing but a token. The token pins the cluster's CA, so the machine knows whom
//! it talks to before it shows the token's secret; the secret tells the head that it was invited. The key is made on
//! the machine and stays there.

use std::{fmt, future::Future, net::SocketAddr, ops::RangeInclusive, time::Duration};

use mobula_proto::wire;
use quinn::ConnectionError;
use rkyv::{Archive, Deserialize, Serialize};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use zeroize::Zeroize;

use super::{
    Closed, Error, JOIN_BYTES_MAX, Malformed, Options, REASON_BYTES_MAX, Receiver, Sender, endpoint,
    error::code, tls::Trust,
};
use crate::identity::{Fingerprint, Identity, JoinToken, Request, Role, SecretHash};

/// How long the whole exchange may take, on either side.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the machine says.
#[derive(Archive, Serialize, Deserialize)]
struct Ask {
    protocol_min: u32,
    protocol: u32,
    token_id: [u8; 8],
    secret: [u8; 16],
    role: Role,
    name: String,
    csr: String,
}

/// What the head answers.
#[derive(Archive, Serialize, Deserialize)]
enum Answer {
    Certificate { certificate: String, ca: String },
    Refused { reason: String },
}

/// What a machine that joins asks for. None of it is verified but by the token.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// Which token it shows.
    pub token_id: [u8; 8],
    /// Hash of the token's secret; compare it with [`SecretHash::matches`].
    pub secret_hash: SecretHash,
    /// The role it wants.
    pub role: Role,
    /// The name it wants.
    pub name: String,
    /// Its signing request, PEM, for [`crate::identity::Authority::issue`].
    pub csr: String,
    /// Where it is.
    pub from: SocketAddr,
}

/// A machine that wants to join; see [`Join::serve`]. Dropped unserved, it is turned away.
pub struct Join {
    connection: quinn::Connection,
    identity: Identity,
    _permit: OwnedSemaphorePermit,
}

impl Join {
    pub(super) fn new(
        connection: quinn::Connection,
        identity: Identity,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { connection, identity, _permit: permit }
    }

    /// Where the machine is.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Reads the machine's request, lets `decide` answer it with a certificate (PEM) or a reason for refusing that
    /// its operator will read, and sends the answer. `decide` must spend the token, durably, before it returns the
    /// certificate. Takes 10 s at most. An error means that the machine may not have heard the answer.
    pub async fn serve<F>(self, decide: impl FnOnce(JoinRequest) -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<String, String>>,
    {
        let exchange = async {
            let (send, recv) = self.connection.accept_bi().await?;
            let (mut sender, mut receiver) = (Sender::new(send), Receiver::new(recv));
            receiver.limit(JOIN_BYTES_MAX);
            let bytes = receiver.recv().await?.ok_or(Malformed::Truncated)?;
            let mut ask: Ask = wire::decode(&bytes)?;
            let secret_hash = SecretHash::of(&ask.secret);
            ask.secret.zeroize();
            if ask.protocol < wire::PROTOCOL_OLDEST || ask.protocol_min > wire::PROTOCOL_CURRENT {
                let (oldest, current) = (wire::PROTOCOL_OLDEST, wire::PROTOCOL_CURRENT);
                let detail = format!(
                    "the head {oldest} to {current}, the machine {} to {}",
                    ask.protocol_min, ask.protocol
                );
                self.connection.close(code::PROTOCOL, detail.as_bytes());
                return Err(Error::Protocol { addr: self.connection.remote_address(), detail });
            }
            let request = JoinRequest {
                token_id: ask.token_id,
                secret_hash,
                role: ask.role,
                name: ask.name,
                csr: ask.csr,
                from: self.connection.remote_address(),
            };
            let answer = decide(request).await;
            let answer = match answer {
                Ok(certificate) => Answer::Certificate { certificate, ca: self.identity.ca_pem().to_owned() },
                Err(reason) => Answer::Refused { reason: reason.chars().take(REASON_BYTES_MAX).collect() },
            };
            sender.send(&wire::encode(&answer)?).await?;
            sender.finish().await?;
            // The machine closes once it has read the answer.
            match Closed::from(self.connection.closed().await) {
                Closed::ByPeer { .. } => Ok(()),
                other => Err(other.into()),
            }
        };
        let late = Error::Timeout { what: "a node's joining", after: EXCHANGE_TIMEOUT };
        timeout(EXCHANGE_TIMEOUT, exchange).await.unwrap_or(Err(late))
    }
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Join({})", self.remote_address())
    }
}

impl Drop for Join {
    fn drop(&mut self) {
        self.connection.close(code::DONE, b"the head gave no answer");
    }
}

/// What joining brings.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The new member's identity; save it.
    pub identity: Identity,
}

/// Joins the cluster of `token` through the head at `addr`, as `role` with the wish to be called `name`. Must be
/// called inside a tokio runtime.
pub async fn join(addr: SocketAddr, token: &JoinToken, role: Role, name: &str) -> Result<Joined, Error> {
    join_speaking(wire::PROTOCOL_OLDEST..=wire::PROTOCOL_CURRENT, addr, token, role, name).await
}

/// [`join`] as a build that speaks these protocols.
pub(super) async fn join_speaking(
    protocols: RangeInclusive<u32>,
    addr: SocketAddr,
    token: &JoinToken,
    role: Role,
    name: &str,
) -> Result<Joined, Error> {
    let request = Request::new()?;
    let options = Options::default();
    // The endpoint must outlive the exchange.
    let (_endpoint, connection) =
        endpoint::dial_to_join(addr, Trust::Pinned { ca: token.ca() }, options).await?;
    let exchange = async {
        let (send, recv) = connection.open_bi().await?;
        let (mut sender, mut receiver) = (Sender::new(send), Receiver::new(recv));
        receiver.limit(JOIN_BYTES_MAX);
        let ask = Ask {
            protocol_min: *protocols.start(),
            protocol: *protocols.end(),
            token_id: token.id(),
            secret: token.secret(),
            role,
            name: name.to_owned(),
            csr: request.csr().to_owned(),
        };
        sender.send(&wire::encode(&ask)?).await?;
        sender.finish().await?;
        let bytes = receiver.recv().await?.ok_or(Malformed::Truncated)?;
        Ok(wire::decode::<Answer>(&bytes)?)
    };
    let late = Error::Timeout { what: "joining", after: EXCHANGE_TIMEOUT };
    let answer = timeout(EXCHANGE_TIMEOUT, exchange).await.unwrap_or(Err(late));
    let other_protocol = matches!(
        connection.close_reason(),
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == code::PROTOCOL
    );
    connection.close(code::DONE, b"answered");
    let answer = match answer {
        Err(Error::Closed(Closed::ByPeer { reason: detail })) if other_protocol => {
            return Err(Error::Protocol { addr, detail });
        }
        Err(Error::Closed(Closed::ByPeer { reason })) => {
            return Err(Error::JoinRefused { addr, role, reason });
        }
        other => other?,
    };
    let (certificate, ca) = match answer {
        Answer::Refused { reason } => return Err(Error::JoinRefused { addr, role, reason }),
        Answer::Certificate { certificate, ca } => (certificate, ca),
    };
    let identity = request.accept(&certificate, &ca)?;
    if Fingerprint::of(identity.ca()) != token.ca() {
        return Err(Error::ForeignToken { addr });
    }
    if identity.peer().role != role {
        return Err(Error::WrongRole { addr, expected: role, found: identity.peer().role });
    }
    Ok(Joined { identity })
}
