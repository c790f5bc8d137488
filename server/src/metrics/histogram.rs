//! A histogram whose cost on the hot path is two relaxed atomic additions: prometheus-client's own takes a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Upper bounds of the buckets of a histogram, and how many recorded units make one exposed unit.
#[derive(Debug)]
pub(super) struct Buckets {
    bounds: &'static [u64],
    per_unit: f64,
}

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const PER_SECOND: f64 = 1e9;

/// Work of handlers and time in the queue: a millisecond to an hour.
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

/// One gRPC call: 100 microseconds to half a minute.
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

/// One script call, round trip included: 50 microseconds to the response deadline.
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

/// Calls that travelled together in one script call.
pub(super) const GROUP_ITEMS: Buckets = Buckets {
    bounds: &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
    per_unit: 1.0,
};

/// Counts of values by size. Recording never locks and never allocates; a reader may see a value's bucket before its sum.
#[derive(Debug)]
pub struct Histogram {
    buckets: &'static Buckets,
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// An empty histogram with these bucket bounds and one more bucket above the last of them.
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

    /// How many values were recorded.
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
    fn a_value_on_a_bound_belongs_to_that_bucket_and_one_above_the_last_is_kept() {
        let histogram = Histogram::new(&GROUP_ITEMS);
        for value in [1, 2, 3, 4, 1024, 1025, u64::MAX / 2] {
            histogram.record(value);
        }
        let counts: Vec<u64> = histogram.counts.iter().map(|count| count.load(Relaxed)).collect();
        assert_eq!(counts, [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(histogram.count(), 7);
    }
}
