//! The HTTP API, for people and scripts on the head's own machine.
//!
//! | route | needs | what |
//! |---|---|---|
//! | `GET /healthz` | nothing | whether the head answers |
//! | `GET /api/v1/status` | admin token | the cluster, as [`mobula_proto::head::Snapshot`] |
//! | `GET /api/v1/memory` | admin token | what is in the stores, as [`mobula_proto::inventory::Inventory`] |
//! | `GET /api/v1/why?id=ID` | admin token | why something waits, as [`mobula_proto::head::Explanation`] |
//! | `GET /api/v1/queues` | admin token | the queues and what they use, as [`mobula_proto::head::QueueSnapshot`]s |
//! | `POST /api/v1/queues` | admin token | defines or changes one, as [`QueueWanted`] |
//! | `POST /api/v1/queues/remove` | admin token | `{"name":"…"}`, of one that nothing uses |
//! | `POST /api/v1/nodes/drain` | admin token | `{"node":"node-3","seconds":600}`: it moves what it has, and leaves |
//! | `POST /api/v1/nodes/resume` | admin token | `{"node":"node-3"}`: it stays after all |
//! | `POST /api/v1/tokens` | admin token | `{"role":"agent","ttl_seconds":3600}` gives `{"token":"…"}` |
//! | `POST /api/v1/shutdown` | admin token | ends the cluster |
//!
//! Errors are `{"code":"MOB…","message":"…"}`. What is not in the table of [`auth`] is refused.

pub mod auth;
mod nodes;
mod queues;
mod routes;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use mobula_telemetry::task;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::{debug, warn};

use crate::service::Poster;

pub use nodes::{DRAIN_SECONDS, DrainWanted};
pub use queues::QueueWanted;

/// Connections at once; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 256;
/// Longest request body, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a client may take to send a request's head, and may stay silent between two requests.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may take in all, its body included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What the routes need.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

struct Inner {
    poster: Poster,
    admin_hash: [u8; 32],
}

impl Api {
    pub fn new(poster: Poster, admin_hash: [u8; 32]) -> Self {
        Self(Arc::new(Inner { poster, admin_hash }))
    }
}

/// What every failed request gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The code under which it is documented.
    pub code: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// An error with its status.
#[derive(Debug)]
pub(crate) struct Refusal(StatusCode, Error);

impl Refusal {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self(status, Error { code: code.to_owned(), message: message.into() })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(self.1)).into_response();
        if self.0 == StatusCode::UNAUTHORIZED {
            let scheme = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// Opens the port.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, api: Api) {
    let router = routes::router(api);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly "too many open files": waiting a little is all that helps.
                warn!(%error, "the HTTP port could not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        // Ends with its connection, which timeouts bound.
        task::spawn("head-http-connection", async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                debug!(%error, "an HTTP connection ended");
            }
            drop(slot);
        });
    }
}
