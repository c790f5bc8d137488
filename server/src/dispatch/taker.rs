//! One who takes jobs: a Subscribe stream or a Lease call, as its selector sees it.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use super::{line::Place, selector::SelectorTask};
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
        self.jobs.iter().map(Leased::bytes).sum()
    }

    /// Puts undelivered jobs back at the head of their queue; nothing counts for them. If that fails, their leases run out.
    pub fn give_back(&self) {
        let leases = self.jobs.iter().map(|job| (job.job_id, self.nonce, false)).collect();
        self.queue.give_back_soon(leases);
    }
}

/// Where a taker wants its jobs. Called on the selector's task: must not block.
pub type Sink = Box<dyn Fn(Delivery) -> Result<(), Delivery> + Send + Sync>;

/// Why a taker gets nothing, or that it may again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Every queue that was asked for is paused.
    Paused,
    /// Not every queue is paused any more.
    Resumed,
    /// The next job is larger than the room that is left in the window.
    NoRoom,
}

/// Told what changes for a taker.
pub(super) type Notify = Box<dyn Fn(Notice) + Send + Sync>;

/// What a taker asks for beside what its selector says.
#[derive(Debug)]
pub struct Terms {
    /// Who it is; kept with the leases.
    pub holder: String,
    /// The stream that keeps the leases alive.
    pub keeper: Keeper,
    /// Makes its claim repeatable: an id, and a fingerprint of everything that was asked.
    pub request: Option<(String, String)>,
}

/// One who takes jobs.
pub struct Taker {
    terms: Terms,
    window: Mutex<Window>,
    /// Where it stands in the line of its selector; only for that line.
    pub(super) place: Mutex<Place>,
    /// The next job is larger than the room that is left: nothing to do until something is let go.
    cramped: AtomicBool,
    /// It was told so, and has not been served without that since.
    told_no_room: AtomicBool,
    closed: AtomicBool,
    selector: Mutex<Weak<SelectorTask>>,
    sink: Sink,
    notify: Notify,
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
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

impl Taker {
    /// A taker with a window.
    pub fn new(terms: Terms, max_jobs: u32, max_bytes: u64, sink: Sink, notify: Notify) -> Arc<Self> {
        Arc::new(Self {
            terms,
            window: Mutex::new(Window {
                max_jobs,
                max_bytes,
                jobs: 0,
                bytes: 0,
            }),
            place: Mutex::new(Place::outside()),
            cramped: AtomicBool::new(false),
            told_no_room: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            selector: Mutex::default(),
            sink,
            notify,
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
    pub fn hold(&self, jobs: u32, bytes: u64) {
        let mut window = self.lock();
        window.jobs += jobs;
        window.bytes += bytes;
    }

    /// A Lease call, which is over with what it gets.
    pub(super) fn is_a_call(&self) -> bool {
        self.terms.keeper == Keeper::NONE
    }

    /// What makes its claim repeatable.
    pub(super) fn request(&self) -> Option<(&str, &str)> {
        let (id, fingerprint) = self.terms.request.as_ref()?;
        Some((id, fingerprint))
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

    /// The next job did not fit into the room that was left at the look. The worker hears it once.
    pub(super) fn is_cramped(&self, room_bytes: u64) {
        let window = self.lock();
        if window.max_bytes.saturating_sub(window.bytes) > room_bytes {
            // There is more room by now.
            return;
        }
        self.cramped.store(true, SeqCst);
        drop(window);
        if !self.told_no_room.swap(true, SeqCst) {
            (self.notify)(Notice::NoRoom);
        }
    }

    /// A look found nothing that was too large.
    pub(super) fn is_not_cramped(&self) {
        self.told_no_room.store(false, SeqCst);
    }

    /// What was too large may be gone, or be in another queue.
    pub(super) fn may_have_room(self: &Arc<Self>) {
        if self.cramped.swap(false, SeqCst) {
            self.stand_in_line();
        }
    }

    /// Reserves room for at most `most` jobs.
    pub(super) fn claim(&self, most: u32) -> Option<Claim> {
        let mut window = self.lock();
        let jobs = window.max_jobs.saturating_sub(window.jobs).min(most);
        let room = window.max_bytes.saturating_sub(window.bytes);
        if jobs == 0 || (room == 0 && window.jobs > 0) || self.is_answered(&window) || self.is_closed() {
            return None;
        }
        let held = window.jobs;
        window.jobs += jobs;
        Some(Claim {
            holder: self.terms.holder.clone(),
            keeper: self.terms.keeper,
            jobs,
            room_bytes: room,
            alone: held == 0,
            held,
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
        if jobs > 0 {
            self.place.lock().unwrap_or_else(PoisonError::into_inner).served();
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

    pub(super) fn notice(&self, notice: Notice) {
        (self.notify)(notice);
    }

    /// The leases of a request are those of one look: a second one would find those of the first again.
    fn is_answered(&self, window: &Window) -> bool {
        self.terms.request.is_some() && window.jobs > 0
    }

    /// How full the window is, in millionths, if there is room for another job.
    fn wants(&self) -> Option<u32> {
        let window = self.lock();
        let room = window.bytes < window.max_bytes && !self.cramped.load(SeqCst);
        let wants = window.jobs < window.max_jobs
            && (room || window.jobs == 0)
            && !self.is_answered(&window)
            && !self.is_closed();
        wants.then(|| (u64::from(window.jobs) * 1_000_000 / u64::from(window.max_jobs)) as u32)
    }

    pub(super) fn stand_in_line(self: &Arc<Self>) {
        if let Some(fill) = self.wants()
            && let Some(selector) = self.selector.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
        {
            selector.line_up(self, fill);
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
            Terms {
                holder: "tester".to_owned(),
                keeper: Keeper::NONE,
                request: None,
            },
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
        assert_eq!(
            taker.claim(1).map(|claim| (claim.room_bytes, claim.alone)),
            Some((100, true))
        );
        assert_eq!(
            taker.claim(1).map(|claim| (claim.room_bytes, claim.alone)),
            Some((100, false))
        );
    }

    #[test]
    fn one_whose_room_is_too_small_wants_nothing_until_something_is_let_go() {
        let taker = taker(3, 100);
        taker.hold(2, 0);
        assert_eq!(taker.wants(), Some(666_666));
        taker.is_cramped(u64::MAX);
        assert_eq!(taker.wants(), None);
        taker.let_go(1, 0);
        assert_eq!(taker.wants(), Some(333_333));
        taker.close();
        assert!(taker.wants().is_none() && taker.claim(1).is_none());
    }
}
