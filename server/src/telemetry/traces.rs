//! Exports traces over OTLP, if an endpoint is configured.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Span, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use super::{
    enabled::{is_tracing, set_tracing},
    names::{RPC_METHOD, RPC_SYSTEM},
    propagation,
};
use crate::config;

/// Target of the spans of calls. They go into traces, never into the log.
pub(super) const CALLS: &str = "bananas_broker::calls";

/// The span of one gRPC call, a child of the caller's; a disabled span if the broker does not trace.
pub fn call_span(path: &str, metadata: &HeaderMap) -> Span {
    if !is_tracing() {
        return Span::none();
    }
    let method = path.trim_start_matches('/');
    let span = tracing::info_span!(
        target: CALLS,
        "call",
        otel.name = method,
        otel.kind = "server",
        { RPC_SYSTEM } = "grpc",
        { RPC_METHOD } = method
    );
    propagation::set_parent(&span, metadata);
    span
}

#[derive(Debug)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// `None` if no endpoint is configured. Connects later: the broker starts even if the collector is away.
    pub(super) fn start(config: &config::Tracing) -> anyhow::Result<Option<Self>> {
        if config.otlp_endpoint.is_empty() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&config.otlp_endpoint)
            .build()?;
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(Resource::builder().with_service_name("bananas-broker").build())
            .build();
        set_tracing(true);
        Ok(Some(Self { provider }))
    }

    /// Turns the broker's spans into OpenTelemetry spans. Spans of the exporting libraries are left out: each export
    /// would cause the next one.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = Targets::new().with_target("bananas_broker", LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("bananas-broker"))
            .with_filter(ours)
    }

    pub(super) async fn shutdown(self, limit: Duration) {
        set_tracing(false);
        let sent = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(limit)).await;
        if let Ok(Err(error)) = sent {
            tracing::warn!(%error, "could not send the last traces");
        }
    }
}
