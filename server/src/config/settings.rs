//! Every setting of the broker: type, default, bounds, reason. The file of defaults and docs/configuration.md are made from this.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;

use super::{
    table::{self, Section, Setting, sections},
    value::{ByteSize, LogFormat, LogLevel, LogOutput, RedisUrl, Value},
    values::Values,
};

sections! {
    /// The gRPC port: producers, workers and operators.
    grpc: Grpc {
        /// Address and port. Loopback by default: the port speaks without encryption and without authentication.
        listen: SocketAddr = "127.0.0.1:8080", port "API_PORT";
        /// Open connections; one more is closed at once.
        max_connections: usize = "2000" in "1" ..= "1000000";
        /// Open connections from one IP address; 0 means no such limit. Leave it off behind a proxy that hides addresses.
        max_connections_per_peer: usize = "0" in "0" ..= "1000000";
        /// Calls that may be open at once on one connection.
        max_streams_per_connection: u32 = "1024" in "1" ..= "100000";
        /// Unary calls handled at once, all connections together, in each of three classes: settlements (Ack, Nack, Extend, BatchSettle),
        /// calls that may wait (Lease, WaitJob), and the rest. One more is refused with OVERLOADED and when to try again. Settlements have
        /// places of their own because refusing one makes work happen twice.
        max_in_flight: usize = "10000" in "1" ..= "1000000";
        /// Largest set of request headers.
        max_header_bytes: ByteSize = "16KiB" in "4KiB" ..= "1MiB";
        /// A connection that has not sent the HTTP/2 preface by then is closed.
        preface_timeout: Duration = "5s" in "100ms" ..= "1m";
        /// How often a connection that is silent is pinged.
        keepalive_interval: Duration = "20s" in "1s" ..= "1h";
        /// A connection that has not answered a ping by then is closed.
        keepalive_timeout: Duration = "10s" in "1s" ..= "5m";
        /// Connections are asked to go (GOAWAY, open calls may end) at this age, give or take a tenth, so that they spread over
        /// new brokers. 0 means never.
        max_connection_age: Duration = "30m" in "0s" ..= "24h";
        /// Flow control window of a connection. It also sets how many tiny frames a peer may send before its connection is taken for an
        /// attack, so a window below the default cuts connections of busy workers.
        connection_window: ByteSize = "8MiB" in "64KiB" ..= "1GiB";
        /// Flow control window of one call.
        stream_window: ByteSize = "4MiB" in "64KiB" ..= "1GiB";
        /// Longest unary call. A caller's own deadline counts if it is shorter; long polls end earlier by themselves.
        max_call_duration: Duration = "90s" in "1s" ..= "1h";
        /// Server reflection, which grpcurl needs.
        reflection: bool = "true";
    }

    /// The second port: metrics and health over HTTP/1.
    http: Http {
        /// Whether this port is opened at all.
        enabled: bool = "true", alias "METRICS_ENABLED";
        /// Address and port of /metrics, /livez and /readyz.
        listen: SocketAddr = "127.0.0.1:9090", port "METRICS_PORT";
    }

    /// Redis, which holds everything.
    redis: Redis {
        /// Where it is. The password may be part of it, but then it must be percent-encoded: prefer redis.password.
        url: RedisUrl = "redis://127.0.0.1:6379/0", alias "REDIS_URL";
        /// ACL user; wins over the one in the URL.
        username: String = "", alias "REDIS_USERNAME";
        /// Password, as it is, without any encoding; wins over the one in the URL.
        password: Option<SecretString> = "", alias "REDIS_PASSWORD";
        /// Every key begins with this. Two brokers with different prefixes on one Redis know nothing of each other.
        key_prefix: String = "bn";
        /// Connections that carry scripts, beside those for reading and for wake-ups. Redis runs scripts one after the other, and calls travel in
        /// groups, so more than one helps only with a Redis that is far away.
        connections: usize = "1" in "1" ..= "16";
        /// A connection attempt that takes longer is given up.
        connect_timeout: Duration = "2s" in "50ms" ..= "1m";
        /// A command without an answer by then counts as failed, its outcome as unknown.
        response_timeout: Duration = "2s" in "50ms" ..= "1m";
        /// Authority that signed the server's certificate (PEM), for rediss://. Empty: the system's authorities.
        tls_ca_file: Option<PathBuf> = "";
        /// Certificate that the broker shows to Redis (PEM).
        tls_cert_file: Option<PathBuf> = "";
        /// Key of that certificate (PEM).
        tls_key_file: Option<PathBuf> = "";
        /// Start even where Redis may lose jobs (it evicts keys, or has neither an append-only file nor a replica). The log says each time what can be lost.
        allow_unsafe: bool = "false";
    }

    /// Log lines.
    log: Log {
        /// Least level that is written, or directives per module.
        level: LogLevel = "info", alias "LOG_LEVEL";
        /// auto is text on a terminal and JSON elsewhere.
        format: LogFormat = "auto", alias "LOG_FORMAT";
        /// Where lines go. The broker waits for nobody to read them: lines that find no room (4,096 wait at most) are lost.
        output: LogOutput = "stdout", alias "LOG_OUTPUT";
        /// The file for log.output = "file", appended to; rotate it with copytruncate.
        file: Option<PathBuf> = "/var/log/bananas/broker.log", alias "LOG_FILE";
    }

    /// OpenTelemetry traces over OTLP/gRPC. Without an endpoint nothing is measured and nothing is sent.
    tracing: Tracing {
        /// Collector, such as http://127.0.0.1:4317. Empty: off.
        otlp_endpoint: String = "", alias "OTEL_EXPORTER_OTLP_ENDPOINT";
        /// Fraction of the traces that begin here; a caller that sent a trace context has decided already.
        sample_ratio: f64 = "0.01" in "0" ..= "1";
    }

    /// Bounds of what callers may send.
    limits: Limits {
        /// One payload or result. Larger things belong into a store of their own, with a reference in the job. A gRPC client takes messages of 4 MiB
        /// unless it is told otherwise: where payloads may be larger, raise that limit in the clients first.
        max_payload_bytes: ByteSize = "1MiB" in "1KiB" ..= "64MiB";
        /// Items of one batch. An atomic batch, which goes to Redis as one script call, has at most 3000 even where this is more.
        max_batch_items: usize = "1000" in "1" ..= "10000";
        /// All items of one batch together. The largest message that is read follows from this: a MiB more.
        max_batch_bytes: ByteSize = "4MiB" in "1KiB" ..= "128MiB";
    }

    /// What holds for a job that does not say otherwise.
    jobs: Jobs {
        /// Attempts before a job goes to the dead letters. An attempt counts when the worker says that it failed, or when it times out.
        max_attempts: u32 = "10" in "1" ..= "1000";
        /// Workers that a job may take down with it before it goes to the dead letters.
        max_losses: u32 = "3" in "1" ..= "1000";
        /// Deliveries that no worker confirmed before a job goes to the dead letters: the worker broke while the job was on its way to it. They count neither
        /// as attempts nor as losses.
        max_unconfirmed: u32 = "20" in "3" ..= "1000";
        /// Wait before the second attempt.
        initial_backoff: Duration = "2s" in "0s" ..= "24h";
        /// Longest wait between attempts.
        max_backoff: Duration = "10m" in "0s" ..= "24h";
        /// Each wait is this many times the one before.
        backoff_multiplier: f64 = "2" in "1" ..= "10";
        /// Up to this fraction is added to each wait at random, so that jobs that failed together do not come back together.
        backoff_jitter: f64 = "0.1" in "0" ..= "1";
        /// Longest attempt; a worker that hangs for longer loses the job.
        attempt_timeout: Duration = "5m" in "1s" ..= "24h";
        /// How long the id of a settled job is remembered, so that a repeated Enqueue makes no second job.
        dedupe_window: Duration = "60s" in "0s" ..= "24h";
        /// Ids remembered per queue and window (two windows are kept); beyond it the older window is forgotten early. One costs about 92 bytes of Redis memory.
        dedupe_max_ids: u64 = "1000000" in "0" ..= "100000000";
    }

    /// Settled jobs and their results.
    results: Results {
        /// Whether results are kept. Without them WaitJob says how a job ended, not what it returned.
        enabled: bool = "true", alias "RESULT_BACKEND_ENABLED";
        /// How long a job that succeeded stays readable.
        ttl_success: Duration = "1h" in "0s" ..= "30d", alias "RESULT_BACKEND_TTL_SUCCESS";
        /// How long a job that was cancelled or expired stays readable.
        ttl_failure: Duration = "24h" in "0s" ..= "30d", alias "RESULT_BACKEND_TTL_FAILURE";
        /// Settled jobs kept per queue; the oldest go first. They are counted every 128 settled jobs: for a while there may be that many more.
        max_count: u64 = "10000" in "0" ..= "10000000";
    }

    /// Dead letters.
    dead: Dead {
        /// How long a dead letter is kept.
        retention: Duration = "7d" in "1m" ..= "30d";
        /// Dead letters kept per queue; the oldest go first. Counted like results.max_count.
        max_count: u64 = "100000" in "1" ..= "10000000";
    }

    /// Subscribe streams.
    stream: Stream {
        /// How often each side says that it is alive. Three silent intervals end a stream.
        heartbeat_interval: Duration = "10s" in "1s" ..= "5m";
        /// How long a worker whose stream broke may take to come back and keep its jobs.
        grace: Duration = "10s" in "0s" ..= "10m";
        /// A stream is asked to move at this age, give or take a tenth.
        max_age: Duration = "30m" in "10s" ..= "24h";
    }

    /// The end of the process.
    drain: Drain {
        /// SIGTERM to the hard end. Keep it below the grace period of what sends the signal (30 s in Kubernetes).
        grace: Duration = "25s" in "0s" ..= "1h";
        /// SIGTERM to the moment when the port is closed, open connections are asked to go and streams to move; it is part of drain.grace. Readiness is false from
        /// the signal on. For load balancers that learn late which brokers are ready: as long as they take. 0 where clients connect directly.
        delay: Duration = "0s" in "0s" ..= "5m";
    }

    /// The process itself.
    runtime: Runtime {
        /// Threads that run the broker; 0 means one for every two cores, at least one. 1 runs everything on the main thread, which is cheapest per job on a small machine.
        worker_threads: usize = "0" in "0" ..= "256";
    }
}
