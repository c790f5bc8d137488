//! Handles one call: admission, deadline, panic guard, metrics. Streams and long polls take the same path.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Code, Status, body::Body, transport::server::TcpConnectInfo};
use tower::Service;
use tracing::Instrument;

use super::{
    Edge,
    admission::Class,
    deadline, methods,
    unsent::{Held, Unsent, Weight},
};
use crate::{
    domain::Error,
    metrics::{MethodMetrics, Metrics},
    status::{refused_by_tonic, status},
    telemetry,
};

/// Answers one request. Every failure becomes a gRPC status.
pub(super) async fn handle(
    mut request: Request<Incoming>,
    info: TcpConnectInfo,
    edge: Arc<Edge>,
    unsent: Arc<Unsent>,
) -> Result<Response<CountedBody>, Infallible> {
    let class = methods::find(request.uri().path()).map_or(Class::Call, |method| method.class);
    let count = Count::begin(request.uri().path(), class, &edge.metrics);
    // Settlements and streams do not count towards the unsent responses, so these do not refuse them.
    let has_room = matches!(class, Class::Settle | Class::Stream) || unsent.has_room();
    let Some(place) = edge.admission.enter(class).filter(|_| has_room) else {
        return Ok(count.answered(status(&Error::Overloaded).into_http(), None, None));
    };
    request.extensions_mut().insert(info);
    let deadline = deadline::of(request.headers(), class, edge.options.max_call_duration);
    if let Some(deadline) = deadline {
        request.extensions_mut().insert(deadline);
    }
    // Cloning is one reference count; poll_ready of the routes is always ready.
    let span = telemetry::call_span(request.uri().path(), request.headers());
    let answer = AssertUnwindSafe(edge.routes.clone().call(request))
        .catch_unwind()
        .instrument(span);
    let answer = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.0, answer).await,
        None => Ok(answer.await),
    };
    drop(place);
    let mut held = None;
    let response = match answer {
        Ok(Ok(Ok(mut response))) => match response.extensions_mut().remove::<Weight>() {
            None => explained(response),
            Some(weight) => {
                held = unsent.hold(weight);
                if held.is_some() {
                    response
                } else {
                    status(&Error::Overloaded).into_http()
                }
            }
        },
        Ok(Ok(Err(never))) => match never {},
        // The panic hook has logged the panic.
        Ok(Err(_panic)) => status(&Error::Bug("a handler panicked".into())).into_http(),
        Err(_elapsed) => status(&Error::DeadlineExceeded).into_http(),
    };
    let end = (class == Class::Stream).then(|| Box::pin(edge.streams_end.clone().cancelled_owned()));
    Ok(count.answered(response, end, held))
}

/// If tonic itself refused the call, replaces its status by one of ours, which has a reason as every error does.
fn explained(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let Some(code) = headers.get(Status::GRPC_STATUS) else {
        return response;
    };
    if headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    let error = match Code::from_bytes(code.as_bytes()) {
        Code::Unimplemented if !headers.contains_key(Status::GRPC_MESSAGE) => Some(Error::UnknownMethod),
        code => refused_by_tonic(code),
    };
    error.map_or(response, |error| status(&error).into_http())
}

/// Counts one call at its end, also if it is dropped.
struct Count {
    method: Arc<MethodMetrics>,
    started: Instant,
    open_stream: Option<Arc<Metrics>>,
    recorded: bool,
}

impl Count {
    fn begin(path: &str, class: Class, metrics: &Arc<Metrics>) -> Self {
        let open_stream = (class == Class::Stream).then(|| metrics.clone());
        if let Some(metrics) = &open_stream {
            metrics.open_streams.inc();
        }
        Self {
            method: metrics.calls.method(path),
            started: Instant::now(),
            open_stream,
            recorded: false,
        }
    }

    /// Called with the response headers. A failed call has its status there; any other has it in the trailers.
    fn answered(
        mut self,
        response: Response<Body>,
        end: Option<StreamEnd>,
        held: Option<Held>,
    ) -> Response<CountedBody> {
        self.record_status_in(response.headers());
        response.map(|inner| CountedBody {
            inner,
            count: self,
            end,
            held,
            rest: Bytes::new(),
        })
    }

    fn record_status_in(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.record(Code::from_bytes(status.as_bytes()));
        }
    }

    fn record(&mut self, code: Code) {
        if !self.recorded {
            self.recorded = true;
            self.method.record(code, self.started.elapsed());
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        // Dropped without a status: the caller went away.
        self.record(Code::Cancelled);
        if let Some(metrics) = &self.open_stream {
            metrics.open_streams.dec();
        }
    }
}

/// Resolves when the broker ends the streams that are still open.
type StreamEnd = Pin<Box<WaitForCancellationFutureOwned>>;

/// A response body that reads the status from its trailers. It also ends a stream that never ends on its own (a health
/// watch, an open reflection call) once the workers' streams have moved to other brokers; otherwise that stream would
/// delay the drain until its hard end.
pub(super) struct CountedBody {
    inner: Body,
    count: Count,
    end: Option<StreamEnd>,
    held: Option<Held>,
    /// The part of a weighed message that the client has no window for yet.
    rest: Bytes,
}

/// Largest piece of a weighed message that goes to HTTP/2 at once, when the client has window for it. In one piece, the
/// whole message would sit in the buffer of a connection that its client does not read, and would count as sent.
const PIECE_BYTES: usize = 128 << 10;

impl CountedBody {
    fn next_piece(&mut self) -> Frame<Bytes> {
        Frame::data(self.rest.split_to(self.rest.len().min(PIECE_BYTES)))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.end {
            Some(end) => ready!(end.as_mut().poll(cx)),
            None => return Poll::Pending,
        }
        self.end = None;
        self.inner = Body::empty();
        let status = status(&Error::ShuttingDown);
        self.count.record(status.code());
        let mut trailers = HeaderMap::new();
        // Fails only if the message is not a valid header value; this one is valid.
        let _ = status.add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.next_piece())));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            return self.poll_end(cx);
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.count.record_status_in(trailers);
                    // HTTP/2 polls for the trailers when the client has window for everything before them.
                    if let Some(held) = &self.held {
                        held.is_sent();
                    }
                }
            }
            Some(Err(status)) => self.count.record(status.code()),
            None => {}
        }
        let is_large = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(|data| data.len() > PIECE_BYTES);
        let frame = match frame {
            Some(Ok(frame)) if self.held.is_some() && is_large(&frame) => {
                self.rest = frame.into_data().unwrap_or_default();
                Some(Ok(self.next_piece()))
            }
            frame => frame,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
