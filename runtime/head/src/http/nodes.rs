//! The routes about nodes that leave.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Api, Refusal,
    routes::{bad, read},
};
use crate::core::DRAIN_MS_MAX;

/// How long a node may take to drain unless said, in seconds.
pub const DRAIN_SECONDS: u64 = 600;

/// Which node shall leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainWanted {
    /// Its name, or its number as `node-3`.
    pub node: String,
    /// After so long what is left is taken away; at least 1, at most 7 days.
    #[serde(default = "drain_seconds")]
    pub seconds: u64,
}

fn drain_seconds() -> u64 {
    DRAIN_SECONDS
}

/// Which node is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    node: String,
}

pub(super) async fn drain(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let DrainWanted { node, seconds } = read(body, "{\"node\":\"node-3\",\"seconds\":600}")?;
    if !(1..=DRAIN_MS_MAX / 1000).contains(&seconds) {
        return Err(bad(format!("seconds must be from 1 to {}, not {seconds}", DRAIN_MS_MAX / 1000)));
    }
    api.0.poster.drain(node, Duration::from_secs(seconds)).await?;
    Ok(Json(json!({ "status": "draining" })))
}

pub(super) async fn resume(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let Named { node } = read(body, "{\"node\":\"node-3\"}")?;
    api.0.poster.resume(node).await?;
    Ok(Json(json!({ "status": "stays" })))
}
