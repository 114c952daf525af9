//! The cluster's certificate authority, which the head holds.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use zeroize::Zeroizing;

use super::{
    CLOCK_SKEW_MAX, Error, Identity, LIFETIME_MAX, NODE_LIFETIME, PEM_BYTES_MAX, PeerName, Request, Role,
    certificate::certificate_from_pem, files, random,
};

const KEY_FILE: &str = "ca.key.pem";
const CERTIFICATE_FILE: &str = "ca.pem";

/// BLAKE3 of a CA's certificate (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The cluster that a CA makes: the first 16 bytes of its fingerprint, 32 hexadecimal digits.
pub(crate) fn cluster_id(ca: &CertificateDer<'_>) -> String {
    hex::encode(&Fingerprint::of(ca).0[..16])
}

/// The cluster's CA with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    fingerprint: Fingerprint,
    cluster_id: String,
}

impl Authority {
    /// Makes a new cluster's CA and writes it to `folder`. Fails where one is already there.
    pub fn create(folder: &Path, cluster_name: &str) -> Result<Self, Error> {
        if folder.join(CERTIFICATE_FILE).exists() {
            return Err(Error::Exists { path: folder.to_owned() });
        }
        // The same rules as for a node's name.
        PeerName::new(Role::Head, cluster_name)?;
        let key = KeyPair::generate().map_err(|e| Error::invalid("a new CA key", e))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, cluster_name);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("mobula ca {}", hex::encode(random::<8>()?)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        hold_for(&mut params, LIFETIME_MAX, SystemTime::now())?;
        let certificate = params.self_signed(&key).map_err(|e| Error::invalid("a new CA certificate", e))?;
        files::folder(folder)?;
        // The certificate last: a folder without one holds no CA yet, and the key there is nobody's.
        files::write(folder, KEY_FILE, &Zeroizing::new(key.serialize_pem()))?;
        files::write(folder, CERTIFICATE_FILE, &certificate.pem())?;
        Self::new(key, certificate.pem())
    }

    /// Reads what [`Authority::create`] wrote.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let key = files::read_key(folder, KEY_FILE)?;
        let key = KeyPair::from_pem(&key).map_err(|e| Error::invalid("the CA's key", e))?;
        Self::new(key, files::read(folder, CERTIFICATE_FILE)?.to_string())
    }

    /// [`Authority::load`] where the folder holds a CA, else [`Authority::create`].
    pub fn load_or_create(folder: &Path, cluster_name: &str) -> Result<Self, Error> {
        if folder.join(CERTIFICATE_FILE).exists() {
            Self::load(folder)
        } else {
            Self::create(folder, cluster_name)
        }
    }

    fn new(key: KeyPair, pem: String) -> Result<Self, Error> {
        let der = certificate_from_pem("the CA's certificate", &pem)?;
        let parsed = EndEntityCert::try_from(&der).map_err(|e| Error::invalid("the CA's certificate", e))?;
        if parsed.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err(Error::invalid(
                "the CA's certificate",
                "it is for another key than the one beside it",
            ));
        }
        let issuer =
            Issuer::from_ca_cert_pem(&pem, key).map_err(|e| Error::invalid("the CA's certificate", e))?;
        Ok(Self { issuer, fingerprint: Fingerprint::of(&der), cluster_id: cluster_id(&der), pem })
    }

    /// The cluster: 32 hexadecimal digits.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// What join tokens pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// Signs a request (PEM, P-256) and returns the certificate (PEM). Only its key counts: role and name are the
    /// caller's decision, whatever the request asks for. `lifetime` is cut to [`LIFETIME_MAX`].
    pub fn issue(&self, csr: &str, role: Role, name: &str, lifetime: Duration) -> Result<String, Error> {
        self.issue_at(csr, role, name, lifetime, SystemTime::now())
    }

    pub(crate) fn issue_at(
        &self,
        csr: &str,
        role: Role,
        name: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, Error> {
        let peer = PeerName::new(role, name)?;
        if csr.len() > PEM_BYTES_MAX {
            return Err(Error::invalid("the signing request", format!("over {PEM_BYTES_MAX} bytes")));
        }
        // Parsing checks the request's signature: the sender holds the key that it asks a certificate for.
        let request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|e| Error::invalid("the signing request", e))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(Error::invalid("the signing request", "its key is not of the curve P-256"));
        }
        let uri = peer.uri(&self.cluster_id);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, peer.name.as_str());
        params.subject_alt_names =
            vec![SanType::URI(uri.try_into().map_err(|e| Error::invalid("the certificate's name", e))?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if role != Role::Driver {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let mut serial = random::<16>()?;
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        hold_for(&mut params, lifetime, now)?;
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|e| Error::invalid("a new certificate", e))?;
        Ok(certificate.pem())
    }

    /// Makes an identity here, key included: for the head itself, and for agents inside its own process.
    pub fn identity(&self, role: Role, name: &str) -> Result<Identity, Error> {
        let request = Request::new()?;
        let certificate = self.issue(request.csr(), role, name, NODE_LIFETIME)?;
        request.accept(&certificate, &self.pem)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

fn hold_for(params: &mut CertificateParams, lifetime: Duration, now: SystemTime) -> Result<(), Error> {
    let (Some(from), Some(until)) =
        (now.checked_sub(CLOCK_SKEW_MAX), now.checked_add(lifetime.min(LIFETIME_MAX)))
    else {
        return Err(Error::invalid("a new certificate", "this machine's clock is far off"));
    };
    params.not_before = from.into();
    params.not_after = until.into();
    Ok(())
}
