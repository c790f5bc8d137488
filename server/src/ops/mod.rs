//! The second port: /metrics for Prometheus, /livez and /readyz for orchestrators and people. Plain HTTP/1, read-only,
//! no secrets.

mod readiness;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::readiness::Readiness;
use crate::metrics::{self, Metrics};

#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    readiness: Arc<Readiness>,
    scraping: Arc<tokio::sync::Mutex<()>>,
}

/// Serves until `stop` is cancelled.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, readiness: Arc<Readiness>, stop: CancellationToken) {
    let shared = Shared {
        registry: Arc::new(metrics.registry()),
        readiness,
        scraping: Arc::default(),
    };
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics_page))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(shared);
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the port for metrics and health failed");
    }
}

async fn index() -> &'static str {
    "bananas-broker\n\n/metrics  OpenMetrics\n/livez    is the process alive\n/readyz   should it get traffic\n"
}

/// With many queues the page is megabytes of text: rendered on a blocking thread, one scrape at a time, so that no call
/// waits for it.
async fn metrics_page(State(shared): State<Shared>) -> impl IntoResponse {
    // Sets the readiness gauge.
    shared.readiness.why_not();
    let _turn = shared.scraping.lock().await;
    let registry = shared.registry.clone();
    let page = tokio::task::spawn_blocking(move || metrics::render(&registry)).await;
    match page {
        Ok(page) => (StatusCode::OK, [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("cannot render the metrics: {error}\n"),
        ),
    }
}

/// Does not depend on Redis: restarting this process would not bring Redis back.
async fn live() -> &'static str {
    "ok\n"
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.readiness.why_not() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::store::Condition;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn readiness_follows_start_redis_and_drain_and_liveness_does_not() {
        let metrics = Metrics::new();
        let readiness = Readiness::new(metrics.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, metrics.clone(), readiness.clone(), stop.clone()));

        assert!(get(address, "/readyz").await.contains("503") && get(address, "/readyz").await.contains("starting"));
        let redis = Condition::new(metrics.clone());
        readiness.watch(redis.clone());
        readiness.set_started();
        assert!(get(address, "/readyz").await.contains("Redis does not answer"));
        redis.connected(1);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/metrics").await.contains("\nbananas_ready 1\n"));
        readiness.set_draining();
        assert!(get(address, "/readyz").await.contains("draining"));
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/metrics").await.ends_with("# EOF\n"));
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        server.await.unwrap();
    }
}
