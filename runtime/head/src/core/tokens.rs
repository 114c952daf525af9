//! Join tokens: single use, expiring, for one role.

use mobula_net::identity::{JoinToken, PeerName, Role, SecretHash};
use mobula_proto::{Failure, FailureKind};
use serde::{Deserialize, Serialize};

use super::{Core, Effect, KNOWN_NODES_MAX, TOKENS_MAX};
use crate::state::{Record, TokenId};

/// What is kept of a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// [`SecretHash`] of its secret.
    pub secret_hash: [u8; 32],
    /// What its certificate may be: `agent` or `driver`.
    pub role: String,
    /// When it ends, in seconds since 1970.
    pub expires_unix: u64,
    /// Whether it bought its certificate.
    pub used: bool,
}

/// What a token bought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redeemed {
    /// What the certificate is for.
    pub role: Role,
    /// The name it carries: the one wished, with a number after it where that is taken.
    pub name: String,
}

impl Core {
    /// Notes a new token. Its text may be given away once the effects are applied.
    pub fn create_token(
        &mut self,
        token: &JoinToken,
        role: Role,
        expires_unix: u64,
        now_unix: u64,
    ) -> Result<Vec<Effect>, Failure> {
        if role == Role::Head {
            return Err(Failure::new(FailureKind::Internal, "a join token is for an agent or a driver"));
        }
        let expired: Vec<TokenId> =
            self.tokens.iter().filter(|(_, t)| t.expires_unix <= now_unix).map(|(id, _)| *id).collect();
        let mut effects = Vec::new();
        for id in expired {
            self.tokens.remove(&id);
            effects.push(Effect::Persist(Record::TokenGone { id }));
        }
        if self.tokens.len() >= TOKENS_MAX {
            // What has expired is forgotten all the same, here and at the next attempt on disk.
            return Err(Failure::new(
                FailureKind::Limit,
                format!("{TOKENS_MAX} join tokens are open, the most that may"),
            ));
        }
        let kept = Token {
            secret_hash: token.secret_hash().to_bytes(),
            role: role.as_str().to_owned(),
            expires_unix,
            used: false,
        };
        self.tokens.insert(token.id(), kept.clone());
        effects.push(Effect::Persist(Record::Token { id: token.id(), token: kept }));
        Ok(effects)
    }

    /// Spends a token for a certificate. The certificate may be given away once the effects are applied.
    pub fn redeem(
        &mut self,
        id: TokenId,
        secret: &SecretHash,
        wished_role: Role,
        wished_name: &str,
        now_unix: u64,
    ) -> Result<(Redeemed, Vec<Effect>), Failure> {
        let refuse = |why: &str| {
            let cure = match wished_role {
                Role::Driver => "`mobula token create --role driver`",
                _ => "`mobula token create`",
            };
            Failure::new(FailureKind::Unreachable, format!("{why}: make a new one with {cure}"))
        };
        // A wrong secret and an unknown id read the same, so that ids cannot be probed.
        let token = self
            .tokens
            .get_mut(&id)
            .filter(|token| SecretHash::from_bytes(token.secret_hash).matches(secret))
            .ok_or_else(|| refuse("the head does not know this join token"))?;
        if token.used {
            return Err(refuse("this join token was used already"));
        }
        if token.expires_unix <= now_unix {
            return Err(refuse("this join token has expired"));
        }
        let role = match token.role.as_str() {
            "agent" => Role::Agent,
            "driver" => Role::Driver,
            _ => return Err(refuse("this join token is for no role that this head knows")),
        };
        if role != wished_role {
            return Err(refuse(&format!(
                "this join token is for a {}, not a {}",
                role.word(),
                wished_role.word()
            )));
        }
        PeerName::new(role, wished_name)
            .map_err(|e| Failure::new(FailureKind::Unreachable, e.to_string()))?;
        let mut effects = Vec::new();
        let name = match role {
            Role::Agent => {
                if self.known.len() >= KNOWN_NODES_MAX {
                    return Err(Failure::new(
                        FailureKind::Limit,
                        format!("the cluster has known {KNOWN_NODES_MAX} nodes, the most that it may"),
                    ));
                }
                let name = free_name(wished_name, |name| !self.known.contains_key(name));
                let number = self.next_node;
                self.next_node = number.saturating_add(1);
                self.known.insert(name.clone(), (number, 0));
                effects.push(Effect::Persist(Record::Node { name: name.clone(), number, incarnation: 0 }));
                name
            }
            _ => wished_name.to_owned(),
        };
        token.used = true;
        effects.push(Effect::Persist(Record::Token { id, token: token.clone() }));
        Ok((Redeemed { role, name }, effects))
    }
}

/// The name wished, or the first of `name-2`, `name-3`, … that is free: a token must not buy another node's name.
fn free_name(wished: &str, free: impl Fn(&str) -> bool) -> String {
    if free(wished) {
        return wished.to_owned();
    }
    // Room for the number within the longest name allowed; names are ASCII.
    let stem = &wished[..wished.len().min(mobula_net::identity::NAME_BYTES_MAX - 8)];
    (2u32..).map(|n| format!("{stem}-{n}")).find(|name| free(name)).unwrap_or_else(|| wished.to_owned())
}
