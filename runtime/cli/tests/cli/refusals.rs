//! What is refused, and how it reads.

use std::{
    net::TcpListener,
    time::{Duration, SystemTime},
};

use crate::harness::{Home, node, taken_udp, wait_for};

#[test]
fn a_token_lets_in_once_for_its_time_its_role_and_its_cluster() {
    let here = Home::new();
    let (_head, address) = here.head();
    let address = address.to_string();
    let token = here.token();
    let first = Home::new();
    let mut joined = first.run(&node(&address, &["--join", &token]));
    joined.line("is up");

    let second = Home::new();
    let join = |token: &str| second.say(&node(&address, &["--join", token]));
    join(&token).failed(1, &["was used already", "[MOB6001]", "mobula token create"]);
    let short = here.say(&["token", "create", "--ttl", "1s"]).ok();
    let expired = SystemTime::now() + Duration::from_secs(2);
    wait_for("the token to expire", || (SystemTime::now() > expired).then_some(()));
    join(&short).failed(1, &["has expired", "[MOB6001]", "mobula token create"]);
    let driver = here.say(&["token", "create", "--role", "driver"]).ok();
    join(&driver).failed(1, &["for a driver, not a node", "[MOB6001]"]);
    let good = here.token();
    join(&good[..good.len() - 2]).failed(2, &["copy the whole line", "[MOB6001]"]);
    join("secret").failed(2, &["no join token", "[MOB6001]"]);

    let other = Home::new();
    let (_other_head, other_address) = other.head();
    let other_address = other_address.to_string();
    second
        .say(&node(&other_address, &["--join", &good]))
        .failed(1, &["another cluster", "[MOB6001]", "mobula token create"]);
    // Refused there, it is still good here; and the certificate it buys is not good there.
    let mut joined = second.run(&node(&address, &["--join", &good]));
    joined.line("is up");
    joined.end();
    second.say(&node(&other_address, &[])).failed(1, &["belongs to", "[MOB6002]", "join again"]);
}

#[test]
fn a_node_needs_a_head_and_a_token() {
    let home = Home::new();
    home.say(&node("127.0.0.1:9", &[]))
        .failed(1, &["has not joined", "[MOB6001]", "mobula token create", "MOBULA_JOIN"]);
    home.say(&node("nowhere", &[])).failed(2, &["\"nowhere\"", "[MOB5001]", "HOST:PORT"]);
    let here = Home::new();
    let (head, address) = here.head();
    let token = here.token();
    head.end();
    // Nobody answers there any more; the port stays taken, so that nobody else does.
    let _silent = std::net::UdpSocket::bind(address).unwrap();
    home.say(&node(&address.to_string(), &["--join", &token]))
        .failed(1, &["no answer from", "[MOB1001]", &address.port().to_string(), "check the address"]);
    here.say(&["token", "create"]).failed(1, &["no head runs in", "[MOB5004]", "mobula head"]);
}

#[test]
fn a_head_that_was_killed_is_not_taken_for_one_that_runs() {
    let home = Home::new();
    let (mut head, _) = home.head();
    head.child.kill().unwrap();
    head.wait("the killed head to be gone");
    assert!(home.path().join("head.json").exists());
    home.say(&["status"]).failed(1, &["no head runs in"]);
    // Its home is free for the next one.
    let (head, _) = home.head();
    home.status();
    head.end();
}

