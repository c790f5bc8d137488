//! A consumer: a `Subscribe` stream or a waiting lease call, as its fetcher sees it.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    Delivery,
    wait_list::{Ticket, WaitList},
};
use crate::{
    domain::Owner,
    store::{Demand, RequestId},
};

/// Where a consumer wants its jobs. Returns them if it cannot take them. Runs in the task of the fetcher: must not
/// block.
pub type Sink = Box<dyn Fn(Delivery) -> Result<(), Delivery> + Send + Sync>;

/// Why a consumer gets nothing, or that it can get jobs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Every queue of the selector is paused.
    Paused,
    /// At least one queue is not paused any more.
    Resumed,
    /// The next job is larger than the rest of the window.
    NoRoom,
}

/// Receives the notices of a consumer.
pub(super) type Notify = Box<dyn Fn(Advice) + Send + Sync>;

/// Who a consumer is. The script writes it into the leases.
#[derive(Debug)]
pub struct Identity {
    /// The name of the worker.
    pub holder: String,
    /// The stream that renews the leases.
    pub owner: Owner,
    /// Makes the fetch repeatable.
    pub request: Option<RequestId>,
}

/// A consumer of jobs.
pub struct Consumer {
    identity: Identity,
    window: Mutex<Window>,
    ticket: Ticket,
    /// The next job is larger than the rest of the window: no demand until the worker has settled a job.
    blocked_by_size: AtomicBool,
    /// The worker got the notice `NoRoom`, and no fetch since then found all jobs small enough.
    no_room_sent: AtomicBool,
    closed: AtomicBool,
    /// The wait list of its fetcher.
    wait_list: Mutex<Weak<WaitList<Self>>>,
    sink: Sink,
    notify: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    max_jobs: u32,
    max_bytes: u64,
    /// Held or reserved.
    jobs: u32,
    bytes: u64,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// A consumer with a window.
    pub fn new(identity: Identity, max_jobs: u32, max_bytes: u64, sink: Sink, notify: Notify) -> Arc<Self> {
        Arc::new(Self {
            identity,
            window: Mutex::new(Window {
                max_jobs,
                max_bytes,
                jobs: 0,
                bytes: 0,
            }),
            ticket: Ticket::new(),
            blocked_by_size: AtomicBool::new(false),
            no_room_sent: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            wait_list: Mutex::default(),
            sink,
            notify,
        })
    }

    /// Ends all demand.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        if let Some(wait_list) = self.wait_list.lock().upgrade() {
            wait_list.leave(self, &self.ticket);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Replaces the window.
    pub fn set_window(self: &Arc<Self>, max_jobs: u32, max_bytes: u64) {
        let mut window = self.window();
        window.max_jobs = max_jobs;
        window.max_bytes = max_bytes;
        drop(window);
        self.blocked_by_size.store(false, SeqCst);
        self.queue_up();
    }

    /// Takes jobs into the window that the worker holds from an earlier stream.
    pub fn hold(&self, jobs: u32, bytes: u64) {
        let mut window = self.window();
        window.jobs += jobs;
        window.bytes += bytes;
    }

    /// Whether this is a lease call, which ends with its first delivery.
    pub(super) fn is_lease_call(&self) -> bool {
        self.identity.owner == Owner::NONE
    }

    /// The id that makes the fetch repeatable.
    pub(super) fn request_id(&self) -> Option<&str> {
        let request = self.identity.request.as_ref()?;
        Some(&request.id)
    }

    /// Frees a part of the window: the worker does not hold these jobs any more.
    pub fn free(self: &Arc<Self>, jobs: u32, bytes: u64) {
        if jobs > 0 {
            let mut window = self.window();
            window.jobs = window.jobs.saturating_sub(jobs);
            window.bytes = window.bytes.saturating_sub(bytes);
            drop(window);
            self.blocked_by_size.store(false, SeqCst);
            self.queue_up();
        }
    }

    /// The next job is larger than the `max_bytes` that the window had at the fetch. The worker gets one notice.
    pub(super) fn block_by_size(&self, max_bytes: u64) {
        let window = self.window();
        if window.max_bytes.saturating_sub(window.bytes) > max_bytes {
            // A part of the window became free in the meantime.
            return;
        }
        self.blocked_by_size.store(true, SeqCst);
        drop(window);
        if !self.no_room_sent.swap(true, SeqCst) {
            (self.notify)(Advice::NoRoom);
        }
    }

    /// A fetch found no job that was too large.
    pub(super) fn clear_no_room(&self) {
        self.no_room_sent.store(false, SeqCst);
    }

    /// Ends a block by size: the large job may be gone, or other queues may have smaller ones.
    pub(super) fn unblock(self: &Arc<Self>) {
        if self.blocked_by_size.swap(false, SeqCst) {
            self.queue_up();
        }
    }

