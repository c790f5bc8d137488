//! Failures of the transport: no connection, or a peer that is not a broker.

use std::{error::Error as StdError, fmt, io};

use http::StatusCode;
use tonic::Code;

/// No connection could be made, so the call was not sent.
#[derive(Debug)]
pub struct ConnectFailed {
    pub(crate) addresses: String,
    /// The error of the last address that was tried.
    pub(crate) last: io::Error,
}

impl fmt::Display for ConnectFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no broker at {}: {}", self.addresses, self.last)
    }
}

impl StdError for ConnectFailed {}

/// Something that is not a broker responded to the call.
#[derive(Debug)]
pub struct NotGrpc {
    pub(crate) addresses: Option<String>,
    pub(crate) response: Foreign,
}

/// What a peer that is not a broker responded with.
#[derive(Debug)]
pub(crate) enum Foreign {
    Http {
        status: StatusCode,
        content_type: Option<String>,
    },
    /// Bytes that are not HTTP/2.
    NoHttp2,
}

impl NotGrpc {
    /// The gRPC code for the HTTP status, by gRPC's own mapping:
    /// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
    pub(crate) fn code(&self) -> Code {
        match &self.response {
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

    /// Whether a proxy responded for a broker that is away or busy.
    pub(crate) fn is_proxy(&self) -> bool {
        matches!(self.response, Foreign::Http { .. }) && self.code() == Code::Unavailable
    }
}

impl fmt::Display for NotGrpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_proxy() {
            "a proxy responded instead of the broker"
        } else {
            "a server that is not a broker responded"
        })?;
        if let Some(addresses) = &self.addresses {
            write!(f, " at {addresses}")?;
        }
        if let Foreign::Http { status, content_type } = &self.response {
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
