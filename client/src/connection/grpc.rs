//! A channel that accepts only gRPC responses, and says what else responded: a proxy, or a server of another protocol.

use std::{
    error::Error as StdError,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response, header::CONTENT_TYPE};
use tonic::{body::Body, transport::Channel};
use tower::Service;

use super::Addresses;
use crate::error::transport::{Foreign, NotGrpc};

type BoxError = Box<dyn StdError + Send + Sync>;

/// A channel whose calls fail with [`NotGrpc`] if the response is not gRPC.
#[derive(Debug, Clone)]
pub struct GrpcChannel {
    channel: Channel,
    /// For error texts.
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
        let response = self.channel.call(request);
        async move {
            let not_grpc = |response| -> BoxError {
                Box::new(NotGrpc {
                    addresses: addresses.as_deref().map(str::to_owned),
                    response,
                })
            };
            match response.await {
                Ok(response) if is_grpc(response.headers()) => Ok(response),
                Ok(response) => Err(not_grpc(Foreign::Http {
                    status: response.status(),
                    content_type: content_type(response.headers()).map(|text| text.chars().take(64).collect()),
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

/// Whether the peer does not speak HTTP/2. The first bytes of HTTP/1, TLS and the like, read as an HTTP/2 frame, have
/// an impossible length.
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
