//! Builds the options of each part from the configuration. No part reads the configuration itself.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use secrecy::ExposeSecret;

use crate::{
    broker,
    config::{self, Config},
    domain, edge,
    store::{self, Endpoint},
};

/// The bounds of the edge.
pub(super) fn edge(config: &Config) -> edge::Options {
    let grpc = &config.grpc;
    let window = |size: config::ByteSize| u32::try_from(size.0).unwrap_or(u32::MAX);
    edge::Options {
        max_connections: grpc.max_connections,
        max_connections_per_peer: grpc.max_connections_per_peer,
        max_streams_per_connection: grpc.max_streams_per_connection,
        max_in_flight: grpc.max_in_flight,
        max_header_bytes: window(grpc.max_header_bytes),
        preface_timeout: grpc.preface_timeout,
        keepalive_interval: grpc.keepalive_interval,
        keepalive_timeout: grpc.keepalive_timeout,
        max_connection_age: grpc.max_connection_age,
        connection_window: window(grpc.connection_window),
        stream_window: window(grpc.stream_window),
        max_call_duration: grpc.max_call_duration,
    }
}

/// The options of the broker.
pub(super) fn broker(config: &Config) -> anyhow::Result<broker::Options> {
    Ok(broker::Options {
        store: store(config)?,
        limits: domain::Limits {
            max_payload_bytes: config.limits.max_payload_bytes.as_usize(),
            max_batch_items: config.limits.max_batch_items,
            max_batch_bytes: config.limits.max_batch_bytes.as_usize(),
        },
        stream: broker::StreamOptions {
            heartbeat_interval: config.stream.heartbeat_interval,
            grace: config.stream.grace,
            max_age: config.stream.max_age,
            drain_grace: stream_drain_grace(config.drain.grace.saturating_sub(config.drain.delay)),
        },
        reflection: config.grpc.reflection,
    })
}

/// Streams get four fifths of the time; the rest is for releasing the jobs they still hold and for closing connections.
pub(super) fn stream_drain_grace(grace: Duration) -> Duration {
    grace.mul_f64(0.8)
}

fn store(config: &Config) -> anyhow::Result<store::Options> {
    let redis = &config.redis;
    let user = (!redis.username.is_empty()).then_some(redis.username.as_str());
    let password = redis.password.as_ref().map(ExposeSecret::expose_secret);
    Ok(store::Options {
        endpoint: with_tls(
            Endpoint::new(redis.url.expose(), user, password, redis.connect_timeout)?,
            redis,
        )?,
        key_prefix: redis.key_prefix.clone(),
        connections: redis.connections,
        response_timeout: redis.response_timeout,
        allow_unsafe: redis.allow_unsafe,
        // Redis Cluster is refused at the start.
        cluster: false,
        policy: policy(config),
    })
}

fn with_tls(endpoint: Endpoint, redis: &config::Redis) -> anyhow::Result<Endpoint> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
    let authority = redis
        .tls_ca_file
        .as_ref()
        .map(read)
        .transpose()
        .context("redis.tls_ca_file")?;
    let ours = match (&redis.tls_cert_file, &redis.tls_key_file) {
        (Some(certificate), Some(key)) => Some((
            read(certificate).context("redis.tls_cert_file")?,
            read(key).context("redis.tls_key_file")?,
        )),
        _ => None,
    };
    if authority.is_none() && ours.is_none() {
        return Ok(endpoint);
    }
    Ok(endpoint.with_tls(authority, ours)?)
}

fn policy(config: &Config) -> domain::Policy {
    let (jobs, results, dead) = (&config.jobs, &config.results, &config.dead);
    domain::Policy {
        max_attempts: jobs.max_attempts,
        max_losses: jobs.max_losses,
        max_unconfirmed: jobs.max_unconfirmed,
        initial_backoff: jobs.initial_backoff,
        max_backoff: jobs.max_backoff,
        multiplier: jobs.backoff_multiplier,
        jitter: jobs.backoff_jitter,
        attempt_timeout: jobs.attempt_timeout,
        dedupe_window: jobs.dedupe_window,
        dedupe_max_ids: jobs.dedupe_max_ids,
        keep_results: results.enabled,
        success_retention: results.ttl_success,
        failure_retention: results.ttl_failure,
        retained_max: results.max_count,
        dead_retention: dead.retention,
        dead_max: dead.max_count,
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        config::{Config, Environment},
        domain::{Limits, Policy},
    };

    #[test]
    fn the_defaults_of_the_configuration_are_the_defaults_of_the_domain() {
        let config = Config::from_parts(&Environment::default(), None, &[]).unwrap();
        let options = super::broker(&config).unwrap();
        assert_eq!(
            format!("{:?}", options.store.policy),
            format!("{:?}", Policy::default())
        );
        assert_eq!(format!("{:?}", options.limits), format!("{:?}", Limits::default()));
    }
}
