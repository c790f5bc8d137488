//! A histogram that costs two relaxed atomic additions per value. The one of prometheus-client takes a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Upper bounds of the buckets, and how many recorded units are one exposed unit.
#[derive(Debug)]
pub(super) struct Buckets {
    bounds: &'static [u64],
    per_unit: f64,
}

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const PER_SECOND: f64 = 1e9;

/// For handlers and time in the queue: 1 ms to 1 h.
pub(super) const JOB_SECONDS: Buckets = Buckets {
    bounds: &[
        MILLISECOND,
        5 * MILLISECOND,
        10 * MILLISECOND,
        25 * MILLISECOND,
        50 * MILLISECOND,
        100 * MILLISECOND,
        250 * MILLISECOND,
        500 * MILLISECOND,
        SECOND,
        5 * SECOND,
        15 * SECOND,
        60 * SECOND,
        300 * SECOND,
        900 * SECOND,
        3600 * SECOND,
    ],
    per_unit: PER_SECOND,
};

/// For gRPC calls: 100 µs to 30 s.
pub(super) const CALL_SECONDS: Buckets = Buckets {
    bounds: &[
        100 * MICROSECOND,
        250 * MICROSECOND,
        500 * MICROSECOND,
        MILLISECOND,
        2_500 * MICROSECOND,
        5 * MILLISECOND,
        10 * MILLISECOND,
        25 * MILLISECOND,
        50 * MILLISECOND,
        100 * MILLISECOND,
        250 * MILLISECOND,
        SECOND,
        5 * SECOND,
        30 * SECOND,
    ],
    per_unit: PER_SECOND,
};

/// For script calls with their round trip: 50 µs to the response timeout.
pub(super) const SCRIPT_SECONDS: Buckets = Buckets {
    bounds: &[
        50 * MICROSECOND,
        100 * MICROSECOND,
        200 * MICROSECOND,
        400 * MICROSECOND,
        800 * MICROSECOND,
        1_600 * MICROSECOND,
        3_200 * MICROSECOND,
        6_400 * MICROSECOND,
        12_800 * MICROSECOND,
        50 * MILLISECOND,
        250 * MILLISECOND,
        SECOND,
        2 * SECOND,
    ],
    per_unit: PER_SECOND,
};

/// For the items of one script call.
pub(super) const GROUP_ITEMS: Buckets = Buckets {
    bounds: &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
    per_unit: 1.0,
};

/// Recording a value neither locks nor allocates. A reader may see a value in its bucket before it is in the sum.
#[derive(Debug)]
pub struct Histogram {
    buckets: &'static Buckets,
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// An empty histogram with these bounds and a last bucket without one.
    pub(super) fn new(buckets: &'static Buckets) -> Self {
        let counts = (0..=buckets.bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            buckets,
            counts,
            sum: AtomicU64::new(0),
        }
    }

    /// Records a number of things (items, bytes).
    pub fn record(&self, value: u64) {
        let bucket = self.buckets.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Records a duration.
    pub fn observe(&self, duration: Duration) {
        self.record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The number of recorded values.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let bounds = self
            .buckets
            .bounds
            .iter()
            .map(|bound| *bound as f64 / self.buckets.per_unit);
        let rows: Vec<(f64, u64)> = bounds
            .chain(std::iter::once(f64::INFINITY))
            .zip(counts.iter().copied())
            .collect();
        let sum = self.sum.load(Relaxed) as f64 / self.buckets.per_unit;
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &rows, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_in_that_bucket_and_one_above_all_bounds_is_counted() {
        let histogram = Histogram::new(&GROUP_ITEMS);
        for value in [1, 2, 3, 4, 1024, 1025, u64::MAX / 2] {
            histogram.record(value);
        }
        let counts: Vec<u64> = histogram.counts.iter().map(|count| count.load(Relaxed)).collect();
        assert_eq!(counts, [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(histogram.count(), 7);
    }
}
