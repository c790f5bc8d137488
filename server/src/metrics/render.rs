//! Renders the metrics as text: one pass over the table per scrape.

use std::{fmt::Error, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::{
    Histogram, Labelled, Metrics, QueueMetrics, process,
    table::{self, Metric},
};

/// Renders a [`Metrics`]. Owned by the registry.
#[derive(Debug)]
pub(super) struct Renderer(pub(super) Arc<Metrics>);

impl Collector for Renderer {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page(encoder);
        let metrics = &*self.0;
        let queues = metrics.queues();
        jobs(&mut page, &queues)?;
        depths(&mut page, &queues)?;
        workers(&mut page, metrics)?;
        calls(&mut page, metrics)?;
        redis(&mut page, metrics)?;
        process_and_build(&mut page, metrics)
    }
}

fn jobs(page: &mut Page<'_>, queues: &[Arc<QueueMetrics>]) -> Result<(), Error> {
    page.bands(&table::ENQUEUED, queues, |band| &band.enqueued)?;
    page.bands(&table::COMPLETED, queues, |band| &band.completed)?;
    page.bands(&table::FAILED, queues, |band| &band.failed)?;
    page.histograms(&table::DURATION, queues, |band| &band.duration)?;
    page.histograms(&table::WAIT, queues, |band| &band.wait)?;
    page.queues(&table::DEDUPLICATED, queues, |queue| queue.deduplicated.clone())?;
    page.queues(&table::RETRIED, queues, |queue| queue.retried.clone())?;
    page.queues(&table::DEAD, queues, |queue| queue.dead.clone())?;
    page.queues(&table::LOST, queues, |queue| queue.lost.clone())?;
    page.queues(&table::UNCONFIRMED, queues, |queue| queue.unconfirmed.clone())?;
    page.queues(&table::RELEASED, queues, |queue| queue.released.clone())?;
    page.queues(&table::CANCELLED, queues, |queue| queue.cancelled.clone())?;
    page.queues(&table::EXPIRED, queues, |queue| queue.expired.clone())
}

fn depths(page: &mut Page<'_>, queues: &[Arc<QueueMetrics>]) -> Result<(), Error> {
    let mut encoder = page.begin(&table::DEPTH)?;
    for queue in queues.iter().filter(|queue| !queue.is_shared()) {
        for (name, band) in queue.bands().filter(|(_, band)| band.is_seen()) {
            let labels = [("priority", name), ("routing_key", queue.routing_key())];
            ConstGauge::new(band.depth()).encode(encoder.encode_family(&labels)?)?;
        }
    }
    page.own_queues(&table::SCHEDULED_DEPTH, queues, |queue| {
        ConstGauge::new(queue.depths().0)
    })?;
    page.own_queues(&table::PROCESSING_DEPTH, queues, |queue| {
        ConstGauge::new(queue.depths().1)
    })?;
    page.own_queues(&table::DEAD_DEPTH, queues, |queue| ConstGauge::new(queue.depths().2))?;
    page.own_queues(&table::OLDEST_READY, queues, |queue| {
        ConstGauge::new(queue.oldest_ready_seconds())
    })
}

fn workers(page: &mut Page<'_>, metrics: &Metrics) -> Result<(), Error> {
    page.one(&table::DROPPED_KEYS, &metrics.routing_keys_dropped)?;
    page.one(&table::WORKER_TOTAL, &metrics.worker_total)?;
    page.one(&table::WORKER_ACTIVE, &metrics.worker_active)?;
    page.one(&table::WORKER_HELD, &metrics.worker_held_jobs)?;
    page.one(&table::WORKER_WINDOW, &metrics.worker_window_jobs)?;
    page.one(
        &table::WORKER_UTILIZATION,
        &ConstGauge::new(metrics.worker_utilization()),
    )?;
    page.one(&table::HEARTBEAT_TIMEOUTS, &metrics.heartbeat_timeouts)?;
    page.one(&table::LEASE_WAITERS, &metrics.lease_waiters)
}

fn calls(page: &mut Page<'_>, metrics: &Metrics) -> Result<(), Error> {
    let mut encoder = page.begin(&table::CALL_DURATION)?;
    for method in metrics.calls.all() {
        for (code, histogram) in method.codes() {
            let labels = [("rpc_method", method.name()), ("rpc_response_status_code", code)];
            histogram.encode(encoder.encode_family(&labels)?)?;
        }
    }
    page.labelled(&table::CALLS_IN_FLIGHT, &metrics.calls_in_flight)?;
    page.labelled(&table::CALLS_SHED, &metrics.calls_shed)?;
    page.one(&table::OPEN_STREAMS, &metrics.open_streams)?;
    page.one(&table::CONNECTIONS, &metrics.connections)?;
    page.one(&table::CONNECTIONS_ACCEPTED, &metrics.connections_accepted)?;
    page.labelled(&table::CONNECTIONS_REJECTED, &metrics.connections_rejected)?;
    page.one(&table::ACCEPT_ERRORS, &metrics.accept_errors)
}

