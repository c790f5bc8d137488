//! What ListWorkers and the metrics show of the open streams.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bananas_proto::{server as pb, time::timestamp};
use prost::Message as _;

use super::{Sessions, WorkerStream};
use crate::{metrics::Metrics, store::FleetEntry};

impl WorkerStream {
    /// Whether ListWorkers would show a change since the last call of this function.
    fn has_changed(&self) -> bool {
        let held = self.held_count();
        self.changed.swap(false, Relaxed) | (self.reported_jobs.swap(held, Relaxed) != held)
    }

    /// As ListWorkers shows it.
    fn report(&self, broker_id: &str) -> pb::Worker {
        let state = self.state();
        pb::Worker {
            info: Some(self.worker.clone()),
            session_id: self.id.clone(),
            broker_id: broker_id.to_owned(),
            selector: Some(self.selector.clone()),
            flow: Some(pb::Flow {
                max_jobs: state.window.max_jobs,
                max_bytes: state.window.max_bytes,
            }),
            held_jobs: state.held.len() as u32,
            open_time: Some(timestamp(self.opened_ms)),
            draining: state.draining,
        }
    }
}

impl Sessions {
    /// The changes since the last report.
    pub fn changes(&self, broker_id: &str) -> Vec<FleetEntry> {
        let all = self.report_all.swap(false, Relaxed);
        let (streams, gone) = {
            let mut open = self.open.lock();
            let streams: Vec<Arc<WorkerStream>> = open.by_id.values().cloned().collect();
            (streams, std::mem::take(&mut open.gone))
        };
        let mut changes: Vec<FleetEntry> = gone
            .into_iter()
            .map(|session_id| FleetEntry {
                session_id,
                worker: None,
            })
            .collect();
        for session in streams {
            if session.has_changed() || all {
                let worker = Some(session.report(broker_id).encode_to_vec().into());
                changes.push(FleetEntry {
                    session_id: session.id().to_owned(),
                    worker,
                });
            }
        }
        changes
    }

    /// The last report did not arrive: the next one names every stream.
    pub fn report_all_again(&self) {
        self.report_all.store(true, Relaxed);
    }

    /// Sets the gauges of workers.
    pub fn measure(&self, metrics: &Metrics) {
        let streams = self.open.lock().streams.clone();
        let (mut active, mut held, mut window) = (0, 0, 0);
        for session in &streams {
            let jobs = session.held_count() as i64;
            active += i64::from(jobs > 0);
            held += jobs;
            window += i64::from(session.state().window.max_jobs);
        }
        metrics.worker_total.set(streams.len() as i64);
        metrics.worker_active.set(active);
        metrics.worker_held_jobs.set(held);
        metrics.worker_window_jobs.set(window);
    }
}
