//! A channel that tells what a broker answers from what something else answers in its place: a proxy, or the wrong port.

use std::{
    error::Error as StdError,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use tonic::{Code, body::Body, transport::Channel};
use tower::Service;

use super::Addresses;

type BoxError = Box<dyn StdError + Send + Sync>;

/// A channel whose calls fail with [`NotGrpc`] where the answer is not gRPC's.
#[derive(Debug, Clone)]
pub struct GrpcChannel {
    channel: Channel,
    /// For the text of an error.
    addresses: Option<Arc<str>>,
}

impl GrpcChannel {
    /// A channel to these addresses.
    pub fn new(channel: Channel, addresses: &Addresses) -> Self {
        Self {
            channel,
            addresses: Some(addresses.to_string().into()),
        }
    }
}

impl From<Channel> for GrpcChannel {
    fn from(channel: Channel) -> Self {
        Self {
            channel,
            addresses: None,
        }
    }
}

impl Service<Request<Body>> for GrpcChannel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let addresses = self.addresses.clone();
        let answer = self.channel.call(request);
        async move {
            let not_grpc = |what| -> BoxError {
                Box::new(NotGrpc {
                    addresses: addresses.as_deref().map(str::to_owned),
                    what,
                })
            };
            match answer.await {
                Ok(answer) if is_grpc(answer.headers()) => Ok(answer),
                Ok(answer) => Err(not_grpc(Foreign::Http {
                    status: answer.status(),
                    content_type: content_type(answer.headers()).map(|text| text.chars().take(64).collect()),
                })),
                Err(error) if is_no_http2(&error) => Err(not_grpc(Foreign::NoHttp2)),
                Err(error) => Err(error.into()),
            }
        }
        .boxed()
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.contains_key("grpc-status")
        || content_type(headers).is_some_and(|text| text.starts_with("application/grpc"))
}

/// What speaks HTTP/1, TLS or something else altogether begins with bytes that are no HTTP/2 frame: their length is absurd.
fn is_no_http2(error: &(dyn StdError + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(this) = error {
        if let Some(h2) = this.downcast_ref::<h2::Error>() {
            return h2.is_library() && h2.reason() == Some(h2::Reason::FRAME_SIZE_ERROR);
        }
        error = this.source();
    }
    false
}

/// Something that is no broker answered the call.
#[derive(Debug)]
pub struct NotGrpc {
    addresses: Option<String>,
    what: Foreign,
}

#[derive(Debug)]
enum Foreign {
    Http {
        status: StatusCode,
        content_type: Option<String>,
    },
    NoHttp2,
}

impl NotGrpc {
    /// The code that stands for it, as gRPC maps HTTP. <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
    pub(crate) fn code(&self) -> Code {
        match &self.what {
            Foreign::NoHttp2 => Code::Unavailable,
            Foreign::Http { status, .. } => match status.as_u16() {
                400 => Code::Internal,
                401 => Code::Unauthenticated,
                403 => Code::PermissionDenied,
                404 => Code::Unimplemented,
                429 | 502 | 503 | 504 => Code::Unavailable,
                _ => Code::Unknown,
            },
        }
    }

    /// It speaks for a broker that is away or busy, as a proxy does.
    pub(crate) fn is_proxy(&self) -> bool {
        matches!(self.what, Foreign::Http { .. }) && self.code() == Code::Unavailable
    }
}

impl fmt::Display for NotGrpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_proxy() {
            "a proxy answers in place of the broker"
        } else {
            "something that is no broker answers"
        })?;
        if let Some(addresses) = &self.addresses {
            write!(f, " at {addresses}")?;
        }
        if let Foreign::Http { status, content_type } = &self.what {
            write!(f, " (HTTP {status}")?;
            if let Some(content_type) = content_type {
                write!(f, ", {}", content_type.escape_debug())?;
            }
            f.write_str(")")?;
        }
        if self.is_proxy() {
            Ok(())
        } else {
            f.write_str("; is this the gRPC port?")
        }
    }
}

impl StdError for NotGrpc {}
