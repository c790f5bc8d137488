//! What all parts of a broker share, and how it drains. `app/serve.rs` puts the parts together.

pub mod notifications;

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
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

/// How a broker is to behave.
#[derive(Clone, Debug)]
pub struct Options {
    /// Redis, and the defaults of jobs.
    pub store: store::Options,
    /// The bounds that an operator may set.
    pub limits: Limits,
    /// Streams.
    pub stream: StreamOptions,
    /// Serve gRPC reflection.
    pub reflection: bool,
}

/// How Subscribe streams are to behave.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Both sides send something at least this often.
    pub heartbeat_interval: Duration,
    /// How long received jobs stay with a worker whose stream broke.
    pub grace: Duration,
    /// How long a stream lives, give or take a tenth.
    pub max_age: Duration,
    /// How long a stream that was told to drain may still settle.
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

/// A running broker. Nothing in it is the truth; that is in Redis.
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
    /// Streams are asked to move, long polls end.
    pub(crate) draining: CancellationToken,
    /// Background work ends.
    stopped: CancellationToken,
    pub(crate) health: tonic_health::server::HealthReporter,
}

impl Broker {
    /// Connects to Redis and refuses one on which jobs could be lost. What the scripts tell comes out beside the broker.
    pub async fn open(
        options: Options,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<(String, Notification)>), OpenError> {
        let store = Arc::new(Store::open(options.store, metrics.clone()).await?);
        let signals = store.listen();
        let queues = Arc::new(Queues::new(store.clone(), metrics.clone(), signals.interest));
        let health = tonic_health::server::HealthReporter::new();
        say(&health, tonic_health::ServingStatus::Serving).await;
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
            draining: CancellationToken::new(),
            stopped: CancellationToken::new(),
            health,
        });
        Ok((broker, signals.incoming))
    }

    /// Does work in the background until the drain is over.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.stopped.clone().run_until_cancelled_owned(work));
    }

    /// Says to the outside that this broker is about to stop.
    pub async fn set_draining(&self) {
        say(&self.health, tonic_health::ServingStatus::NotServing).await;
    }

    /// Ends long polls, asks streams to move, and waits until they have or until the deadline; then the background work ends.
    pub async fn drain(&self, deadline: Instant) {
        self.draining.cancel();
        let _ = tokio::time::timeout_at(deadline, self.sessions.all_gone()).await;
        self.stopped.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), self.store.retire(&self.id)).await;
    }

    /// Waits for the script calls that are under way, at most until then: what was leased for callers that are gone goes back with them.
    pub async fn landed(&self, deadline: Instant) {
        let flights = self.store.in_flight();
        flights.close();
        if tokio::time::timeout_at(deadline, flights.wait()).await.is_err() {
            tracing::warn!(
                calls = flights.len(),
                "script calls were still under way at the end of drain.grace"
            );
        }
    }
}

/// Sets the health of the broker as a whole, which has the empty name, and of each of its services.
async fn say(health: &tonic_health::server::HealthReporter, status: tonic_health::ServingStatus) {
    for name in [""].into_iter().chain(methods::own_services()) {
        health.set_service_status(name, status).await;
    }
}
