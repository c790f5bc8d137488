//! Maintenance: what a broker does without a call. Each duty has a file with its interval; what changes a queue is one
//! bounded script call.
//!
//! There is no leader: every broker runs every duty, and twice does no harm. The due index hands out each due queue to
//! one broker. Decision 0012 says why maintenance goes by due times.
//!
//! | duty | what it does | interval |
//! |---|---|---|
//! | `due` | promotes, expires, ends leases, prunes and repairs in the queues in which something is due | when due |
//! | `registration` | registers this broker's queues again in the due index | a minute, and after a reconnect |
//! | `memory` | drops queues that nothing uses from this broker's memory | 2 s |
//! | `operations` | continues operations, one step at a time | in turns with the other brokers; a check each second |
//! | `reclaim` | releases leases of fetches whose reply was lost | 1 s |
//! | `presence` | reports this broker and its streams for ListWorkers | 3 s |
//! | `policies` | reads the policies of queues that other brokers changed | 5 s |
//! | `depths` | counts the jobs of each queue for the metrics | 5 s |
//! | `scan` | finds queues and lanes that no index names | an hour, and after a reconnect |

mod depths;
mod due;
mod memory;
mod operations;
mod policies;
mod presence;
mod reclaim;
mod registration;
mod scan;

use std::{sync::Arc, time::Duration};

use crate::broker::Broker;

/// Runs all duties until it is dropped.
pub async fn run(broker: Arc<Broker>) {
    tokio::join!(
        due::run(&broker),
        registration::run(&broker),
        memory::run(&broker),
        operations::run(&broker),
        reclaim::run(&broker),
        presence::run(&broker),
        policies::run(&broker),
        depths::run(&broker),
        scan::run(&broker),
    );
}

/// An interval, give or take a fifth, so that brokers do not act at the same moment.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + fastrand::f64() * 0.4)
}