#[test]
fn a_port_in_use_is_named() {
    let home = Home::new();
    let (_socket, udp) = taken_udp();
    let udp = udp.to_string();
    home.say(&["head", "--quic", &udp, "--http", "127.0.0.1:0"])
        .failed(1, &[&format!("UDP port {udp} is in use"), "[MOB1003]", "--quic"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = listener.local_addr().unwrap().to_string();
    home.say(&["head", "--quic", "127.0.0.1:0", "--http", &tcp])
        .failed(1, &[&format!("TCP port {tcp} is in use"), "[MOB1003]", "--http"]);
    home.say(&["up", "--http", &tcp]).failed(1, &["head did not start", "in use", "[MOB1003]", "--http"]);
    home.say(&["up", "--detach", "--http", &tcp])
        .failed(1, &["head did not start", "in use", "[MOB1003]", "--http"]);
    home.say(&["head", "--http", "0.0.0.0:0", "--quic", "127.0.0.1:0"]).failed(1, &["loopback", "[MOB5001]"]);

    let (_head, address) = home.head();
    let address = address.to_string();
    let token = home.token();
    let node_home = Home::new();
    node_home
        .say(&["node", "--head", &address, "--join", &token, "--listen", &udp, "--store", "16MiB"])
        .failed(1, &[&format!("UDP port {udp} is in use"), "[MOB1003]", "--listen"]);
    // It has joined all the same, and needs no second token.
    let mut joined = node_home.run(&node(&address, &[]));
    joined.line("is up");
    node_home.say(&node(&address, &[])).failed(1, &["a node already runs", "[MOB5004]", "--home"]);
    joined.end();
}

#[test]
fn what_is_asked_wrongly_is_refused_before_anything_happens() {
    let home = Home::new();
    for (more, part) in [
        (["--resource", "licence"], "licence=2"),
        (["--resource", "cpu=1"], "say --cpus"),
        (["--resource", "x=lots"], "not a number"),
        (["--memory", "much"], "16GiB"),
        (["--cpus", "some"], "--cpus"),
        (["--label", "zone"], "zone=a"),
        (["--name", "no spaces"], "letters, digits"),
        (["--listen", "7422"], "--listen"),
    ] {
        let said = home.say(&node("127.0.0.1:9", &more));
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains(part) && said.err.contains("[MOB5001]"), "no {part:?} in {said:?}");
    }
    home.say(&node("127.0.0.1:9", &["--resource", "x=1", "--resource", "x=2"]))
        .failed(2, &["given twice", "[MOB5001]", "--resource"]);
    let said = home.say(&["up", "--nodes", "0"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    let said = home.say(&["token", "create", "--ttl", "31d"]);
    assert!(said.code == Some(2) && said.err.contains("30d"), "{said:?}");
}

#[test]
fn errors_are_explained() {
    let home = Home::new();
    let page = home.say(&["explain", "mob2001"]).ok();
    assert!(page.starts_with("# MOB2001: the store stayed full") && page.contains("## What to do"), "{page}");
    let list = home.say(&["explain"]).ok();
    assert!(list.lines().count() >= 24 && list.contains("MOB4001: no node could ever run it"), "{list}");
    home.say(&["explain", "MOB0000"]).failed(2, &["MOB0000", "[MOB5001]", "mobula explain"]);
    let help = home.say(&["--help"]).ok();
    assert!(help.contains("mobula up --detach") && help.contains("Explain an error code"), "{help}");
}

#[test]
fn a_folder_that_is_no_home_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let shared = home.path();
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
    for arguments in [&["up"][..], &["head"], &node("127.0.0.1:9", &[])] {
        home.say(arguments)
            .failed(1, &["open to other users (mode 1777)", "[MOB5002]", "chmod 700", "--home"]);
    }
    assert_eq!(std::fs::metadata(&shared).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert_eq!(std::fs::read_dir(&shared).unwrap().count(), 0);
    // What cannot be read is not taken for a home in which nothing runs.
    let file = shared.join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    for command in ["down", "status"] {
        home.say(&[command, "--home", file]).failed(1, &["cannot read", file, "[MOB5002]"]);
    }
}

#[test]
fn a_head_does_not_go_on_without_its_authority() {
    let home = Home::new();
    let (head, _) = home.head();
    head.end();
    std::fs::remove_dir_all(home.path().join("ca")).unwrap();
    home.say(&["head", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .failed(1, &["certificate authority", "[MOB5002]", "from a backup", "--home"]);
}
