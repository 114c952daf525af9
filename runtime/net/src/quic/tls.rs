//! TLS 1.3 under the cluster's CA: who may serve, who may dial, and what each must present.

use std::sync::Arc;

use parking_lot::Mutex;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::verify_tls13_signature,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{ALPN, ALPN_JOIN, Error};
use crate::identity::{self, Fingerprint, Identity, Role, crypto, verify_issued, verify_server};

/// What a dialler accepts.
#[derive(Debug, Clone)]
pub(super) enum Trust {
    /// A member of this CA's cluster, in this role.
    Member { ca: CertificateDer<'static>, role: Role },
    /// The head of the cluster whose CA, presented with the certificate, has this fingerprint.
    Pinned { ca: Fingerprint },
}

/// Why the dialler turned the server down; TLS itself only carries an alert.
#[derive(Debug)]
pub(super) enum Refusal {
    OtherCluster { theirs: String, ours: String },
    OtherAuthority,
    WrongRole { expected: Role, found: Role },
    Bad(String),
}

impl From<identity::Error> for Refusal {
    fn from(error: identity::Error) -> Self {
        match error {
            identity::Error::OtherCluster { theirs, ours } => Self::OtherCluster { theirs, ours },
            other => Self::Bad(other.to_string()),
        }
    }
}

/// Checks the server that one connection dials. It remembers why it refused.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Trust,
    refusal: Mutex<Option<Refusal>>,
}

impl ServerVerifier {
    pub(super) fn new(trust: Trust) -> Arc<Self> {
        Arc::new(Self { trust, refusal: Mutex::new(None) })
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.lock().take()
    }

    fn judge(
        &self,
        server: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let (peer, expected) = match &self.trust {
            Trust::Member { ca, role } => (verify_server(server, ca, now)?, *role),
            Trust::Pinned { ca } => {
                let presented = rest.last().ok_or(Refusal::OtherAuthority)?;
                if Fingerprint::of(presented) != *ca {
                    return Err(Refusal::OtherAuthority);
                }
                (verify_server(server, presented, now)?, Role::Head)
            }
        };
        if peer.role != expected {
            return Err(Refusal::WrongRole { expected, found: peer.role });
        }
        Ok(())
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.judge(end_entity, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refusal) => {
                *self.refusal.lock() = Some(refusal);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &crypto::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto::algorithms().supported_schemes()
    }
}

/// Checks whoever dials this endpoint.
#[derive(Debug)]
struct ClientVerifier {
    ca: CertificateDer<'static>,
    /// Where joining is served, TLS lets strangers through; the endpoint then lets them join and nothing else.
    strangers: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.strangers
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match verify_issued(end_entity, &self.ca, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => {
                tracing::debug!(%error, "a client certificate was refused");
                let why = match error {
                    identity::Error::OtherCluster { .. } => CertificateError::UnknownIssuer,
                    _ => CertificateError::ApplicationVerificationFailure,
                };
                Err(why.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &crypto::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto::algorithms().supported_schemes()
    }
}

fn tls(error: impl std::fmt::Display) -> Error {
    Error::Tls(error.to_string())
}

/// TLS for the serving side. No session tickets: every connection proves a certificate that holds now.
pub(super) fn server(identity: &Identity, accept_join: bool) -> Result<QuicServerConfig, Error> {
    let verifier = ClientVerifier { ca: identity.ca().clone(), strangers: accept_join };
    let mut config = rustls::ServerConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain(), identity.private_key()?)
        .map_err(tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    if accept_join {
        config.alpn_protocols.push(ALPN_JOIN.to_vec());
    }
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(tls)
}

/// TLS for the dialling side: a member presents `identity`, one that joins has none.
pub(super) fn client(
    identity: Option<&Identity>,
    verifier: Arc<ServerVerifier>,
) -> Result<QuicClientConfig, Error> {
    client_with_alpn(identity, verifier, if identity.is_some() { ALPN } else { ALPN_JOIN })
}

pub(super) fn client_with_alpn(
    identity: Option<&Identity>,
    verifier: Arc<ServerVerifier>,
    alpn: &[u8],
) -> Result<QuicClientConfig, Error> {
    let builder = rustls::ClientConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain(), identity.private_key()?).map_err(tls)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    QuicClientConfig::try_from(config).map_err(tls)
}
