//! A process's own certificate, and how one is asked for and checked.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls::{RootCertStore, client::verify_server_cert_signed_by_trust_anchor, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use webpki::{EndEntityCert, KeyUsage};
use zeroize::Zeroizing;

use super::{Error, PEM_BYTES_MAX, PeerName, authority, crypto, files};

const KEY_FILE: &str = "node.key.pem";
const CERTIFICATE_FILE: &str = "node.pem";
const CA_FILE: &str = "ca.pem";

/// A key with its certificate and the cluster's CA. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    key: Zeroizing<String>,
    certificate: String,
    ca: String,
    certificate_der: CertificateDer<'static>,
    ca_der: CertificateDer<'static>,
    peer: PeerName,
    cluster_id: String,
    expires: SystemTime,
}

impl Identity {
    /// Checks that the three PEM texts belong together: the certificate is for the key, is signed by the CA, is
    /// valid now and carries a name of the CA's cluster.
    pub(super) fn new(key: Zeroizing<String>, certificate: &str, ca: &str) -> Result<Self, Error> {
        Self::new_at(key, certificate, ca, UnixTime::now())
    }

    fn new_at(key: Zeroizing<String>, certificate: &str, ca: &str, now: UnixTime) -> Result<Self, Error> {
        let key_pair = KeyPair::from_pem(&key).map_err(|e| Error::invalid("the private key", e))?;
        let certificate_der = certificate_from_pem("the certificate", certificate)?;
        let ca_der = certificate_from_pem("the CA's certificate", ca)?;
        let parsed = parse(&certificate_der)?;
        if parsed.subject_public_key_info().as_ref() != key_pair.subject_public_key_info() {
            return Err(Error::OtherKey);
        }
        let cluster_id = authority::cluster_id(&ca_der);
        let peer = verify_issued(&certificate_der, &ca_der, now)?;
        let expires = expiry(&parsed, &ca_der)?;
        Ok(Self(Arc::new(Inner {
            key,
            certificate: certificate.to_owned(),
            ca: ca.to_owned(),
            certificate_der,
            ca_der,
            peer,
            cluster_id,
            expires,
        })))
    }

    /// Reads what [`Identity::save`] wrote.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let key = files::read_key(folder, KEY_FILE)?;
        Self::new(key, &files::read(folder, CERTIFICATE_FILE)?, &files::read(folder, CA_FILE)?)
    }

    /// Writes key, certificate and CA certificate to `folder`, replacing what is there. The CA may share it.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        files::folder(folder)?;
        files::write(folder, KEY_FILE, &self.0.key)?;
        files::write(folder, CA_FILE, &self.0.ca)?;
        files::write(folder, CERTIFICATE_FILE, &self.0.certificate)
    }

    /// Whether `folder` holds a saved identity, good or not.
    pub fn exists(folder: &Path) -> bool {
        folder.join(CERTIFICATE_FILE).exists()
    }

    /// The role and name in the certificate.
    pub fn peer(&self) -> &PeerName {
        &self.0.peer
    }

    /// The cluster: 32 hexadecimal digits.
    pub fn cluster_id(&self) -> &str {
        &self.0.cluster_id
    }

    /// When the certificate ends; ask for another well before (see [`Identity::request`]).
    pub fn expires(&self) -> SystemTime {
        self.0.expires
    }

    /// A signing request (PEM) for the same key, to renew the certificate with.
    pub fn request(&self) -> Result<String, Error> {
        signing_request(&self.key_pair()?)
    }

    /// This identity with a newer certificate (PEM) for the same key and cluster.
    pub fn renewed(&self, certificate: &str) -> Result<Self, Error> {
        Self::new(self.0.key.clone(), certificate, &self.0.ca)
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.0.ca_der
    }

    /// The chain that TLS presents: the certificate, then the CA's, which a joining node pins.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.0.certificate_der.clone(), self.0.ca_der.clone()]
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(self.0.key.as_bytes())
            .map_err(|e| Error::invalid("the private key", format!("{e:?}")))
    }

    fn key_pair(&self) -> Result<KeyPair, Error> {
        KeyPair::from_pem(&self.0.key).map_err(|e| Error::invalid("the private key", e))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.0.peer)
            .field("cluster_id", &self.0.cluster_id)
            .finish()
    }
}

/// A new key and the request that a cluster's CA should sign it.
pub struct Request {
    key: Zeroizing<String>,
    csr: String,
}

