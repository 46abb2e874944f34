//! Serves gRPC on a Unix socket until told to end, within limits.

mod accept;
mod body;
mod connection;
mod guard;
mod health;
mod limits;
mod methods;
mod request;
mod stream;
mod words;

pub use guard::ending;
pub use health::Health;
pub use limits::{LONG_CALLS, Limits};
pub use stream::{Messages, until_end};

use crate::{
    access::Gate,
    fault::{Fault, Kind},
    socket::Bound,
    telemetry,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::pb::health_server::HealthServer;

/// How long the last answers may take to leave, once calls have ended.
const PARTING: Duration = Duration::from_millis(500);
/// Bytes that a client may have sent and no handler read: of one call, and of one connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Adds health and reflection to `api` and serves it on `bound`, behind `gate` and within the default limits, until
/// `stop` is cancelled. Calls that are open then get a short grace, and UNAVAILABLE after it.
///
/// # Errors
/// UNAVAILABLE if the server fails as a whole.
pub async fn serve(bound: Bound, api: Api, gate: &Gate, stop: CancellationToken) -> Result<(), Fault> {
    serve_within(Limits::default().within_descriptors(), bound, api, gate, stop).await
}

/// What is served.
#[derive(Debug)]
pub struct Api {
    /// The services.
    pub routes: Routes,
    /// Their encoded descriptors.
    pub descriptors: &'static [u8],
    /// Whether they can do their work.
    pub health: Health,
}

/// As `serve`, within these limits.
///
/// # Errors
/// UNAVAILABLE if the server fails as a whole.
pub async fn serve_within(
    limits: Limits,
    bound: Bound,
    api: Api,
    gate: &Gate,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let Api { routes, descriptors, health } = api;
    let broken = |error: &dyn std::error::Error| {
        Fault::new(Kind::Unavailable, "SERVER", "the gRPC server failed").cause(error)
    };
    let health = HealthServer::new(health.begin(stop.clone()).await);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| broken(&e))?;
    let streaming = methods::Streaming::of(&[
        descriptors,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ])?;
    let ended = CancellationToken::new();
    let guard = guard::Guard::new(limits.clone(), gate.admin_uid(), streaming, stop.clone(), ended.clone());
    let server = Server::builder()
        .trace_fn(telemetry::server_span)
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_keepalive_interval(Some(limits.keepalive))
        .http2_keepalive_timeout(Some(limits.keepalive_answer))
        .http2_max_header_list_size(limits.headers)
        .http2_max_pending_accept_reset_streams(Some(limits.resets))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Outermost: nothing of a call that is refused for its limits is looked at further.
        .layer(guard)
        // Then whether the caller may.
        .layer(gate.layer())
        .add_routes(routes.add_service(health).add_service(reflection))
        .serve_with_incoming_shutdown(
            accept::Door::new(bound, limits.clone(), gate.admin_uid()).connections(),
            stop.clone().cancelled_owned(),
        );
    // tonic waits for idle connections too, without a bound of its own (hyperium/hyper#4170).
    let expired = async {
        stop.cancelled().await;
        tokio::time::sleep(limits.ending).await;
        ended.cancel();
        tokio::time::sleep(PARTING).await;
    };
    tokio::select! {
        result = server => result.map_err(|e| broken(&e)),
        () = expired => Ok(()),
    }
}

#[cfg(test)]
mod test;