    /// Reserves up to `max_jobs` of the window for a fetch.
    pub(super) fn reserve(&self, max_jobs: u32) -> Option<Demand> {
        let mut window = self.window();
        let jobs = window.max_jobs.saturating_sub(window.jobs).min(max_jobs);
        let room = window.max_bytes.saturating_sub(window.bytes);
        if jobs == 0 || (room == 0 && window.jobs > 0) || self.is_served_request(&window) || self.is_closed() {
            return None;
        }
        let held = window.jobs;
        window.jobs += jobs;
        Some(Demand {
            holder: self.identity.holder.clone(),
            owner: self.identity.owner,
            jobs,
            max_bytes: room,
            allow_oversized: held == 0,
            held,
            request: self.identity.request.clone(),
        })
    }

    /// Ends a reservation of `reserved` jobs and delivers what the fetch brought. Returns the jobs if the consumer is
    /// gone.
    pub(super) fn deliver(self: &Arc<Self>, reserved: u32, delivery: Option<Delivery>) -> Result<(), Delivery> {
        let (jobs, bytes) = delivery
            .as_ref()
            .map_or((0, 0), |delivery| (delivery.jobs.len() as u32, delivery.bytes()));
        {
            let mut window = self.window();
            window.jobs = window.jobs.saturating_sub(reserved.saturating_sub(jobs));
            window.bytes += bytes;
        }
        if jobs > 0 {
            self.ticket.served();
        }
        let result = match delivery {
            Some(delivery) if self.is_closed() => Err(delivery),
            Some(delivery) => (self.sink)(delivery),
            None => Ok(()),
        };
        self.queue_up();
        result
    }

    /// Joins the consumers of a fetcher.
    pub(super) fn join(self: &Arc<Self>, wait_list: &Arc<WaitList<Self>>) {
        wait_list.join(self.clone());
        *self.wait_list.lock() = Arc::downgrade(wait_list);
        self.queue_up();
    }

    pub(super) fn notice(&self, notice: Advice) {
        (self.notify)(notice);
    }

    /// Waits for the next fetch if there is demand.
    pub(super) fn queue_up(self: &Arc<Self>) {
        if let Some(fill) = self.demand()
            && let Some(wait_list) = self.wait_list.lock().upgrade()
        {
            wait_list.put(self, &self.ticket, fill);
        }
    }

    /// How full the window is, in millionths, if there is demand.
    fn demand(&self) -> Option<u32> {
        let window = self.window();
        let room = window.bytes < window.max_bytes && !self.blocked_by_size.load(SeqCst);
        let wants = window.jobs < window.max_jobs
            && (room || window.jobs == 0)
            && !self.is_served_request(&window)
            && !self.is_closed();
        wants.then(|| (u64::from(window.jobs) * 1_000_000 / u64::from(window.max_jobs)) as u32)
    }

    /// The leases of a request id come from one fetch: a second fetch would return those of the first again.
    fn is_served_request(&self, window: &Window) -> bool {
        self.identity.request.is_some() && window.jobs > 0
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(max_jobs: u32, max_bytes: u64) -> Arc<Consumer> {
        Consumer::new(
            Identity {
                holder: "tester".to_owned(),
                owner: Owner::NONE,
                request: None,
            },
            max_jobs,
            max_bytes,
            Box::new(|_| Ok(())),
            Box::new(|_| ()),
        )
    }

    #[test]
    fn reservations_never_exceed_the_window() {
        let consumer = consumer(10, 1_000);
        assert_eq!(consumer.reserve(6).map(|demand| demand.jobs), Some(6));
        assert_eq!(consumer.reserve(6).map(|demand| demand.jobs), Some(4));
        assert!(consumer.reserve(6).is_none());
        // The first fetch brought nothing: its reservation ends.
        assert!(consumer.deliver(6, None).is_ok());
        assert_eq!(consumer.reserve(100).map(|demand| demand.jobs), Some(6));
    }

    #[test]
    fn a_job_larger_than_the_window_is_only_for_a_consumer_that_holds_none() {
        let consumer = consumer(2, 100);
        let first = consumer.reserve(1).unwrap();
        assert_eq!((first.max_bytes, first.allow_oversized), (100, true));
        let second = consumer.reserve(1).unwrap();
        assert_eq!((second.max_bytes, second.allow_oversized), (100, false));
    }

    #[test]
    fn a_consumer_that_is_blocked_by_size_has_no_demand_until_a_part_of_its_window_is_free() {
        let consumer = consumer(3, 100);
        consumer.hold(2, 0);
        assert_eq!(consumer.demand(), Some(666_666));
        consumer.block_by_size(u64::MAX);
        assert_eq!(consumer.demand(), None);
        consumer.free(1, 0);
        assert_eq!(consumer.demand(), Some(333_333));
        consumer.close();
        assert!(consumer.demand().is_none() && consumer.reserve(1).is_none());
    }
}
