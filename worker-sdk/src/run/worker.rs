//! A worker that is ready to run.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

#[cfg(feature = "metrics")]
use crate::observe::{http, metrics::Metrics};
use crate::{
    attempt::{
        handler::Handlers,
        panics,
        runner::{AttemptRunner, MakeSpan},
        slots::Slots,
    },
    error::Error,
    observe::{report, stats::Stats},
    run::{
        engine::{Engine, Streams},
        signals::Signals,
        stream::Dialer,
    },
    session::{Session, WorkerOptions, window::Window},
};

/// Leases jobs from a broker and runs handlers on them until it is stopped.
#[derive(Debug)]
#[must_use = "a worker does nothing until it is run"]
pub struct Worker(WorkerParts);

/// What the builder makes a worker from.
#[derive(Debug)]
pub(crate) struct WorkerParts {
    pub(crate) options: WorkerOptions,
    pub(crate) window: Window,
    pub(crate) handlers: Handlers,
    pub(crate) spans: Option<MakeSpan>,
    pub(crate) dialer: Dialer,
    /// 0: the worker leases no jobs.
    pub(crate) concurrency: u32,
    pub(crate) shutdown_grace: Duration,
    pub(crate) report_every: Duration,
    #[cfg_attr(
        not(feature = "metrics"),
        allow(dead_code, reason = "the builder refuses it without the feature")
    )]
    pub(crate) metrics_listen: Option<SocketAddr>,
}

impl Worker {
    pub(crate) const fn new(parts: WorkerParts) -> Self {
        Self(parts)
    }

    /// The id of this worker in the broker: its name, and a random part for this start.
    pub fn id(&self) -> &str {
        &self.0.options.worker.worker_id
    }

    /// Runs until SIGTERM, SIGINT, SIGHUP or SIGQUIT. Then it leases no more jobs, releases those it has not started,
    /// lets the others finish within the grace, and returns. A second signal ends it at once.
    ///
    /// It does not return when a connection breaks: it reconnects for as long as it takes.
    pub async fn run(self) -> Result<(), Error> {
        let mut signals = Signals::install().map_err(Error::Signals)?;
        let (first, second) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let listen = async {
            // Not inside the log line: its arguments are not evaluated if its level is off.
            let signal = signals.next().await;
            tracing::info!(signal, "stopping");
            first.notify_one();
            let signal = signals.next().await;
            tracing::warn!(signal, "stopping at once");
            second.notify_one();
            pending::<()>().await;
        };
        tokio::select! {
            result = self.run_with(first.notified(), second.notified()) => result,
            () = listen => Ok(()),
        }
    }

    /// Runs until `shutdown` completes, then ends as [`Worker::run`] does after the first signal. It does not handle
    /// signals.
    ///
    /// Dropping the future ends the worker at once: its jobs are cancelled, and are READY again when their leases end.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        self.run_with(shutdown, pending()).await
    }

    async fn run_with(
        self,
        graceful: impl Future<Output = ()>,
        at_once: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        panics::install_hook();
        let parts = self.0;
        let stats = Arc::new(Stats::new(parts.concurrency));
        #[cfg(feature = "metrics")]
        let (metrics, _port) = match parts.metrics_listen {
            Some(address) => {
                let metrics = Metrics::new(stats.clone());
                let port = http::serve(address, metrics.registry(), stats.clone()).await?;
                (Some(metrics), Some(AbortOnDropHandle::new(tokio::spawn(port))))
            }
            None => (None, None),
        };
        let worker_id = parts.options.worker.worker_id.clone();
        if parts.concurrency == 0 {
            tracing::info!("this worker leases no jobs; the brokers promote what is due");
            graceful.await;
            return Ok(());
        }
        let _report = (!parts.report_every.is_zero()).then(|| {
            let report = report::run(stats.clone(), worker_id.clone(), parts.report_every);
            AbortOnDropHandle::new(tokio::spawn(report))
        });
        let (sender, events) = mpsc::unbounded_channel();
        let runner = AttemptRunner {
            handlers: parts.handlers,
            spans: parts.spans,
            events: sender,
        };
        let cancel_grace = parts.options.cancel_grace;
        let engine = Engine {
            slots: Slots::new(runner, parts.concurrency, parts.window.max_wait(), stats.clone()),
            session: Session::new(parts.options, parts.window, stats.clone(), Instant::now()),
            worker_id,
            dialer: parts.dialer,
            events,
            stats,
            shutdown_grace: parts.shutdown_grace,
            cancel_grace,
            #[cfg(feature = "metrics")]
            metrics,
            streams: Streams::default(),
        };
        engine.run(graceful, at_once).await
    }
}
