//! Who is at the other end of the connection.

use std::net::{IpAddr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::AppState;
use super::problem::Problem;

/// The other end of the connection, which the accept loop puts into each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The address of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl FromRequestParts<AppState> for ClientAddress {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<Peer>().ok_or_else(|| {
            tracing::error!("a request came without its peer's address; this is a defect");
            Problem::internal()
        })?;
        Ok(Self(peer.0.ip().to_canonical()))
    }
}
