//! The routes about queues.

use std::collections::BTreeMap;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
};
use mobula_proto::{
    FailureKind, Quantity, Resources,
    head::QueueSnapshot,
    queue::Change,
    resource::{self, Kind},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Api, Refusal, routes::read};

/// What a queue shall be. What is left out stays as it is, or is as in a new queue: at the top, with weight one,
/// nothing guaranteed and no limit. Amounts are text, as people write them: `"4"`, `"0.5"`, `"64GiB"`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueWanted {
    /// Its name, unique in the cluster.
    pub name: String,
    /// The queue of which it is a part; empty at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its part relative to its siblings'; above zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// What it gets before others get more than is guaranteed to them, by resource name; all that was guaranteed
    /// before is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<BTreeMap<String, String>>,
    /// What it and its children may use at most, by resource name; all earlier limits are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<BTreeMap<String, String>>,
}

impl QueueWanted {
    /// The same with amounts that were checked; says which field is wrong.
    pub fn read(self) -> Result<Change, String> {
        let Self { name, parent, weight, guarantee, limit } = self;
        let field = |field: &'static str| move |e: resource::Error| format!("{field}: {e}");
        let weight: Option<Quantity> =
            weight.map(|text| text.parse()).transpose().map_err(field("weight"))?;
        let guaranteed = guarantee
            .map(|all| Resources::from_list(amounts(all)?))
            .transpose()
            .map_err(field("guarantee"))?;
        let limit = limit.map(amounts).transpose().map_err(field("limit"))?;
        Ok(Change { name, parent, weight, guaranteed, limit })
    }
}

fn amounts(all: BTreeMap<String, String>) -> Result<Vec<(Kind, Quantity)>, resource::Error> {
    all.into_iter().map(|(name, amount)| Ok((Kind::parse(&name)?, amount.parse()?))).collect()
}

/// Which queue is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    name: String,
}

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<QueueSnapshot>>, Refusal> {
    Ok(Json(api.0.poster.queues().await?))
}

pub(super) async fn set(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let wanted: QueueWanted =
        read(body, "{\"name\":\"research\",\"weight\":\"2\",\"guarantee\":{\"cpu\":\"4\"}}")?;
    let change = wanted
        .read()
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, FailureKind::Queue.code(), error))?;
    api.0.poster.set_queue(change).await?;
    Ok(Json(json!({ "status": "set" })))
}

pub(super) async fn remove(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let Named { name } = read(body, "{\"name\":\"research\"}")?;
    api.0.poster.remove_queue(name).await?;
    Ok(Json(json!({ "status": "removed" })))
}
