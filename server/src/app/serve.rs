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

/// Waits between attempts to connect to Redis at the start.
const RECONNECT_SECONDS: [u64; 5] = [2, 4, 8, 16, 30];
/// Time after drain.grace for the steps that follow the connections.
const HARD_END: Duration = Duration::from_secs(2);
/// Time for script calls in flight after all clients have left, if drain.grace is used up.
const LAST_CALLS: Duration = Duration::from_millis(500);
/// File descriptors for everything except client connections.
const OWN_FDS: usize = 100;

/// Serves until a signal stops the broker and the drain is over. A second signal, or the hard end, exits at once.
/// `reload` reads the configuration again.
pub(super) async fn until_signalled(
    config: Config,
    reload: &dyn Fn() -> Result<Config, ConfigError>,
    dev: Option<dev::Options>,
    environment: &Environment,
) -> anyhow::Result<ExitCode> {
    // Installed explicitly: with a second provider in the dependency tree, TLS would fail at run time.
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
            tracing::info!(signal, grace_seconds = grace.as_secs_f64(), "draining; a second signal exits at once");
            stop.cancel();
            tokio::select! {
                ended = life => ended,
                signal = asked_to_end(&mut signals, &mut reloading) => {
                    Err(anyhow::anyhow!("stopped by a second {signal} before the drain was over"))
                }
                () = tokio::time::sleep(grace + HARD_END) => {
                    Err(anyhow::anyhow!("stopped by force: the drain took longer than drain.grace"))
                },
            }
        }
    };
    drop(reloading);
    end_telemetry(telemetry).await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// Handles SIGHUP until a signal asks the broker to stop; returns its name.
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
    // Boxed: the start of a broker is a large future, and the enclosing one lives as long as the process.
    let served = match Box::pin(start_broker(&config, &metrics, &readiness, &stop)).await? {
        Some(broker) => serve(&config, &broker, &metrics, &readiness, &stop, private_redis.as_ref()).await,
        None => Ok(()),
    };
    if let Some(redis) = private_redis {
        redis.stop().await;
    }
    second_port_end.cancel();
    if let Some(second_port) = second_port {
        // A scrape that hangs must not delay the exit.
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
                "the file descriptor limit is below grpc.max_connections: raise LimitNOFILE or ulimit -n"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the file descriptor limit"),
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

/// Connects to Redis and starts the broker. Retries while Redis is unreachable, because both may be starting at the
/// same time; fails if Redis is unfit. `None` if the broker is stopped meanwhile.
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
                    "cannot connect to Redis: check redis.url (bananas-broker dev starts a private Redis)"
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
    notify_service_manager(NotifyState::Ready);
    tracing::info!(grpc = %edge.address(), version = env!("CARGO_PKG_VERSION"), "ready");
    if !edge.address().ip().is_loopback() {
        tracing::warn!(
            "grpc.listen is open to the network without encryption or authentication: restrict access to it"
        );
    }
    if let Some(redis) = private_redis {
        super::print(&welcome(edge.address(), config, redis))?;
    }

    stop.cancelled().await;

    let deadline = Instant::now() + config.drain.grace;
    readiness.set_draining();
    notify_service_manager(NotifyState::Stopping);
    broker.set_draining().await;
    // Load balancers that still send calls here, because readiness changed only now, are served during the delay.
    tokio::time::sleep(config.drain.delay).await;
    // No new connections, no new calls on open ones. Running calls finish; streams stay until their workers have moved.
    edge_end.cancel();
    broker.drain(deadline).await;
    edge.end_streams();
    let dropped = edge.drain(deadline.into_std()).await;
    if dropped > 0 {
        tracing::warn!(
            connections = dropped,
            "dropped the connections that were still open at the end of drain.grace"
        );
    }
    broker.finish_calls(deadline.max(Instant::now() + LAST_CALLS)).await;
    tracing::info!("drained");
    Ok(())
}

fn notify_service_manager(state: NotifyState<'_>) {
    // Does nothing unless NOTIFY_SOCKET is set.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
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
        "\n  Bananas is ready in development mode: private Redis, one broker, no authentication.\n\
         \n    gRPC      http://{address}\
         \n    metrics   {metrics}\
         \n    data      {}  (kept; --fresh deletes it)\n\
         \n  Try, in other terminals, in this order:\n\
         \n    bananas worker{flag} --queue demo --exec 'wc -c'\
         \n    bananas enqueue{flag} demo/count --payload 'hello' --wait\
         \n    grpcurl -plaintext {address} bananas.v1.QueueService/ListQueues\n\
         \n  Ctrl-C drains and stops the broker and its Redis.\n\n",
        redis.data_dir().display()
    )
}
