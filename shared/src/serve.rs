//! Serves gRPC on a Unix socket until told to end.

use crate::{
    fault::{Fault, Kind},
    socket::{Bound, PeerStream},
    telemetry,
};
use std::{io, time::Duration};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

/// How long open calls may go on after the end was asked for.
const GRACE: Duration = Duration::from_secs(3);
/// Pause of the accept loop when descriptors have run out; without it the loop would spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Adds health and reflection to `routes` and serves them on `bound` until `stop` is cancelled, then gives open
/// calls a short grace. Streams must end on the same token by themselves.
///
/// # Errors
/// UNAVAILABLE if the server fails as a whole.
pub async fn serve(
    bound: Bound,
    routes: Routes,
    descriptors: &'static [u8],
    stop: CancellationToken,
) -> Result<(), Fault> {
    let broken = |error: &dyn std::error::Error| {
        Fault::new(Kind::Unavailable, "SERVER", "the gRPC server failed").cause(error)
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| broken(&e))?;
    let server = Server::builder()
        .trace_fn(telemetry::server_span)
        .add_routes(routes.add_service(health).add_service(reflection))
        .serve_with_incoming_shutdown(connections(bound), stop.clone().cancelled_owned());
    // tonic waits for idle connections too, without a bound of its own (hyperium/hyper#4170).
    let expired = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result.map_err(|e| broken(&e)),
        () = expired => Ok(()),
    }
}

fn connections(bound: Bound) -> impl Stream<Item = io::Result<PeerStream>> {
    futures_util::stream::unfold(bound, |bound| async move {
        loop {
            match bound.accept().await {
                Ok(stream) => return Some((Ok(stream), bound)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    })
}
