//! Names of attributes of spans, after the OpenTelemetry conventions for RPC, and of the headers that carry a trace.

/// `rpc.system.name`; always grpc.
pub const RPC_SYSTEM: &str = "rpc.system.name";
/// Full name of the method.
pub const RPC_METHOD: &str = "rpc.method";

/// The W3C header that names trace and span; in gRPC metadata and in the headers of a job alike.
pub const TRACEPARENT: &str = "traceparent";
/// The W3C header with what vendors add.
pub const TRACESTATE: &str = "tracestate";
