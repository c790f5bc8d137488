//! Every setting of the broker: type, default, bounds, meaning. The file of defaults and docs/configuration.md are
//! rendered from this.

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
        /// Address and port. Loopback by default: the port has no encryption and no authentication.
        listen: SocketAddr = "127.0.0.1:8080", port "API_PORT";
        /// Open connections. Further ones are closed at once.
        max_connections: usize = "2000" in "1" ..= "1000000";
        /// Open connections from one IP address; 0 means no limit. Leave it at 0 behind a proxy that hides addresses.
        max_connections_per_peer: usize = "0" in "0" ..= "1000000";
        /// Open calls on one connection.
        max_streams_per_connection: u32 = "1024" in "1" ..= "100000";
        /// Unary calls handled at once over all connections, in each of three classes: settlements (Ack, Nack, Extend,
        /// BatchSettle), calls that may wait (Lease, WaitJob), and the rest. Further calls are refused with OVERLOADED
        /// and a retry delay. Settlements are a class of their own because a refused settlement can make a job run
        /// twice.
        max_in_flight: usize = "10000" in "1" ..= "1000000";
        /// Largest total size of the request headers.
        max_header_bytes: ByteSize = "16KiB" in "4KiB" ..= "1MiB";
        /// A connection that has not sent the HTTP/2 preface after this time is closed.
        preface_timeout: Duration = "5s" in "100ms" ..= "1m";
        /// How often a silent connection is pinged.
        keepalive_interval: Duration = "20s" in "1s" ..= "1h";
        /// A connection that has not answered a ping after this time is closed.
        keepalive_timeout: Duration = "10s" in "1s" ..= "5m";
        /// Age at which a connection gets GOAWAY, plus or minus 10 %, so that clients spread over new brokers. Open
        /// calls may finish. 0 means never.
        max_connection_age: Duration = "30m" in "0s" ..= "24h";
        /// Flow control window of a connection. It also bounds the tiny frames that a peer may send before HTTP/2
        /// treats them as an attack: a window below the default closes connections of busy workers.
        connection_window: ByteSize = "8MiB" in "64KiB" ..= "1GiB";
        /// Flow control window of one call.
        stream_window: ByteSize = "4MiB" in "64KiB" ..= "1GiB";
        /// Longest unary call. A shorter deadline of the caller counts instead. Long polls end earlier.
        max_call_duration: Duration = "90s" in "1s" ..= "1h";
        /// Whether server reflection is on; grpcurl needs it.
        reflection: bool = "true";
    }

    /// The second port: metrics and health over HTTP/1.
    http: Http {
        /// Whether this port is opened.
        enabled: bool = "true", alias "METRICS_ENABLED";
        /// Address and port of /metrics, /livez and /readyz.
        listen: SocketAddr = "127.0.0.1:9090", port "METRICS_PORT";
    }

    /// Redis, which stores everything.
    redis: Redis {
        /// Its URL. A password in it must be percent-encoded: prefer redis.password.
        url: RedisUrl = "redis://127.0.0.1:6379/0", alias "REDIS_URL";
        /// ACL user; overrides the one in the URL.
        username: String = "", alias "REDIS_USERNAME";
        /// Password, without any encoding; overrides the one in the URL.
        password: Option<SecretString> = "", alias "REDIS_PASSWORD";
        /// Prefix of every key. Brokers with different prefixes can share one Redis and do not see each other.
        key_prefix: String = "bn";
        /// Connections for scripts, besides those for reads and for notifications. Redis runs scripts one at a time,
        /// and calls travel in batches, so more than one helps only if Redis is far away.
        connections: usize = "1" in "1" ..= "16";
        /// Longest attempt to connect.
        connect_timeout: Duration = "2s" in "50ms" ..= "1m";
        /// A command without a reply after this time has failed with an unknown outcome.
        response_timeout: Duration = "2s" in "50ms" ..= "1m";
        /// Certificate authority of the server (PEM), for rediss://. Empty: the authorities of the system.
        tls_ca_file: Option<PathBuf> = "";
        /// Client certificate of the broker (PEM).
        tls_cert_file: Option<PathBuf> = "";
        /// Private key of that certificate (PEM).
        tls_key_file: Option<PathBuf> = "";
        /// Start even if Redis may lose jobs (it evicts keys, or has neither an append-only file nor a replica). Each
        /// start logs what can be lost.
        allow_unsafe: bool = "false";
    }

    /// Log lines.
    log: Log {
        /// Lowest level that is logged, or directives per module.
        level: LogLevel = "info", alias "LOG_LEVEL";
        /// auto means text on a terminal and JSON elsewhere.
        format: LogFormat = "auto", alias "LOG_FORMAT";
        /// Where lines go. The broker does not wait for a slow reader: at most 4,096 lines are buffered, further ones
        /// are dropped.
        output: LogOutput = "stdout", alias "LOG_OUTPUT";
        /// The file for log.output = "file", appended to; rotate it with copytruncate.
        file: Option<PathBuf> = "/var/log/bananas/broker.log", alias "LOG_FILE";
    }

    /// OpenTelemetry traces over OTLP/gRPC. Without an endpoint nothing is recorded and nothing is sent.
    tracing: Tracing {
        /// URL of the collector, such as http://127.0.0.1:4317. Empty: off.
        otlp_endpoint: String = "", alias "OTEL_EXPORTER_OTLP_ENDPOINT";
        /// Fraction of the traces that begin at this broker. For a call with a trace context, its caller has decided.
        sample_ratio: f64 = "0.01" in "0" ..= "1";
    }

    /// Bounds on requests.
    limits: Limits {
        /// Largest payload or result. Keep larger data in another store and put a reference into the job. gRPC clients
        /// accept messages of 4 MiB by default: before you allow larger payloads, raise that limit in the clients.
        max_payload_bytes: ByteSize = "1MiB" in "1KiB" ..= "64MiB";
        /// Items of one batch. An atomic batch, which is one script call, has at most 3000 even if this is more.
        max_batch_items: usize = "1000" in "1" ..= "10000";
        /// Total size of one batch. The largest message that the broker reads is 1 MiB more.
        max_batch_bytes: ByteSize = "4MiB" in "1KiB" ..= "128MiB";
    }

    /// Defaults for jobs that do not set their own values.
    jobs: Jobs {
        /// Attempts before a job becomes a dead letter. An attempt counts when the worker reports a failure, or when it
        /// times out.
        max_attempts: u32 = "10" in "1" ..= "1000";
        /// Lost leases before a job becomes a dead letter: a job that crashes its workers must not run forever.
        max_losses: u32 = "3" in "1" ..= "1000";
        /// Deliveries that no worker confirmed before a job becomes a dead letter: the worker went away before it
        /// reported the job as received. They count neither as attempts nor as losses.
        max_unconfirmed: u32 = "20" in "3" ..= "1000";
        /// Backoff before the second attempt.
        initial_backoff: Duration = "2s" in "0s" ..= "24h";
        /// Longest backoff.
        max_backoff: Duration = "10m" in "0s" ..= "24h";
        /// Factor by which each backoff is longer than the one before.
        backoff_multiplier: f64 = "2" in "1" ..= "10";
        /// Up to this fraction of the backoff is added at random, so that jobs that failed together are not retried
        /// together.
        backoff_jitter: f64 = "0.1" in "0" ..= "1";
        /// Longest attempt. A worker that takes longer loses the lease.
        attempt_timeout: Duration = "5m" in "1s" ..= "24h";
        /// How long the id of a settled job is remembered, so that a repeated Enqueue does not store a second job.
        dedupe_window: Duration = "60s" in "0s" ..= "24h";
        /// Ids remembered per queue and window; two windows are kept. Above this the older window is forgotten early.
        /// An id costs about 92 bytes of Redis memory.
        dedupe_max_ids: u64 = "1000000" in "0" ..= "100000000";
    }

    /// Settled jobs and their results.
    results: Results {
        /// Whether results are kept. Without them WaitJob returns how a job ended, but not its result.
        enabled: bool = "true", alias "RESULT_BACKEND_ENABLED";
        /// How long a succeeded job is kept.
        ttl_success: Duration = "1h" in "0s" ..= "30d", alias "RESULT_BACKEND_TTL_SUCCESS";
        /// How long a cancelled or expired job is kept.
        ttl_failure: Duration = "24h" in "0s" ..= "30d", alias "RESULT_BACKEND_TTL_FAILURE";
        /// Settled jobs kept per queue; the oldest are deleted first. Checked every 128 settled jobs, so there may be
        /// that many more for a while.
        max_count: u64 = "10000" in "0" ..= "10000000";
    }

    /// Dead letters.
    dead: Dead {
        /// How long a dead letter is kept.
        retention: Duration = "7d" in "1m" ..= "30d";
        /// Dead letters kept per queue; the oldest are deleted first. Checked like results.max_count.
        max_count: u64 = "100000" in "1" ..= "10000000";
    }

    /// Subscribe streams.
    stream: Stream {
        /// How often each side sends a heartbeat. A stream ends after three silent intervals.
        heartbeat_interval: Duration = "10s" in "1s" ..= "5m";
        /// How long a worker may take to reconnect after its stream broke and keep its jobs.
        grace: Duration = "10s" in "0s" ..= "10m";
        /// Age at which the broker asks the worker to move to a new stream, plus or minus 10 %.
        max_age: Duration = "30m" in "10s" ..= "24h";
    }

    /// The drain: what happens between SIGTERM and the exit.
    drain: Drain {
        /// Time from SIGTERM to the forced end. Keep it below the grace period of whatever sends the signal (30 s in
        /// Kubernetes).
        grace: Duration = "25s" in "0s" ..= "1h";
        /// Time from SIGTERM until the port is closed, connections get GOAWAY and streams are asked to move; part of
        /// drain.grace. Readiness is false from the signal on. Set it to the time that a load balancer needs to notice.
        /// 0 if clients connect directly.
        delay: Duration = "0s" in "0s" ..= "5m";
    }

    /// The process itself.
    runtime: Runtime {
        /// Threads that run the broker. 0 means one per two cores, at least one. 1 runs everything on the main thread,
        /// which costs least per job on a small machine.
        worker_threads: usize = "0" in "0" ..= "256";
    }
}