fn redis(page: &mut Page<'_>, metrics: &Metrics) -> Result<(), Error> {
    page.labelled(&table::GROUP_SIZE, &metrics.group_size)?;
    page.labelled(&table::COMMIT_QUEUE, &metrics.commit_queue)?;
    page.one(&table::REDIS_UP, &metrics.redis_up)?;
    page.one(&table::REDIS_FAILURES, &metrics.redis_consecutive_failures)?;
    page.one(&table::REDIS_GENERATION, &metrics.redis_generation)?;
    page.labelled(&table::REDIS_ERRORS, &metrics.redis_errors)?;
    page.labelled(&table::SCRIPT_DURATION, &metrics.script_duration)?;
    page.one(&table::QUARANTINED, &metrics.quarantined)
}

fn process_and_build(page: &mut Page<'_>, metrics: &Metrics) -> Result<(), Error> {
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("rust_version", env!("CARGO_PKG_RUST_VERSION")),
    ];
    let mut encoder = page.begin(&table::BUILD_INFO)?;
    ConstGauge::new(1_i64).encode(encoder.encode_family(&labels)?)?;
    page.one(&table::READY, &metrics.ready)?;
    let process = process::read();
    page.one(&table::CPU, &ConstCounter::new(process.cpu_seconds))?;
    page.one(&table::RESIDENT, &ConstGauge::new(process.resident_bytes as i64))?;
    page.one(&table::OPEN_FDS, &ConstGauge::new(process.open_fds as i64))?;
    page.one(
        &table::MAX_FDS,
        &ConstGauge::new(i64::try_from(process.max_fds).unwrap_or(i64::MAX)),
    )?;
    page.one(&table::START_TIME, &ConstGauge::new(metrics.start_time))?;
    let tasks = tokio::runtime::Handle::try_current().map_or(0, |handle| handle.metrics().num_alive_tasks());
    page.one(&table::TASKS, &ConstGauge::new(tasks as i64))
}

/// Writes metrics of the table into the page.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn begin(&mut self, metric: &'static Metric) -> Result<MetricEncoder<'_>, Error> {
        self.0
            .encode_descriptor(metric.stem(), metric.help, metric.unit(), metric.metric_type())
    }

    fn one(&mut self, metric: &'static Metric, value: &impl EncodeMetric) -> Result<(), Error> {
        value.encode(self.begin(metric)?)
    }

    fn labelled<M: EncodeMetric>(&mut self, metric: &'static Metric, values: &Labelled<M>) -> Result<(), Error> {
        let mut encoder = self.begin(metric)?;
        for (value, child) in values.all() {
            child.encode(encoder.encode_family(&[(metric.labels[0], value)])?)?;
        }
        Ok(())
    }

    fn bands<M: EncodeMetric>(
        &mut self,
        metric: &'static Metric,
        queues: &[Arc<QueueMetrics>],
        value: impl Fn(&super::BandMetrics) -> &M,
    ) -> Result<(), Error> {
        let mut encoder = self.begin(metric)?;
        for queue in queues {
            for (name, band) in queue.bands().filter(|(_, band)| band.is_seen()) {
                let labels = [("priority", name), ("routing_key", queue.routing_key())];
                value(band).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// Histograms with values: an empty one would be seventeen lines of zeros in every scrape.
    fn histograms(
        &mut self,
        metric: &'static Metric,
        queues: &[Arc<QueueMetrics>],
        value: impl Fn(&super::BandMetrics) -> &Histogram,
    ) -> Result<(), Error> {
        let mut encoder = self.begin(metric)?;
        for queue in queues {
            for (name, histogram) in queue.bands().map(|(name, band)| (name, value(band))) {
                if histogram.count() > 0 {
                    let labels = [("priority", name), ("routing_key", queue.routing_key())];
                    histogram.encode(encoder.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    fn queues<M: EncodeMetric>(
        &mut self,
        metric: &'static Metric,
        queues: &[Arc<QueueMetrics>],
        value: impl Fn(&QueueMetrics) -> M,
    ) -> Result<(), Error> {
        let mut encoder = self.begin(metric)?;
        for queue in queues {
            value(queue).encode(encoder.encode_family(&[("routing_key", queue.routing_key())])?)?;
        }
        Ok(())
    }

    /// Gauges of whole queues, which `_other` does not have.
    fn own_queues<M: EncodeMetric>(
        &mut self,
        metric: &'static Metric,
        queues: &[Arc<QueueMetrics>],
        value: impl Fn(&QueueMetrics) -> M,
    ) -> Result<(), Error> {
        let own: Vec<Arc<QueueMetrics>> = queues.iter().filter(|queue| !queue.is_shared()).cloned().collect();
        self.queues(metric, &own, value)
    }
}
