//! What the routes do.

use std::time::Duration;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::StatusCode,
    middleware,
    routing::{get, post},
};
use mobula_net::{code, identity::Role};
use mobula_proto::{
    FailureKind,
    head::{Explanation, Snapshot},
    inventory::Inventory,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Api, BODY_BYTES_MAX, Refusal, auth, nodes, queues};
use crate::service::Error;

pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/api/v1/status", get(status))
        .route("/api/v1/memory", get(memory))
        .route("/api/v1/why", get(why))
        .route("/api/v1/queues", get(queues::list).post(queues::set))
        .route("/api/v1/queues/remove", post(queues::remove))
        .route("/api/v1/nodes/drain", post(nodes::drain))
        .route("/api/v1/nodes/resume", post(nodes::resume))
        .route("/api/v1/tokens", post(tokens))
        .route("/api/v1/shutdown", post(shutdown))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(api.clone(), auth::authorize))
        .with_state(api)
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(failure) => Self::new(StatusCode::CONFLICT, failure.kind.code(), failure.message),
            other => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, FailureKind::Unreachable.code(), other.to_string())
            }
        }
    }
}

async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

async fn status(State(api): State<Api>) -> Result<Json<Snapshot>, Refusal> {
    Ok(Json(api.0.poster.snapshot().await?))
}

async fn memory(State(api): State<Api>) -> Result<Json<Inventory>, Refusal> {
    Ok(Json(api.0.poster.memory().await?))
}

/// What is asked about.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    id: String,
}

async fn why(
    State(api): State<Api>,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Query(About { id }) = about.map_err(|e| bad(format!("ask for ?id=ID: {}", e.body_text())))?;
    Ok(Json(api.0.poster.explain(id).await?))
}

pub(super) fn bad(message: String) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, code::REQUEST, message)
}

/// The JSON of a request's body, which looks like `example`.
pub(super) fn read<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<T, Refusal> {
    let body = body.map_err(|e| Refusal::new(e.status(), code::REQUEST, e.body_text()))?;
    serde_json::from_slice(&body).map_err(|e| bad(format!("send {example}: {e}")))
}

/// What a join token shall be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenWanted {
    /// `agent` or `driver`.
    role: String,
    /// Seconds until it ends.
    ttl_seconds: u64,
}

/// A new join token, a secret.
#[derive(Serialize)]
struct TokenMade {
    token: String,
}

async fn tokens(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<TokenMade>, Refusal> {
    let wanted: TokenWanted = read(body, "{\"role\":\"agent\",\"ttl_seconds\":3600}")?;
    let role = match wanted.role.as_str() {
        "agent" => Role::Agent,
        "driver" => Role::Driver,
        other => return Err(bad(format!("a token is for the role agent or driver, not {other:?}"))),
    };
    if wanted.ttl_seconds == 0 {
        return Err(bad("ttl_seconds must be at least 1".to_owned()));
    }
    let token = api.0.poster.create_token(role, Duration::from_secs(wanted.ttl_seconds)).await?;
    Ok(Json(TokenMade { token }))
}

async fn shutdown(State(api): State<Api>) -> Result<Json<Value>, Refusal> {
    api.0.poster.shutdown().await?;
    Ok(Json(json!({ "status": "ending" })))
}
