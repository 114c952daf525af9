use std::{os::unix::fs::PermissionsExt, path::Path, time::SystemTime};

use rustls_pki_types::UnixTime;

use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_authority_survives_a_restart_and_its_files_are_private() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("ca");
    let made = Authority::load_or_create(&folder, "test").unwrap();
    let loaded = Authority::load_or_create(&folder, "test").unwrap();
    assert_eq!(made.cluster_id(), loaded.cluster_id());
    assert_eq!(made.fingerprint(), loaded.fingerprint());
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("ca.key.pem")), 0o600);
    assert!(matches!(Authority::create(&folder, "test"), Err(Error::Exists { .. })));

    let identity = loaded.identity(Role::Head, "head-1").unwrap();
    identity.save(&folder).unwrap();
    assert_eq!(mode(&folder.join("node.key.pem")), 0o600);
    let again = Identity::load(&folder).unwrap();
    assert_eq!(again.peer(), &PeerName::new(Role::Head, "head-1").unwrap());
    assert_eq!(again.cluster_id(), made.cluster_id());
    assert!(Authority::load(&folder).is_ok());

    std::fs::set_permissions(folder.join("node.key.pem"), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Identity::load(&folder), Err(Error::Exposed { mode: 0o640, .. })));
}

#[test]
fn a_certificate_names_what_the_authority_decided_and_ends_when_it_said() {
    let home = tempfile::tempdir().unwrap();
    let ca = Authority::create(home.path(), "test").unwrap();
    let request = Request::new().unwrap();
    let cert = ca.issue(request.csr(), Role::Agent, "node-7", Duration::from_hours(2)).unwrap();
    let identity = request.accept(&cert, ca.ca_pem()).unwrap();
    assert_eq!(identity.peer().to_string(), "agent node-7");
    let left = identity.expires().duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_hours(2) && left > Duration::from_mins(119), "{left:?}");

    let der = identity.chain().remove(0);
    let later = |hours: u64| {
        UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + hours * 3600))
    };
    assert!(verify_server(&der, identity.ca(), later(1)).is_ok());
    assert!(verify_server(&der, identity.ca(), later(3)).is_err());
    assert!(verify_issued(&der, identity.ca(), later(3)).is_err());
    let driver = ca.identity(Role::Driver, "laptop").unwrap();
    assert!(verify_issued(&driver.chain()[0], driver.ca(), later(0)).is_ok());
    assert!(verify_server(&driver.chain()[0], driver.ca(), later(0)).is_err(), "drivers do not serve");

    let renewal = ca.issue(&identity.request().unwrap(), Role::Agent, "node-7", NODE_LIFETIME).unwrap();
    let renewed = identity.renewed(&renewal).unwrap();
    assert!(renewed.expires() > identity.expires());
    for name in ["", "a/b", "a b", "ä", &"x".repeat(NAME_BYTES_MAX + 1)] {
        assert!(matches!(ca.identity(Role::Agent, name), Err(Error::Name { .. })), "{name:?}");
    }
    assert!(ca.issue("nonsense", Role::Agent, "n", NODE_LIFETIME).is_err());
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = Authority::create(a.path(), "same").unwrap();
    let other = Authority::create(b.path(), "same").unwrap();
    assert_ne!(ours.cluster_id(), other.cluster_id());

    let request = Request::new().unwrap();
    let cert = other.issue(request.csr(), Role::Agent, "n", NODE_LIFETIME).unwrap();
    let error = request.accept(&cert, ours.ca_pem()).unwrap_err();
    assert!(matches!(error, Error::OtherCluster { .. }), "{error}");

    let cert = ours.issue(Request::new().unwrap().csr(), Role::Agent, "n", NODE_LIFETIME).unwrap();
    assert!(matches!(Request::new().unwrap().accept(&cert, ours.ca_pem()), Err(Error::OtherKey)));

    // A key that lies beside another CA's certificate.
    std::fs::copy(b.path().join("ca.pem"), a.path().join("ca.pem")).unwrap();
    assert!(Authority::load(a.path()).unwrap_err().to_string().contains("another key"));
}

#[test]
fn tokens_read_back_and_say_what_is_wrong() {
    let token = JoinToken::new(Fingerprint([7; 32])).unwrap();
    let text = token.reveal();
    let read = JoinToken::parse(&format!("  {}\n", *text)).unwrap();
    assert_eq!((read.id(), read.ca()), (token.id(), token.ca()));
    assert!(read.secret_hash().matches(&token.secret_hash()));
    assert!(!read.secret_hash().matches(&JoinToken::new(Fingerprint([7; 32])).unwrap().secret_hash()));
    assert!(!format!("{token:?}").contains(&hex::encode(token.secret())));

    let refused = |text: &str| JoinToken::parse(text).unwrap_err();
    assert!(matches!(refused("hello"), Error::TokenPrefix));
    assert!(matches!(refused(&text[..text.len() - 1]), Error::TokenLength { got: 121, want: 122 }));
    let last = if text.ends_with('0') { "1" } else { "0" };
    assert!(matches!(refused(&format!("{}{last}", &text[..text.len() - 1])), Error::TokenChecksum));
    assert!(matches!(refused(&format!("{}z", &text[..text.len() - 1])), Error::TokenCharacter));
    for at in (TOKEN_PREFIX.len()..text.len()).step_by(7) {
        let mut bent = text.as_bytes().to_vec();
        bent[at] = if bent[at] == b'3' { b'4' } else { b'3' };
        assert!(matches!(refused(std::str::from_utf8(&bent).unwrap()), Error::TokenChecksum));
    }
}

#[test]
fn names_in_uris_are_read_strictly() {
    let cluster = "0123456789abcdef0123456789abcdef";
    let peer = PeerName::new(Role::Driver, "laptop.1").unwrap();
    assert_eq!(PeerName::parse_uri(&peer.uri(cluster)), Some((cluster.to_owned(), peer)));
    for bad in [
        "https://0123456789abcdef0123456789abcdef/agent/n",
        "mobula://0123/agent/n",
        "mobula://0123456789abcdef0123456789abcdef/root/n",
        "mobula://0123456789abcdef0123456789abcdef/agent/",
        "mobula://0123456789abcdef0123456789abcdef/agent/n/x",
    ] {
        assert_eq!(PeerName::parse_uri(bad), None, "{bad}");
    }
}
