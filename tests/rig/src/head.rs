//! The head's HTTP interface, as its administrator.

use std::{net::SocketAddr, time::Duration};

use mobula_proto::{head::Snapshot, inventory::Inventory};
use serde::Deserialize;

use crate::error::{Error, Result};

/// Longest that the head may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Who a token lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// An agent.
    Agent,
    /// A driver.
    Driver,
}

/// The way to the head.
pub(crate) struct Head {
    agent: ureq::Agent,
    address: SocketAddr,
    admin: String,
}

#[derive(Deserialize)]
struct Made {
    token: String,
}

impl Head {
    pub(crate) fn new(address: SocketAddr, admin: String) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_WAIT))
            .proxy(None)
            // A connection that is kept would be a descriptor left over.
            .max_idle_connections(0)
            .build()
            .new_agent();
        Self { agent, address, admin }
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let path = "/api/v1/status";
        let answer = self.agent.get(self.url(path)).header("Authorization", self.bearer()).call();
        decode(path, answer)
    }

    pub(crate) fn memory(&self) -> Result<Inventory> {
        let path = "/api/v1/memory";
        let answer = self.agent.get(self.url(path)).header("Authorization", self.bearer()).call();
        decode(path, answer)
    }

    pub(crate) fn token(&self, role: For, lifetime: Duration) -> Result<String> {
        let path = "/api/v1/tokens";
        let role = match role {
            For::Agent => "agent",
            For::Driver => "driver",
        };
        let body = serde_json::json!({ "role": role, "ttl_seconds": lifetime.as_secs().max(1) }).to_string();
        let answer = self.agent.post(self.url(path)).header("Authorization", self.bearer()).send(body);
        decode::<Made>(path, answer).map(|made| made.token)
    }

    pub(crate) fn drain(&self, node: &str, within: Duration) -> Result<()> {
        self.tell("/api/v1/nodes/drain", &serde_json::json!({ "node": node, "seconds": within.as_secs() }))
    }

    pub(crate) fn resume(&self, node: &str) -> Result<()> {
        self.tell("/api/v1/nodes/resume", &serde_json::json!({ "node": node }))
    }

    fn tell(&self, path: &'static str, body: &serde_json::Value) -> Result<()> {
        let answer =
            self.agent.post(self.url(path)).header("Authorization", self.bearer()).send(body.to_string());
        decode::<serde_json::Value>(path, answer).map(|_| ())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.admin)
    }
}

fn decode<T: serde::de::DeserializeOwned>(
    path: &'static str,
    answer: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<T> {
    let trouble = |error: &dyn std::fmt::Display| Error::Head { path, detail: error.to_string() };
    let text =
        answer.and_then(|mut answer| answer.body_mut().read_to_string()).map_err(|error| trouble(&error))?;
    serde_json::from_str(&text).map_err(|error| trouble(&error))
}
