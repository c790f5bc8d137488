//! A worker that is ready to run.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    attempt::handler::Handlers,
    attempt::panics,
    attempt::runner::{Bench, SpanMaker},
    attempt::slots::Slots,
    error::Error,
    observe::report,
    observe::stats::Stats,
    run::engine::{Engine, Streams},
    run::signals::Signals,
    run::stream::Dialer,
    session::window::Window,
    session::{Session, Terms},
};

/// Takes jobs from a broker and runs handlers on them, until it is told to stop.
#[derive(Debug)]
#[must_use = "a worker does nothing until it is run"]
pub struct Worker(Parts);

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) terms: Terms,
    pub(crate) window: Window,
    pub(crate) handlers: Handlers,
    pub(crate) spans: Option<SpanMaker>,
    pub(crate) dialer: Dialer,
    pub(crate) worker_id: String,
    /// 0: takes nothing.
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
    pub(crate) const fn new(parts: Parts) -> Self {
        Self(parts)
    }

    /// The id under which the broker shows this worker: its name and what makes this start unique.
    pub fn id(&self) -> &str {
        &self.0.worker_id
    }

    /// Runs until SIGTERM, SIGINT, SIGHUP or SIGQUIT. Then takes no more jobs, gives back those it has not started, lets the others finish within the
    /// grace, and returns. A second signal ends it at once.
    ///
    /// Broken connections are no reason to return: they are tried again for as long as it takes.
    pub async fn run(self) -> Result<(), Error> {
        let mut signals = Signals::install().map_err(Error::Signals)?;
        let (first, second) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let listen = async {
            // Waited for first: what a disabled log line names is not evaluated.
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

    /// Runs until `shutdown` is over, then ends as [`Worker::run`] does after its first signal. Signals are the caller's business.
    ///
    /// Dropping the future ends the worker at once: its jobs are cancelled, and come back when their leases end.
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
        let (meter, _port) = match parts.metrics_listen {
            Some(address) => {
                let meter = crate::observe::metrics::Meter::new(stats.clone());
                let port = crate::observe::http::serve(address, meter.registry(), stats.clone()).await?;
                (Some(meter), Some(AbortOnDropHandle::new(tokio::spawn(port))))
            }
            None => (None, None),
        };
        if parts.concurrency == 0 {
            tracing::info!("this worker takes no jobs; the brokers promote what is due");
            graceful.await;
            return Ok(());
        }
        let _report = (!parts.report_every.is_zero()).then(|| {
            let report = report::run(stats.clone(), parts.worker_id.clone(), parts.report_every);
            AbortOnDropHandle::new(tokio::spawn(report))
        });
        let (sender, events) = mpsc::unbounded_channel();
        let bench = Bench {
            handlers: parts.handlers,
            spans: parts.spans,
            events: sender,
        };
        let cancel_grace = parts.terms.cancel_grace;
        let engine = Engine {
            slots: Slots::new(bench, parts.concurrency, parts.window.patience(), stats.clone()),
            session: Session::new(parts.terms, parts.window, stats.clone(), Instant::now()),
            worker_id: parts.worker_id,
            dialer: parts.dialer,
            events,
            stats,
            shutdown_grace: parts.shutdown_grace,
            cancel_grace,
            #[cfg(feature = "metrics")]
            meter,
            streams: Streams::default(),
        };
        engine.run(graceful, at_once).await
    }
}
