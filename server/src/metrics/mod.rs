//! The metrics of a broker: one struct of atomics that the code updates and `/metrics` renders. Names and help texts
//! are in `table`.

mod calls;
pub mod documentation;
mod histogram;
mod labelled;
mod process;
mod queue;
mod render;
pub mod table;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use prometheus_client::registry::Registry;

use self::histogram::{GROUP_ITEMS, SCRIPT_SECONDS};
pub use self::{
    calls::{CallMetrics, MethodMetrics},
    histogram::Histogram,
    labelled::Labelled,
    queue::{BANDS, BandMetrics, QueueDepths, QueueMetrics, band},
};
use crate::clock::now_ms;

/// Queues with their own value of the `routing_key` label; further queues are counted under `_other`.
pub const MAX_ROUTING_KEYS: usize = 1_000;

const OTHER: &str = "_other";

/// All metrics of one broker. Fields are handles: update them directly. [`table`] says what each means.
#[derive(Debug)]
pub struct Metrics {
    queues: RwLock<HashMap<Box<str>, Arc<QueueMetrics>>>,
    other: Arc<QueueMetrics>,
    max_routing_keys: usize,
    start_time: f64,
    /// Calls by method and code.
    pub calls: CallMetrics,
    /// Times a queue was counted under `_other`.
    pub routing_keys_dropped: Counter,
    /// Open Subscribe streams.
    pub worker_total: Gauge,
    /// Subscribe streams that hold at least one job.
    pub worker_active: Gauge,
    /// Jobs held by Subscribe streams.
    pub worker_held_jobs: Gauge,
    /// Sum of the windows of Subscribe streams.
    pub worker_window_jobs: Gauge,
    /// Streams that ended because the worker was silent.
    pub heartbeat_timeouts: Counter,
    /// Lease calls that wait.
    pub lease_waiters: Gauge,
    /// Unary calls being handled, by admission class.
    pub calls_in_flight: Labelled<Gauge>,
    /// Calls refused with OVERLOADED, by admission class.
    pub calls_shed: Labelled<Counter>,
    /// Open streaming calls.
    pub open_streams: Gauge,
    /// Open gRPC connections.
    pub connections: Gauge,
    /// Accepted gRPC connections.
    pub connections_accepted: Counter,
    /// Connections closed at once, by reason.
    pub connections_rejected: Labelled<Counter>,
    /// Failed accept() calls.
    pub accept_errors: Counter,
    /// Items per script call, by operation (enqueue, ack, nack, extend, lease).
    pub group_size: Labelled<Histogram>,
    /// Items that wait for the script call in flight, by operation.
    pub commit_queue: Labelled<Gauge>,
    /// 1 if the last command got a reply.
    pub redis_up: Gauge,
    /// Consecutive commands without a reply.
    pub redis_consecutive_failures: Gauge,
    /// Sets of Redis connections built since the start.
    pub redis_generation: Gauge,
    /// Failed commands, by class of error.
    pub redis_errors: Labelled<Counter>,
    /// Script calls, by script.
    pub script_duration: Labelled<Histogram>,
    /// Records moved to the quarantine.
    pub quarantined: Counter,
    /// 1 while the broker is ready.
    pub ready: Gauge,
}

