//! The worker's own HTTP port: /metrics, /livez and /readyz.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::{
    error::Error,
    observe::{metrics::exposition, stats::Stats},
};

/// Opens the port. The returned future serves it until it is dropped.
pub(crate) async fn serve(
    address: SocketAddr,
    registry: Arc<Registry>,
    stats: Arc<Stats>,
) -> Result<impl Future<Output = ()> + Send + 'static, Error> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error::MetricsPort { address, source })?;
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "metrics and health");
    let router = Router::new()
        .route("/metrics", get(async move || metrics(&registry)))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || readiness(&stats)));
    Ok(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics port ended");
        }
    })
}

fn metrics(registry: &Registry) -> Response {
    match exposition(registry) {
        Ok(body) => (
            [(
                CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            body,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Ready means that the worker leases jobs. `/livez` does not ask for that: a restart would not help a worker without a
/// broker.
fn readiness(stats: &Stats) -> (StatusCode, &'static str) {
    if stats.draining.load(Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if stats.slots > 0 && !stats.connected.load(Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "no broker\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}