impl Request {
    /// Makes a key. It stays in this value, and then in the [`Identity`] that comes of it.
    pub fn new() -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(|e| Error::invalid("a new private key", e))?;
        let csr = signing_request(&key)?;
        Ok(Self { key: Zeroizing::new(key.serialize_pem()), csr })
    }

    /// The signing request, PEM. It names nobody: the CA decides the name.
    pub fn csr(&self) -> &str {
        &self.csr
    }

    /// Makes the identity of what the CA sent back, checking that it belongs to this key and that CA. The caller
    /// decides whether it trusts that CA.
    pub fn accept(self, certificate: &str, ca: &str) -> Result<Identity, Error> {
        Identity::new(self.key, certificate, ca)
    }

    /// As [`Request::accept`] would have done at another time.
    #[cfg(test)]
    pub(crate) fn accept_at(self, certificate: &str, ca: &str, now: UnixTime) -> Identity {
        Identity::new_at(self.key, certificate, ca, now).unwrap()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

fn signing_request(key: &KeyPair) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).map_err(|e| Error::invalid("a signing request", e))?;
    request.pem().map_err(|e| Error::invalid("a signing request", e))
}

pub(super) fn certificate_from_pem(what: &'static str, pem: &str) -> Result<CertificateDer<'static>, Error> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(Error::invalid(what, format!("{} bytes, over {PEM_BYTES_MAX}", pem.len())));
    }
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::invalid(what, format!("{e:?}")))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<EndEntityCert<'a>, Error> {
    EndEntityCert::try_from(certificate).map_err(|e| Error::invalid("the certificate", e))
}

/// The cluster and name that a certificate states, which is not yet to be believed. Exactly one URI counts.
pub(crate) fn presented(certificate: &CertificateDer<'_>) -> Result<(String, PeerName), Error> {
    let parsed = parse(certificate)?;
    let mut uris = parsed.valid_uri_names();
    match (uris.next().and_then(PeerName::parse_uri), uris.next()) {
        (Some(found), None) => Ok(found),
        _ => Err(Error::invalid("the certificate", "it carries no name of a Mobula cluster")),
    }
}

/// Checks that `ca` signed `certificate`, that it is valid at `now` and that it names this CA's cluster; returns
/// the name. Whether it may be used by a client or a server is TLS's to check.
pub(crate) fn verify_issued(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<PeerName, Error> {
    let (theirs, peer) = presented(certificate)?;
    let ours = authority::cluster_id(ca);
    if theirs != ours {
        return Err(Error::OtherCluster { theirs, ours });
    }
    let anchor =
        webpki::anchor_from_trusted_cert(ca).map_err(|e| Error::invalid("the CA's certificate", e))?;
    // A client certificate is what every role has; servers' are checked for their use too, when they serve.
    parse(certificate)?
        .verify_for_usage(crypto::algorithms().all, &[anchor], &[], now, KeyUsage::client_auth(), None, None)
        .map_err(|e| Error::invalid("the certificate", e))?;
    Ok(peer)
}

/// Checks a server's certificate as [`verify_issued`] does, and that it may be used by a server.
pub(crate) fn verify_server(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<PeerName, Error> {
    let peer = verify_issued(certificate, ca, now)?;
    let untrusted = |e: rustls::Error| Error::invalid("the certificate", e);
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).map_err(untrusted)?;
    let parsed = ParsedCertificate::try_from(certificate).map_err(untrusted)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, crypto::algorithms().all)
        .map_err(untrusted)?;
    Ok(peer)
}

/// When a certificate ends. Verification at the end of time fails, and says since when.
fn expiry(parsed: &EndEntityCert<'_>, ca: &CertificateDer<'_>) -> Result<SystemTime, Error> {
    let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::from(u32::MAX) * 64));
    let anchor =
        webpki::anchor_from_trusted_cert(ca).map_err(|e| Error::invalid("the CA's certificate", e))?;
    let usage = KeyUsage::client_auth();
    match parsed.verify_for_usage(crypto::algorithms().all, &[anchor], &[], end_of_time, usage, None, None) {
        Err(webpki::Error::CertExpired { not_after, .. }) => {
            Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
        }
        Err(e) => Err(Error::invalid("the certificate", e)),
        Ok(_) => Err(Error::invalid("the certificate", "it never ends")),
    }
}
