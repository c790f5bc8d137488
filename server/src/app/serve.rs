//! The life of a broker process: start, ready, drain, end.

use std::{pin::pin, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    options,
    reload::Reloading,
    signals::{Asked, Signals},
};
use crate::{
    broker::{self, Broker},
    config::{Config, ConfigError, Environment, RedisUrl, Value},
    dev, edge, grpc, maintenance,
    metrics::Metrics,
    ops::{self, Readiness},
    store::OpenError,
    telemetry::{self, Telemetry},
};

/// Waits between attempts to reach a Redis at the start.
const RECONNECT_SECONDS: [u64; 5] = [2, 4, 8, 16, 30];
/// Beyond drain.grace: for what ends after the connections.
const HARD_END: Duration = Duration::from_secs(2);
/// For script calls that are under way when everybody is gone, if nothing is left of drain.grace.
const LAST_CALLS: Duration = Duration::from_millis(500);
/// File descriptors for everything but connections of clients.
const OWN_FDS: usize = 100;

/// Serves until a signal asks for the end and the drain is over. A second signal, or the hard end, ends at once. `reload` reads the configuration again.
pub(super) async fn until_signalled(
    config: Config,
    reload: &dyn Fn() -> Result<Config, ConfigError>,
    dev: Option<dev::Options>,
    environment: &Environment,
) -> anyhow::Result<ExitCode> {
    // The only provider in the tree; a second one that crept in would make TLS fail at run time.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut signals = Signals::install(dev.is_some())?;
    let telemetry = telemetry::install(&config.log, &config.tracing)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let mut reloading = Reloading::new(&config, reload, &telemetry);
    let grace = config.drain.grace;
    let stop = CancellationToken::new();
    let mut life = pin!(live(config, dev, environment, stop.clone()));
    let ended = tokio::select! {
        ended = &mut life => ended,
        signal = asked_to_end(&mut signals, &mut reloading) => {
            tracing::info!(signal, grace_seconds = grace.as_secs_f64(), "draining; a second signal ends at once");
            stop.cancel();
            tokio::select! {
                ended = life => ended,
                signal = asked_to_end(&mut signals, &mut reloading) => {
                    Err(anyhow::anyhow!("ended by a second {signal}, before the drain was over"))
                }
                () = tokio::time::sleep(grace + HARD_END) => Err(anyhow::anyhow!("ended by force: the drain was not over in time")),
            }
        }
    };
    drop(reloading);
    end_telemetry(telemetry).await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// Reloads as often as that is asked for, until a signal asks for the end.
async fn asked_to_end(signals: &mut Signals, reloading: &mut Reloading<'_>) -> &'static str {
    loop {
        match signals.next().await {
            Asked::End(signal) => return signal,
            Asked::Reload => reloading.reload(),
        }
    }
}

async fn end_telemetry(telemetry: Telemetry) {
    telemetry.shutdown(HARD_END / 2).await;
}

async fn live(
    mut config: Config,
    dev: Option<dev::Options>,
    environment: &Environment,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = Metrics::new();
    let readiness = Readiness::new(metrics.clone());
    raise_fd_limit(config.grpc.max_connections);
    let second_port_end = CancellationToken::new();
    let second_port = open_second_port(&config, &metrics, &readiness, &second_port_end)?;

    let private_redis = match dev {
        Some(options) => Some(start_private_redis(options, environment, &mut config).await?),
        None => None,
    };
    // On the heap: the start of a broker is a large future, and this one lives as long as the process.
    let served = match Box::pin(start_broker(&config, &metrics, &readiness, &stop)).await? {
        Some(broker) => serve(&config, &broker, &metrics, &readiness, &stop, private_redis.as_ref()).await,
        None => Ok(()),
    };
    if let Some(redis) = private_redis {
        redis.stop().await;
    }
    second_port_end.cancel();
    if let Some(second_port) = second_port {
        // Scrapes that hang must not hold up the end.
        let _ = tokio::time::timeout(Duration::from_millis(200), second_port).await;
    }
    served
}

fn raise_fd_limit(max_connections: usize) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < (max_connections + OWN_FDS) as u64 => {
            tracing::warn!(
                limit,
                max_connections,
                "fewer file descriptors than connections allowed: raise LimitNOFILE or ulimit -n"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of file descriptors cannot be raised"),
    }
}

fn open_second_port(
    config: &Config,
    metrics: &Arc<Metrics>,
    readiness: &Arc<Readiness>,
    end: &CancellationToken,
) -> anyhow::Result<Option<tokio::task::JoinHandle<()>>> {
    if !config.http.enabled {
        return Ok(None);
    }
    let listener = edge::bind(config.http.listen).with_context(|| format!("http.listen {}", config.http.listen))?;
    Ok(Some(tokio::spawn(ops::serve(
        listener,
        metrics.clone(),
        readiness.clone(),
        end.clone(),
    ))))
}

async fn start_private_redis(
    options: dev::Options,
    environment: &Environment,
    config: &mut Config,
) -> anyhow::Result<dev::Redis> {
    let redis = dev::Redis::start(options, environment).await?;
    config.redis.url = RedisUrl::parse(redis.url()).map_err(|error| anyhow::anyhow!("the private Redis: {error}"))?;
    config.redis.username.clear();
    config.redis.password = None;
    Ok(redis)
}

/// A Redis that cannot be reached is waited for, as both may be starting at the same time; one that is not fit is refused. `None` if asked to
/// stop meanwhile.
async fn start_broker(
    config: &Config,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Arc<Broker>>> {
    let options = options::broker(config)?;
    let mut waits = RECONNECT_SECONDS.into_iter();
    let mut wait = Duration::ZERO;
    loop {
        let open = Box::pin(Broker::open(options.clone(), metrics.clone()));
        match stop.run_until_cancelled(open).await {
            None => return Ok(None),
            Some(Ok((broker, signals))) => {
                readiness.watch(broker.store.condition().clone());
                broker.spawn(broker::notifications::run(broker.clone(), signals));
                broker.spawn(maintenance::run(broker.clone()));
                return Ok(Some(broker));
            }
            Some(Err(error @ OpenError::Connect { .. })) => {
                readiness.waits_for_redis(&error);
                wait = waits.next().map_or(wait, Duration::from_secs);
                let address = config.redis.url.show();
                tracing::error!(
                    %error, address, retry_in_seconds = wait.as_secs(),
                    "Redis is not there; is redis.url right? (bananas-broker dev starts a Redis of its own)"
                );
            }
            Some(Err(error)) => return Err(error.into()),
        }
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return Ok(None);
        }
    }
}

async fn serve(
    config: &Config,
    broker: &Arc<Broker>,
    metrics: &Arc<Metrics>,
    readiness: &Arc<Readiness>,
    stop: &CancellationToken,
    private_redis: Option<&dev::Redis>,
) -> anyhow::Result<()> {
    let listener = edge::bind(config.grpc.listen).with_context(|| format!("grpc.listen {}", config.grpc.listen))?;
    let edge_end = CancellationToken::new();
    let edge = edge::serve(
        listener,
        grpc::routes(broker),
        options::edge(config),
        metrics.clone(),
        edge_end.clone(),
    )?;
    readiness.set_started();
    tell_service_manager(NotifyState::Ready);
    tracing::info!(grpc = %edge.address(), version = env!("CARGO_PKG_VERSION"), "ready");
    if !edge.address().ip().is_loopback() {
        tracing::warn!(
            "grpc.listen is open to the network, without encryption and without authentication: keep it inside"
        );
    }
    if let Some(redis) = private_redis {
        super::print(&welcome(edge.address(), config, redis))?;
    }

    stop.cancelled().await;

    let deadline = Instant::now() + config.drain.grace;
    readiness.set_draining();
    tell_service_manager(NotifyState::Stopping);
    broker.set_draining().await;
    // Until then whoever has not heard yet that this broker is not ready is served.
    tokio::time::sleep(config.drain.delay).await;
    // No new connection, and no new call on those that are open; what runs may end, and streams stay until their workers have moved.
    edge_end.cancel();
    broker.drain(deadline).await;
    edge.end_streams();
    let dropped = edge.drain(deadline.into_std()).await;
    if dropped > 0 {
        tracing::warn!(
            connections = dropped,
            "connections were still open at the end of drain.grace"
        );
    }
    broker.finish_calls(deadline.max(Instant::now() + LAST_CALLS)).await;
    tracing::info!("drained");
    Ok(())
}

fn tell_service_manager(state: NotifyState<'_>) {
    // Does nothing unless systemd asked to be told.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

fn welcome(address: std::net::SocketAddr, config: &Config, redis: &dev::Redis) -> String {
    let port = address.port();
    let flag = if port == 8080 {
        String::new()
    } else {
        format!(" --broker http://{address}")
    };
    let metrics = if config.http.enabled {
        format!("http://{}/metrics", config.http.listen)
    } else {
        "off (http.enabled)".into()
    };
    format!(
        "\n  Bananas is ready, for development: a private Redis, one broker, nobody asked who they are.\n\
         \n    gRPC      http://{address}\
         \n    metrics   {metrics}\
         \n    data      {}  (kept; --fresh begins anew)\n\
         \n  Try, in other terminals, in this order:\n\
         \n    bananas worker{flag} --queue demo --exec 'wc -c'\
         \n    bananas enqueue{flag} demo/count --payload 'hello' --wait\
         \n    grpcurl -plaintext {address} bananas.v1.QueueService/ListQueues\n\
         \n  Ctrl-C drains and stops, the private Redis too.\n\n",
        redis.data_dir().display()
    )
}
