//! Traces: a call becomes a span under the caller's, and reaches the collector before the broker has ended.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fmt::Write, sync::Arc};

use bananas_harness::dev_broker::DevBroker;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        self.0.lock().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_a_span_under_the_callers_and_is_sent_before_the_end() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));

    let directory = tempfile::tempdir().unwrap();
    let dev = DevBroker::start(directory.path(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;

    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", dev.address()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut request = Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    HealthClient::new(channel).check(request).await.unwrap();
    assert!(dev.stop().await.success());

    let spans = collector.0.lock();
    let span = spans
        .iter()
        .find(|span| span.name == "grpc.health.v1.Health/Check")
        .expect("the span of the call");
    assert_eq!(hexadecimal(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hexadecimal(&span.parent_span_id), "00f067aa0ba902b7");
    assert!(
        spans.iter().all(|span| !span.name.contains("TraceService")),
        "the export of traces is traced"
    );
}
