//! The head's HTTP API, as the administrator of this home.

use std::{net::SocketAddr, time::Duration};

use mobula_head::{
    http::{DrainWanted, QueueWanted},
    service::Whereabouts,
};
use mobula_proto::{
    head::{Explanation, QueueSnapshot, Snapshot},
    inventory::Inventory,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    args::TokenRole,
    error::{self, Error},
    home::Home,
};

/// Longest that a request may take.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Longest answer, in bytes; a thousand nodes with all their labels have a few megabytes.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The way to a head.
pub struct Api {
    agent: ureq::Agent,
    home: Home,
    address: SocketAddr,
    token: String,
}

#[derive(Deserialize)]
struct TokenMade {
    token: String,
}

impl Api {
    /// To the head that runs in this home.
    pub fn open(home: &Home) -> Result<Self, Error> {
        let whereabouts = match Whereabouts::read(home.path()) {
            Ok(whereabouts) => whereabouts,
            Err(mobula_head::Error::Home { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoHead { home: home.clone().path().to_owned() });
            }
            Err(mobula_head::Error::Home { what, path, source }) => {
                return Err(Error::File { what, path, source });
            }
            Err(other) => return Err(Error::Head(other)),
        };
        let file = home.path().join("admin.token");
        let token = std::fs::read_to_string(&file).map_err(error::file("read", &file))?.trim().to_owned();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(REQUEST_WAIT))
            .http_status_as_error(false)
            // The head is on this machine, and the token stays on it.
            .proxy(None)
            .build()
            .new_agent();
        Ok(Self { agent, home: home.clone(), address: whereabouts.http, token })
    }

    /// The cluster now, as the head's own JSON and decoded.
    pub fn status(&self) -> Result<(String, Snapshot), Error> {
        self.get("/api/v1/status")
    }

    /// What is in the stores, as the head's own JSON and decoded.
    pub fn memory(&self) -> Result<(String, Inventory), Error> {
        self.get("/api/v1/memory")
    }

    /// Why something waits, as the head's own JSON and decoded.
    pub fn why(&self, id: &str) -> Result<(String, Explanation), Error> {
        let text = self.text(
            self.agent
                .get(self.url("/api/v1/why"))
                .query("id", id)
                .header("Authorization", format!("Bearer {}", self.token))
                .call(),
        )?;
        let decoded = self.decode(&text)?;
        Ok((text, decoded))
    }

    /// The queues, as the head's own JSON and decoded.
    pub fn queues(&self) -> Result<(String, Vec<QueueSnapshot>), Error> {
        self.get("/api/v1/queues")
    }

    /// Defines a queue, or changes it.
    pub fn set_queue(&self, wanted: &QueueWanted) -> Result<(), Error> {
        self.post("/api/v1/queues", &serde_json::json!(wanted)).map(|_| ())
    }

    /// Removes a queue.
    pub fn remove_queue(&self, name: &str) -> Result<(), Error> {
        self.post("/api/v1/queues/remove", &serde_json::json!({ "name": name })).map(|_| ())
    }

    /// Has a node leave.
    pub fn drain(&self, wanted: &DrainWanted) -> Result<(), Error> {
        self.post("/api/v1/nodes/drain", &serde_json::json!(wanted)).map(|_| ())
    }

    /// Lets a node that drains stay.
    pub fn resume(&self, node: &str) -> Result<(), Error> {
        self.post("/api/v1/nodes/resume", &serde_json::json!({ "node": node })).map(|_| ())
    }

    fn post(&self, path: &str, body: &serde_json::Value) -> Result<String, Error> {
        let answer = self
            .agent
            .post(self.url(path))
            .header("Authorization", format!("Bearer {}", self.token))
            .header("Content-Type", "application/json")
            .send(body.to_string());
        self.text(answer)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<(String, T), Error> {
        let answer =
            self.agent.get(self.url(path)).header("Authorization", format!("Bearer {}", self.token)).call();
        let text = self.text(answer)?;
        let decoded = self.decode(&text)?;
        Ok((text, decoded))
    }

    /// A new join token.
    pub fn create_token(&self, role: TokenRole, ttl: Duration) -> Result<String, Error> {
        let role = match role {
            TokenRole::Node => "agent",
            TokenRole::Driver => "driver",
        };
        let body = serde_json::json!({ "role": role, "ttl_seconds": ttl.as_secs() });
        let text = self.post("/api/v1/tokens", &body)?;
        self.decode::<TokenMade>(&text).map(|made| made.token)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn text(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<String, Error> {
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // A head that was killed could not say that it is gone.
                let gone = self
                    .home
                    .claimed("head")
                    .is_ok_and(|mark| mark.is_some_and(|mark| mark.find().is_none()));
                return Err(if gone {
                    Error::NoHead { home: self.home.path().to_owned() }
                } else {
                    self.no_answer(&error)
                });
            }
        };
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(|error| self.no_answer(&error))?;
        if answer.status().is_success() {
            return Ok(text);
        }
        Err(match serde_json::from_str::<mobula_head::http::Error>(&text) {
            Ok(refused) => Error::HeadRefused { code: refused.code, message: refused.message },
            Err(_) => self.silent(&format!("status {}", answer.status())),
        })
    }

    fn decode<'a, T: Deserialize<'a>>(&self, text: &'a str) -> Result<T, Error> {
        serde_json::from_str(text)
            .map_err(|error| self.silent(&format!("its answer is no JSON of this version: {error}")))
    }

    fn no_answer(&self, error: &ureq::Error) -> Error {
        match error {
            ureq::Error::Timeout(_) => self.silent(&format!("no answer within {} s", REQUEST_WAIT.as_secs())),
            error => self.silent(error),
        }
    }

    fn silent(&self, detail: &dyn std::fmt::Display) -> Error {
        Error::HeadSilent {
            home: self.home.path().to_owned(),
            address: self.address,
            detail: detail.to_string(),
        }
    }
}
