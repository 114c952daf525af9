use std::{future::Future, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::*;
use crate::{Handle, Head, Options};

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), wait).await.expect("a test waited too long")
}

async fn head() -> (Handle, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let options = Options {
        quic_address: ([127, 0, 0, 1], 0).into(),
        http_address: ([127, 0, 0, 1], 0).into(),
        ..Options::new(home.path())
    };
    (Head::start(options).await.unwrap(), home)
}

/// One request on a connection of its own: the status and the body.
async fn request(to: SocketAddr, route: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let authorization = token.map(|t| format!("authorization: {t}\r\n")).unwrap_or_default();
    let head = format!(
        "{route} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n{authorization}\r\n",
        body.len()
    );
    let mut stream = soon(TcpStream::connect(to)).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer, and close, before it has read all of a body that is too long.
    let _refused = stream.write_all(body.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = soon(stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_but_health_needs_the_admin_token() {
    let (head, _home) = head().await;
    let to = head.http_address().unwrap();
    let bearer = format!("Bearer {}", head.admin_token());
    let cut = &bearer[..bearer.len() - 1];
    let basic = format!("Basic {}", head.admin_token());
    for (method, path, need) in auth::TABLE {
        let route = format!("{method} {path}");
        for token in [None, Some(""), Some("Bearer "), Some("Bearer x"), Some(cut), Some(&basic)] {
            let (status, body) = request(to, &route, token, "").await;
            match need {
                auth::Need::Nothing => assert_eq!(status, 200, "{route} {body}"),
                auth::Need::Admin => {
                    assert_eq!((status, body["code"].as_str()), (401, Some("MOB6003")), "{route} {token:?}");
                }
            }
        }
    }
    // What does not exist is not told apart from what does, but to an admin.
    for route in
        ["GET /", "GET /api/v1/tokens", "DELETE /healthz", "GET /api/v1/status/", "GET /api/v1/../healthz"]
    {
        let (status, body) = request(to, route, None, "").await;
        assert_eq!((status, body["code"].as_str()), (401, Some("MOB6003")), "{route}");
        let (status, body) = request(to, route, Some(&bearer), "").await;
        assert_eq!((status, body["code"].as_str()), (404, Some("MOB1005")), "{route}");
    }
    soon(head.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_sees_the_cluster_makes_tokens_and_ends_it() {
    let (head, _home) = head().await;
    let to = head.http_address().unwrap();
    let bearer = format!("bearer {}", head.admin_token());
    let admin = Some(bearer.as_str());
    let (status, body) = request(to, "GET /api/v1/status", admin, "").await;
    assert_eq!((status, body["cluster"].as_str()), (200, Some(head.cluster())));

    let make = r#"{"role":"agent","ttl_seconds":60}"#;
    let (status, body) = request(to, "POST /api/v1/tokens", admin, make).await;
    assert_eq!(status, 200, "{body}");
    assert!(mobula_net::identity::JoinToken::parse(body["token"].as_str().unwrap()).is_ok());
    for bad in ["", "{}", r#"{"role":"head","ttl_seconds":60}"#, r#"{"role":"agent","ttl_seconds":0}"#] {
        let (status, body) = request(to, "POST /api/v1/tokens", admin, bad).await;
        assert_eq!((status, body["code"].as_str()), (400, Some("MOB1005")), "{bad} {body}");
    }
    let queue = r#"{"name":"research","weight":"2","guarantee":{"cpu":"4"},"limit":{"gpu":"0"}}"#;
    let (status, body) = request(to, "POST /api/v1/queues", admin, queue).await;
    assert_eq!(status, 200, "{body}");
    let child = r#"{"name":"vision","parent":"research"}"#;
    assert_eq!(request(to, "POST /api/v1/queues", admin, child).await.0, 200);
    for (bad, word) in [
        (r#"{"name":"a b"}"#, "a b"),
        (r#"{"name":"x","parent":"nobody"}"#, "nobody"),
        (r#"{"name":"research","parent":"vision"}"#, "ancestor"),
        (r#"{"name":"x","weight":"0"}"#, "weight 0"),
        (r#"{"name":"x","weight":"NaN"}"#, "weight: resource amount NaN"),
        (r#"{"name":"x","guarantee":{"cpu":"-1"}}"#, "guarantee: resource amount -1"),
        (r#"{"name":"x","limit":{"cpu":"1e300"}}"#, "limit: resource amount 1e300"),
        (r#"{"name":"x","limit":{"CPU":"1","cpu":"2"}}"#, "twice"),
        (r#"{"name":"x","guarantee":{"cpu":"2"},"limit":{"cpu":"1"}}"#, "limit"),
    ] {
        let (status, body) = request(to, "POST /api/v1/queues", admin, bad).await;
        assert!([400, 409].contains(&status) && body["code"] == "MOB4002", "{bad} {status} {body}");
        assert!(body["message"].as_str().unwrap().contains(word), "{bad} {body}");
    }
    let (status, body) = request(to, "POST /api/v1/queues", admin, r#"{"name":"x","heavy":1}"#).await;
    assert_eq!((status, body["code"].as_str()), (400, Some("MOB1005")));
    for (name, word) in [("research", "part of it"), ("nobody", "no queue")] {
        let named = format!(r#"{{"name":"{name}"}}"#);
        let (status, body) = request(to, "POST /api/v1/queues/remove", admin, &named).await;
        assert_eq!((status, body["code"].as_str()), (409, Some("MOB4002")), "{name}");
        assert!(body["message"].as_str().unwrap().contains(word), "{body}");
    }
    let vision = r#"{"name":"vision"}"#;
    assert_eq!(request(to, "POST /api/v1/queues/remove", admin, vision).await.0, 200);
    let (_, queues) = request(to, "GET /api/v1/queues", admin, "").await;
    assert_eq!((queues[1]["name"].as_str(), queues[1]["weight"].as_f64()), (Some("research"), Some(2.0)));
    assert_eq!((&queues[1]["limit"]["GPU"], queues.as_array().unwrap().len()), (&Value::from(0.0), 2));

    let long = " ".repeat(BODY_BYTES_MAX + 1);
    let (status, _) = request(to, "POST /api/v1/tokens", admin, &long).await;
    // 0 where the answer was lost because the rest of the body was not read.
    assert!([413, 0].contains(&status), "{status}");

    let (status, _) = request(to, "POST /api/v1/shutdown", admin, "").await;
    assert_eq!(status, 200);
    soon(head.closed()).await;
    let (status, body) = request(to, "GET /api/v1/status", admin, "").await;
    assert_eq!((status, body["code"].as_str()), (503, Some("MOB1001")));
    soon(head.shutdown()).await;
}
