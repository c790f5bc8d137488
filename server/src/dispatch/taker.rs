//! One who takes jobs: a Subscribe stream or a Lease call, as its selector sees it.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use super::selector::SelectorTask;
use crate::{
    domain::{Keeper, Nonce},
    queue::Queue,
    store::{Claim, Leased, Look},
};

/// Jobs on their way to a taker, all from one look at one queue.
#[derive(Debug)]
pub struct Delivery {
    /// Where they come from.
    pub queue: Arc<Queue>,
    /// The secret of their leases.
    pub nonce: Nonce,
    /// When they were leased, in microseconds, by the clock of Redis.
    pub leased_us: u64,
    /// At least one.
    pub jobs: Vec<Leased>,
}

impl Delivery {
    /// Everything that a look gave.
    pub fn new(queue: Arc<Queue>, look: Look) -> Self {
        Self {
            queue,
            nonce: look.nonce,
            leased_us: look.now_us,
            jobs: look.jobs,
        }
    }

    /// What the jobs take of a window.
    pub fn bytes(&self) -> u64 {
        self.jobs.iter().map(|job| job.record.len() as u64).sum()
    }

    /// Puts undelivered jobs back at the head of their queue; nothing counts for them. If that fails, their leases run out.
    pub fn give_back(&self) {
        let leases = self.jobs.iter().map(|job| (job.job_id, self.nonce, None));
        drop(self.queue.release(leases));
    }
}

/// Where a taker wants its jobs. Called on the selector's task: must not block.
pub type Sink = Box<dyn Fn(Delivery) -> Result<(), Delivery> + Send + Sync>;

/// Told `true` when every queue that was asked for is paused, `false` when that is over.
pub(super) type PauseNotice = Box<dyn Fn(bool) + Send + Sync>;

/// One who takes jobs.
pub struct Taker {
    holder: String,
    keeper: Keeper,
    window: Mutex<Window>,
    in_line: AtomicBool,
    /// The next job is larger than the room that is left: nothing to do until something is let go.
    cramped: AtomicBool,
    closed: AtomicBool,
    selector: Mutex<Weak<SelectorTask>>,
    sink: Sink,
    pause_notice: PauseNotice,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    max_jobs: u32,
    max_bytes: u64,
    /// Held or on their way.
    jobs: u32,
    bytes: u64,
}

impl std::fmt::Debug for Taker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taker")
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

impl Taker {
    /// A taker with a window.
    pub fn new(
        holder: String,
        keeper: Keeper,
        max_jobs: u32,
        max_bytes: u64,
        sink: Sink,
        pause_notice: PauseNotice,
    ) -> Arc<Self> {
        Arc::new(Self {
            holder,
            keeper,
            window: Mutex::new(Window {
                max_jobs,
                max_bytes,
                jobs: 0,
                bytes: 0,
            }),
            in_line: AtomicBool::new(false),
            cramped: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            selector: Mutex::default(),
            sink,
            pause_notice,
        })
    }

    /// Wants nothing any more.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        if let Some(selector) = self.selector.lock().unwrap_or_else(PoisonError::into_inner).upgrade() {
            selector.detach(self);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Another window.
    pub fn set_window(self: &Arc<Self>, max_jobs: u32, max_bytes: u64) {
        let mut window = self.lock();
        window.max_jobs = max_jobs;
        window.max_bytes = max_bytes;
        drop(window);
        self.cramped.store(false, SeqCst);
        self.stand_in_line();
    }

    /// Jobs that the taker holds already, from before.
    pub fn hold(&self, jobs: u32) {
        self.lock().jobs += jobs;
    }

    /// Jobs that the taker does not hold any more.
    pub fn let_go(self: &Arc<Self>, jobs: u32, bytes: u64) {
        if jobs > 0 {
            let mut window = self.lock();
            window.jobs = window.jobs.saturating_sub(jobs);
            window.bytes = window.bytes.saturating_sub(bytes);
            drop(window);
            self.cramped.store(false, SeqCst);
            self.stand_in_line();
        }
    }

    /// The next job did not fit into the room that is left.
    pub(super) fn is_cramped(&self) {
        self.cramped.store(true, SeqCst);
    }