impl Metrics {
    /// Metrics at zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::with_max_routing_keys(MAX_ROUTING_KEYS))
    }

    fn with_max_routing_keys(max_routing_keys: usize) -> Self {
        Self {
            queues: RwLock::default(),
            other: Arc::new(QueueMetrics::new(OTHER, true)),
            max_routing_keys,
            start_time: now_ms() as f64 / 1000.0,
            calls: CallMetrics::new(),
            routing_keys_dropped: Counter::default(),
            worker_total: Gauge::default(),
            worker_active: Gauge::default(),
            worker_held_jobs: Gauge::default(),
            worker_window_jobs: Gauge::default(),
            heartbeat_timeouts: Counter::default(),
            lease_waiters: Gauge::default(),
            calls_in_flight: Labelled::new(Gauge::default),
            calls_shed: Labelled::new(Counter::default),
            open_streams: Gauge::default(),
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_rejected: Labelled::new(Counter::default),
            accept_errors: Counter::default(),
            group_size: Labelled::new(|| Histogram::new(&GROUP_ITEMS)),
            commit_queue: Labelled::new(Gauge::default),
            redis_up: Gauge::default(),
            redis_consecutive_failures: Gauge::default(),
            redis_generation: Gauge::default(),
            redis_errors: Labelled::new(Counter::default),
            script_duration: Labelled::new(|| Histogram::new(&SCRIPT_SECONDS)),
            quarantined: Counter::default(),
            ready: Gauge::default(),
        }
    }

    /// The metrics of one queue. Takes a lock: keep the handle. Above [`MAX_ROUTING_KEYS`] the queue that has been
    /// unused and empty for longest loses its label; if there is none, returns the shared `_other`.
    pub fn queue(&self, routing_key: &str) -> Arc<QueueMetrics> {
        if let Some(queue) = self.queues.read().get(routing_key) {
            queue.back_in_use();
            return queue.clone();
        }
        let mut queues = self.queues.write();
        if let Some(queue) = queues.get(routing_key) {
            queue.back_in_use();
            return queue.clone();
        }
        if queues.len() >= self.max_routing_keys {
            let unused = queues
                .iter()
                .filter_map(|(name, queue)| Some((queue.unused_for()?, name)));
            if let Some(name) = unused.max().map(|(_, name)| name.clone()) {
                queues.remove(&name);
            }
        }
        if queues.len() >= self.max_routing_keys {
            self.routing_keys_dropped.inc();
            return self.other.clone();
        }
        let queue = Arc::new(QueueMetrics::new(routing_key, false));
        queues.insert(routing_key.into(), queue.clone());
        queue
    }

    /// Whether a new queue would get its own label value.
    pub fn has_free_labels(&self) -> bool {
        self.queues.read().len() < self.max_routing_keys
    }

    /// Removes queues that are empty and have been unused for this long.
    pub fn forget_unused(&self, longest: Duration) {
        let mut queues = self.queues.write();
        queues.retain(|_, queue| queue.unused_for().is_none_or(|unused| unused < longest));
    }

    /// Every queue with its own label value.
    pub fn own_queues(&self) -> Vec<Arc<QueueMetrics>> {
        let queues = self.queues.read();
        queues.values().cloned().collect()
    }

    /// Every known queue by name, then `_other` if a queue was counted there.
    fn queues(&self) -> Vec<Arc<QueueMetrics>> {
        let mut queues: Vec<Arc<QueueMetrics>> = self.queues.read().values().cloned().collect();
        queues.sort_by(|a, b| a.routing_key().cmp(b.routing_key()));
        if self.routing_keys_dropped.get() > 0 {
            queues.push(self.other.clone());
        }
        queues
    }

    fn worker_utilization(&self) -> f64 {
        let window = self.worker_window_jobs.get();
        if window <= 0 {
            0.0
        } else {
            (self.worker_held_jobs.get() as f64 / window as f64).clamp(0.0, 1.0)
        }
    }

    /// The registry that renders these metrics.
    pub fn registry(self: &Arc<Self>) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(render::Renderer(self.clone())));
        registry
    }
}

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics as OpenMetrics text, the format that Prometheus prefers since 2.5.
pub fn render(registry: &Registry) -> String {
    let mut text = String::with_capacity(64 * 1024);
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_metric_of_the_table_and_no_other() {
        let metrics = Metrics::new();
        let queue = metrics.queue("email");
        let band = queue.band(8);
        band.enqueued.inc();
        band.duration.observe(Duration::from_millis(7));
        queue.set_depths(&QueueDepths {
            ready: [0, 0, 3],
            ..QueueDepths::default()
        });
        metrics.group_size.get("enqueue").record(17);
        metrics
            .calls
            .method("/bananas.v1.BrokerService/Enqueue")
            .record(tonic::Code::Ok, Duration::from_micros(300));
        let page = render(&metrics.registry());
        for line in [
            "bananas_jobs_enqueued_total{priority=\"high\",routing_key=\"email\"} 1",
            "bananas_job_duration_seconds_bucket{le=\"0.01\",priority=\"high\",routing_key=\"email\"} 1",
            "bananas_job_duration_seconds_sum{priority=\"high\",routing_key=\"email\"} 0.007",
            "bananas_queue_depth{priority=\"high\",routing_key=\"email\"} 3",
            "bananas_group_size_items_count{operation=\"enqueue\"} 1",
            "bananas_worker_total 0",
            "bananas_job_duration_seconds_bucket{le=\"+Inf\",priority=\"high\",routing_key=\"email\"} 1",
            "redis_up 0",
            "bananas_worker_utilization 0",
        ] {
            assert!(
                page.lines().any(|found| found.starts_with(line)),
                "{line} is missing in\n{page}"
            );
        }
        for (_, metric) in table::TABLE {
            let type_line = format!("# TYPE {} {}", metric.family(), metric.kind.word());
            assert!(page.contains(&type_line), "{type_line} is missing");
        }
        assert_eq!(
            page.matches("# TYPE").count(),
            table::TABLE.len(),
            "a rendered metric is missing in the table"
        );
    }

    #[test]
    fn an_unused_and_empty_queue_frees_its_label_value() {
        let metrics = Arc::new(Metrics::with_max_routing_keys(2));
        let (first, second) = (metrics.queue("a"), metrics.queue("b"));
        first.set_depths(&QueueDepths {
            dead: 1,
            ..QueueDepths::default()
        });
        first.retire();
        second.retire();
        assert_eq!(metrics.queue("c").routing_key(), "c", "b is empty and unused");
        assert_eq!(metrics.queue("b").routing_key(), "_other", "a is not empty, c is used");
        first.set_depths(&QueueDepths::default());
        metrics.forget_unused(Duration::ZERO);
        assert!(metrics.has_free_labels());
        let page = render(&metrics.registry());
        assert!(
            !page.contains("routing_key=\"a\"") && page.contains("routing_key=\"c\""),
            "{page}"
        );
    }

    #[test]
    fn an_empty_histogram_is_not_rendered() {
        let metrics = Metrics::new();
        metrics.queue("email").band(8).enqueued.inc();
        let page = render(&metrics.registry());
        assert!(page.contains("bananas_jobs_enqueued_total{priority=\"high\",routing_key=\"email\"} 1"));
        assert!(!page.contains("bananas_job_duration_seconds_bucket"), "{page}");
    }

    #[test]
    fn queues_above_the_limit_share_one_label_value_and_are_counted() {
        let metrics = Arc::new(Metrics::with_max_routing_keys(2));
        for routing_key in ["a", "b", "c", "d", "a"] {
            metrics.queue(routing_key).band(5).enqueued.inc();
        }
        let page = render(&metrics.registry());
        assert!(page.contains("bananas_jobs_enqueued_total{priority=\"normal\",routing_key=\"a\"} 2"));
        assert!(page.contains("bananas_jobs_enqueued_total{priority=\"normal\",routing_key=\"_other\"} 2"));
        assert!(page.contains("bananas_metrics_routing_keys_dropped_total 2"));
        assert!(!page.contains("routing_key=\"c\""));
    }
}
