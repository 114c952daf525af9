//! Join tokens: one line that lets one machine into one cluster.
//!
//! After the prefix come 61 bytes in hexadecimal: version (1), token id (8), secret (16), fingerprint of the CA
//! (32), checksum (4, the start of BLAKE3 of all before). Expiry and single use are the head's business: it keeps
//! id, [`SecretHash`], expiry and role.

use std::{fmt, str::FromStr};

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::{Error, Fingerprint, random};

/// What every join token starts with.
pub const TOKEN_PREFIX: &str = "mobula-join-";
const VERSION: u8 = 1;
const BODY_BYTES: usize = 1 + 8 + 16 + 32;
const CHECKSUM_BYTES: usize = 4;
const TOKEN_BYTES: usize = BODY_BYTES + CHECKSUM_BYTES;

/// A join token. Its text form is a secret; its `Debug` form is not.
#[derive(Clone)]
pub struct JoinToken {
    id: [u8; 8],
    secret: [u8; 16],
    ca: Fingerprint,
}

/// What is kept of a token's secret. Compared in constant time; hence no `PartialEq`.
#[derive(Clone, Copy, Debug)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    pub(crate) fn of(secret: &[u8; 16]) -> Self {
        Self(*blake3::hash(secret).as_bytes())
    }

    /// As stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// To store.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Whether both are of the same secret; takes the same time whatever the answer.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl JoinToken {
    /// A new token for the cluster of this CA.
    pub fn new(ca: Fingerprint) -> Result<Self, Error> {
        Ok(Self { id: random()?, secret: random()?, ca })
    }

    /// Reads a token's text; spaces around it do not matter.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let digits = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(Error::TokenPrefix)?;
        if digits.len() != 2 * TOKEN_BYTES {
            return Err(Error::TokenLength { got: digits.len(), want: 2 * TOKEN_BYTES });
        }
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        hex::decode_to_slice(digits, bytes.as_mut_slice()).map_err(|_| Error::TokenCharacter)?;
        let (body, checksum) = bytes.split_at(BODY_BYTES);
        if checksum != &blake3::hash(body).as_bytes()[..CHECKSUM_BYTES] {
            return Err(Error::TokenChecksum);
        }
        if body[0] != VERSION {
            return Err(Error::TokenVersion { version: body[0] });
        }
        let mut token = Self { id: [0; 8], secret: [0; 16], ca: Fingerprint([0; 32]) };
        token.id.copy_from_slice(&body[1..9]);
        token.secret.copy_from_slice(&body[9..25]);
        token.ca.0.copy_from_slice(&body[25..]);
        Ok(token)
    }

    /// The text to hand to a new machine. It is a secret.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.id);
        bytes[9..25].copy_from_slice(&self.secret);
        bytes[25..BODY_BYTES].copy_from_slice(&self.ca.0);
        let checksum = blake3::hash(&bytes[..BODY_BYTES]);
        bytes[BODY_BYTES..].copy_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
        Zeroizing::new(format!("{TOKEN_PREFIX}{}", *Zeroizing::new(hex::encode(bytes.as_slice()))))
    }

    /// Which token it is; not secret.
    pub fn id(&self) -> [u8; 8] {
        self.id
    }

    /// What the head keeps to recognise the secret.
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash::of(&self.secret)
    }

    /// The CA of the cluster that it is for.
    pub fn ca(&self) -> Fingerprint {
        self.ca
    }

    pub(crate) fn secret(&self) -> [u8; 16] {
        self.secret
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", hex::encode(self.id))
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}
