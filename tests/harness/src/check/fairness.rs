//! How a broker shared jobs between equal workers, by the history of a load.
use crate::history::{Event, What};

/// The number of jobs of each worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares(pub Vec<usize>);

impl Shares {
    /// The largest share minus the smallest: 0 if all shares are equal, all jobs if one worker got everything.
    pub fn spread(&self) -> usize {
        let (least, most) = (self.0.iter().min(), self.0.iter().max());
        most.zip(least).map_or(0, |(most, least)| most - least)
    }

    /// All jobs.
    pub fn jobs(&self) -> usize {
        self.0.iter().sum()
    }
}

/// The shares of the workers 0 to `workers` - 1. The same lease seen twice is one job.
pub fn shares(events: &[Event], workers: u32) -> Shares {
    let mut counts = vec![0; workers as usize];
    let mut seen = std::collections::HashSet::new();
    for event in events {
        if let What::Deliver(delivery) = &event.what
            && let Some(count) = counts.get_mut(delivery.worker as usize)
            && seen.insert(&delivery.token)
        {
            *count += 1;
        }
    }
    Shares(counts)
}
