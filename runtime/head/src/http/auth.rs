//! Who may do what: one table, one check, before any route.

use axum::{
    extract::{Request, State},
    http::{StatusCode, header::AUTHORIZATION},
    middleware::Next,
    response::Response,
};
use mobula_net::code;
use mobula_proto::FailureKind;
use subtle::ConstantTimeEq;

use super::{Api, REQUEST_TIMEOUT, Refusal};

/// What a request must bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// The admin token.
    Admin,
}

/// Every route there is. A request for anything else is refused, whatever it brings.
pub const TABLE: [(&str, &str, Need); 11] = [
    ("GET", "/healthz", Need::Nothing),
    ("GET", "/api/v1/status", Need::Admin),
    ("GET", "/api/v1/memory", Need::Admin),
    ("GET", "/api/v1/why", Need::Admin),
    ("GET", "/api/v1/queues", Need::Admin),
    ("POST", "/api/v1/queues", Need::Admin),
    ("POST", "/api/v1/queues/remove", Need::Admin),
    ("POST", "/api/v1/nodes/drain", Need::Admin),
    ("POST", "/api/v1/nodes/resume", Need::Admin),
    ("POST", "/api/v1/tokens", Need::Admin),
    ("POST", "/api/v1/shutdown", Need::Admin),
];

/// Passes on what the table allows.
pub(super) async fn authorize(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let need = TABLE.iter().find(|(m, p, _)| *m == method && *p == path).map(|(_, _, need)| *need);
    if need != Some(Need::Nothing) && !is_admin(&api, &request) {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            code::ADMIN,
            "this needs the head's admin token: send it as `Authorization: Bearer …` (it is in admin.token under the head's home)",
        ));
    }
    if need.is_none() {
        let message = format!("there is no {method} {path}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, code::REQUEST, message));
    }
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.map_err(|_| {
        Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            FailureKind::TimedOut.code(),
            format!("this took longer than {REQUEST_TIMEOUT:?}"),
        )
    })
}

/// Whether the request brings the admin token. Hashes are compared, in constant time, so that neither the time
/// taken nor the state on disk gives the token away.
fn is_admin(api: &Api, request: &Request) -> bool {
    let Some(value) = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let Some((scheme, token)) = value.split_once(' ') else { return false };
    let hash = blake3::hash(token.trim().as_bytes());
    scheme.eq_ignore_ascii_case("bearer") && bool::from(hash.as_bytes().ct_eq(&api.0.admin_hash))
}