    /// Reserves room for at most `most` jobs.
    pub(super) fn claim(&self, most: u32) -> Option<Claim> {
        let mut window = self.lock();
        let jobs = window.max_jobs.saturating_sub(window.jobs).min(most);
        let room = window.max_bytes.saturating_sub(window.bytes);
        if jobs == 0 || (room == 0 && window.jobs > 0) || self.is_closed() {
            return None;
        }
        let alone = window.jobs == 0;
        window.jobs += jobs;
        let room_bytes = room.min(i64::MAX as u64) as i64;
        Some(Claim {
            holder: self.holder.clone(),
            keeper: self.keeper,
            jobs,
            room_bytes: if alone { room_bytes } else { -room_bytes },
        })
    }

    /// Hands jobs over for a claim of `claimed`; what was claimed too much is free again. Gives the jobs back if the taker is gone.
    pub(super) fn deliver(self: &Arc<Self>, claimed: u32, delivery: Option<Delivery>) -> Result<(), Delivery> {
        let (jobs, bytes) = delivery
            .as_ref()
            .map_or((0, 0), |delivery| (delivery.jobs.len() as u32, delivery.bytes()));
        {
            let mut window = self.lock();
            window.jobs = window.jobs.saturating_sub(claimed.saturating_sub(jobs));
            window.bytes += bytes;
        }
        let result = match delivery {
            Some(delivery) if self.is_closed() => Err(delivery),
            Some(delivery) => (self.sink)(delivery),
            None => Ok(()),
        };
        self.stand_in_line();
        result
    }

    pub(super) fn bind(self: &Arc<Self>, selector: Weak<SelectorTask>) {
        *self.selector.lock().unwrap_or_else(PoisonError::into_inner) = selector;
        self.stand_in_line();
    }

    pub(super) fn left_line(&self) {
        self.in_line.store(false, SeqCst);
    }

    pub(super) fn notice_pause(&self, paused: bool) {
        (self.pause_notice)(paused);
    }

    /// Whether there is room for another job.
    fn wants(&self) -> bool {
        let window = self.lock();
        let room = window.bytes < window.max_bytes && !self.cramped.load(SeqCst);
        window.jobs < window.max_jobs && (room || window.jobs == 0) && !self.is_closed()
    }

    fn stand_in_line(self: &Arc<Self>) {
        if self.wants()
            && let Some(selector) = self.selector.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
            && !self.in_line.swap(true, SeqCst)
        {
            selector.line_up(self.clone());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taker(max_jobs: u32, max_bytes: u64) -> Arc<Taker> {
        Taker::new(
            "tester".to_owned(),
            Keeper::NONE,
            max_jobs,
            max_bytes,
            Box::new(|_| Ok(())),
            Box::new(|_| ()),
        )
    }

    #[test]
    fn claims_never_exceed_the_window() {
        let taker = taker(10, 1_000);
        assert_eq!(taker.claim(6).map(|claim| claim.jobs), Some(6));
        assert_eq!(taker.claim(6).map(|claim| claim.jobs), Some(4));
        assert!(taker.claim(6).is_none());
        // Nothing came for the first claim: its room is free again.
        assert!(taker.deliver(6, None).is_ok());
        assert_eq!(taker.claim(100).map(|claim| claim.jobs), Some(6));
    }

    #[test]
    fn a_job_larger_than_the_window_is_only_for_one_who_holds_none() {
        let taker = taker(2, 100);
        assert_eq!(taker.claim(1).map(|claim| claim.room_bytes), Some(100));
        assert_eq!(taker.claim(1).map(|claim| claim.room_bytes), Some(-100));
    }

    #[test]
    fn one_whose_room_is_too_small_wants_nothing_until_something_is_let_go() {
        let taker = taker(3, 100);
        taker.hold(2);
        assert!(taker.wants());
        taker.is_cramped();
        assert!(!taker.wants());
        taker.let_go(1, 0);
        assert!(taker.wants());
        taker.close();
        assert!(!taker.wants() && taker.claim(1).is_none());
    }
}
