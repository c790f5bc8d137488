//! Names of span attributes (OpenTelemetry conventions for RPC) and of the headers that carry a trace context.

/// The RPC system; always `grpc`.
pub const RPC_SYSTEM: &str = "rpc.system.name";
/// Full name of the method.
pub const RPC_METHOD: &str = "rpc.method";

/// The W3C header with the ids of trace and span, in gRPC metadata and in the headers of a job.
pub const TRACEPARENT: &str = "traceparent";
/// The W3C header with data of vendors.
pub const TRACESTATE: &str = "tracestate";
