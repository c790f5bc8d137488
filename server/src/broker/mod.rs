//! What the parts of a broker share, and how it drains. `app/serve.rs` puts the parts together.

mod audits;
pub mod notifications;

use std::{sync::Arc, time::Duration};

pub(crate) use audits::Audits;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::now_ms,
    dispatch::Dispatcher,
    domain::Limits,
    edge::methods,
    metrics::Metrics,
    queue::Queues,
    session::Sessions,
    store::{self, Notification, OpenError, Store},
};

/// The options of a broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// Redis, and the defaults of jobs.
    pub store: store::Options,
    /// The bounds that an operator can set.
    pub limits: Limits,
    /// Streams.
    pub stream: StreamOptions,
    /// Serve gRPC reflection.
    pub reflection: bool,
}

/// The options of `Subscribe` streams.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The interval of heartbeats, in both directions.
    pub heartbeat_interval: Duration,
    /// How long confirmed jobs stay with a worker whose stream broke.
    pub grace: Duration,
    /// The maximum age of a stream, give or take a tenth.
    pub max_age: Duration,
    /// How long a stream still takes settlements once the broker drains.
    pub drain_grace: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            max_age: Duration::from_mins(30),
            drain_grace: Duration::from_secs(20),
        }
    }
}

/// A running broker. It holds only caches: the source of truth is Redis.
#[derive(Debug)]
pub struct Broker {
    pub(crate) id: String,
    pub(crate) started_ms: u64,
    pub(crate) store: Arc<Store>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) sessions: Sessions,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) stream: StreamOptions,
    pub(crate) reflection: bool,
    /// The queues that this broker audits now.
    pub(crate) audits: Arc<Audits>,
    /// Cancelled when the drain begins: streams are asked to move, long polls end.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the drain is over: background tasks end.
    stopped: CancellationToken,
    /// Notified when an operation is to be continued: the duty need not wait for its next check.
    pub(crate) operations: Notify,
    pub(crate) health: tonic_health::server::HealthReporter,
}

impl Broker {
    /// Connects to Redis; refuses one on which jobs could be lost. Also returns the notifications that Redis sends.
    pub async fn open(
        options: Options,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<(String, Notification)>), OpenError> {
        let store = Arc::new(Store::open(options.store, metrics.clone()).await?);
        let notifications = store.listen();
        let queues = Arc::new(Queues::new(store.clone(), metrics.clone(), notifications.interest));
        let health = tonic_health::server::HealthReporter::new();
        set_health(&health, tonic_health::ServingStatus::Serving).await;
        let broker = Arc::new(Self {
            id: uuid::Uuid::now_v7().to_string(),
            started_ms: now_ms(),
            dispatcher: Dispatcher::new(queues.clone(), metrics.clone()),
            store,
            queues,
            sessions: Sessions::default(),
            metrics,
            limits: options.limits,
            stream: options.stream,
            reflection: options.reflection,
            audits: Arc::default(),
            draining: CancellationToken::new(),
            stopped: CancellationToken::new(),
            operations: Notify::new(),
            health,
        });
        Ok((broker, notifications.incoming))
    }

    /// Runs a background task until the drain is over.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.stopped.clone().run_until_cancelled_owned(work));
    }

    /// Reports over gRPC health that this broker is about to stop.
    pub async fn set_draining(&self) {
        set_health(&self.health, tonic_health::ServingStatus::NotServing).await;
    }

    /// Ends long polls, asks streams to move, and waits until all have ended or until the deadline. Then the background
    /// tasks end.
    pub async fn drain(&self, deadline: Instant) {
        self.draining.cancel();
        let _ = tokio::time::timeout_at(deadline, self.sessions.all_gone()).await;
        self.stopped.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), self.store.retire(&self.id)).await;
    }

    /// Waits for the script calls in flight, until the deadline at most: jobs that they lease for callers that are gone
    /// are released with them.
    pub async fn finish_calls(&self, deadline: Instant) {
        let calls = self.store.in_flight();
        calls.close();
        if tokio::time::timeout_at(deadline, calls.wait()).await.is_err() {
            tracing::warn!(
                calls = calls.len(),
                "script calls were still in flight at the end of drain.grace"
            );
        }
    }
}

/// Sets the health of the broker as a whole, which has the empty name, and of each of its services.
async fn set_health(health: &tonic_health::server::HealthReporter, status: tonic_health::ServingStatus) {
    for name in [""].into_iter().chain(methods::own_services()) {
        health.set_service_status(name, status).await;
    }
}
