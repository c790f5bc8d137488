//! Who got how much: what a history says about the fairness of a broker to equal workers.
use crate::history::{Event, What};

/// How many jobs each of the workers got, by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares(pub Vec<usize>);

impl Shares {
    /// The largest share less the smallest: 0 is an equal share for everyone, all jobs are the share of one who got everything.
    pub fn spread(&self) -> usize {
        let (least, most) = (self.0.iter().min(), self.0.iter().max());
        most.zip(least).map_or(0, |(most, least)| most - least)
    }

    /// How many jobs were shared.
    pub fn jobs(&self) -> usize {
        self.0.iter().sum()
    }
}

/// The shares of the workers 0 to `workers` - 1. The same lease seen twice is one job; a worker that got nothing has the share 0.
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
