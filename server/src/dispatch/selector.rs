//! One selector: a task that looks at Redis whenever somebody wants jobs and a queue may have some, and at no other time.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{Ask, Delivery, Dispatcher, Taker, news::News};
use crate::{
    domain::{Error, limits::MAX_GROUP_ITEMS},
    queue::Queue,
    store::{Claim, LeaseAsk, Look, MAX_CLAIMS},
    wake::When,
};

/// Even without a signal, a look this often (give or take a fifth): signals may get lost.
const SAFETY_POLL: Duration = Duration::from_secs(10);
/// A selector that nobody uses stays for this long: callers that poll come back.
const UNUSED_FOR: Duration = Duration::from_secs(30);
/// After an error of Redis.
const ERROR_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A selector.
#[derive(Debug)]
pub(super) struct SelectorTask {
    ask: Ask,
    queues: Vec<Watched>,
    line: Mutex<VecDeque<Arc<Taker>>>,
    attached: Mutex<Vec<Arc<Taker>>>,
    nudge: Notify,
}

/// A queue and what is known of it.
#[derive(Debug)]
struct Watched {
    queue: Arc<Queue>,
    news: News,
    paused: AtomicBool,
    /// When a scheduled job falls due.
    due: Mutex<Option<Instant>>,
}

impl SelectorTask {
    pub(super) fn start(dispatcher: Arc<Dispatcher>, ask: Ask, queues: Vec<Arc<Queue>>) -> Arc<Self> {
        let queues = queues
            .into_iter()
            .map(|queue| Watched {
                queue,
                news: News::new(),
                paused: AtomicBool::new(false),
                due: Mutex::default(),
            })
            .collect();
        let selector = Arc::new(Self {
            ask,
            queues,
            line: Mutex::default(),
            attached: Mutex::default(),
            nudge: Notify::new(),
        });
        tokio::spawn(selector.clone().run(dispatcher));
        selector
    }

    pub(super) fn ask(&self) -> &Ask {
        &self.ask
    }

    pub(super) fn attach(self: &Arc<Self>, taker: &Arc<Taker>) {
        self.attached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(taker.clone());
        taker.bind(Arc::downgrade(self));
    }

    pub(super) fn detach(&self, taker: &Taker) {
        self.attached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| !std::ptr::eq(other.as_ref(), taker));
        self.line
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| !std::ptr::eq(other.as_ref(), taker));
    }

    pub(super) fn is_unused(&self) -> bool {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn line_up(&self, taker: Arc<Taker>) {
        self.line
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(taker);
        self.nudge.notify_one();
    }

    async fn run(self: Arc<Self>, dispatcher: Arc<Dispatcher>) {
        let sleepers = self.watch();
        let mut pause = ERROR_PAUSE.0;
        let mut unused_since = Instant::now();
        let mut next_poll = Self::poll_time();
        loop {
            let now = Instant::now();
            if now >= next_poll {
                next_poll = Self::poll_time();
                self.queues.iter().for_each(|watched| watched.news.heard(None));
            }
            self.mark_due(now);
            let order = self.order();
            let claims = if order.is_empty() { Vec::new() } else { self.claims() };
            if claims.is_empty() {
                if !self.is_unused() {
                    unused_since = now;
                } else if now >= unused_since + UNUSED_FOR && dispatcher.retire(&self) {
                    break;
                }
                let wanted = !self.line.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                let mut until = unused_since.max(now) + UNUSED_FOR;
                if wanted {
                    until = until.min(next_poll).min(self.next_due().unwrap_or(until));
                }
                tokio::select! {
                    () = self.nudge.notified() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                continue;
            }
            match self.look(&order, claims, &dispatcher).await {
                Ok(()) => pause = ERROR_PAUSE.0,
                Err(error) => {
                    tracing::debug!(%error, "look failed");
                    tokio::time::sleep(pause.mul_f64(1.0 + fastrand::f64() * 0.5)).await;
                    pause = (pause * 2).min(ERROR_PAUSE.1);
                }
            }
        }
        for (watched, id) in self.queues.iter().zip(sleepers) {
            watched.queue.wakers().forget_lanes(id);
        }
    }

    /// Registers with the queues, before the first look; once it is sure that signals come in, everything is looked at again.
    fn watch(self: &Arc<Self>) -> Vec<u64> {
        let mut ids = Vec::with_capacity(self.queues.len());
        for (index, watched) in self.queues.iter().enumerate() {
            let selector = Arc::downgrade(self);
            let (id, listening) = watched.queue.wakers().on_lanes(
                self.ask.filter.clone(),
                Box::new(move |when| {
                    if let Some(selector) = selector.upgrade() {
                        selector.wake(index, when);
                    }
                }),
            );
            ids.push(id);
            let selector = self.clone();
            tokio::spawn(async move {
                listening.sure().await;
                selector.wake(index, None);
            });
        }
        ids
    }

    fn wake(&self, index: usize, when: When) {
        let watched = &self.queues[index];
        watched.news.heard(when);
        if watched.news.is_any() {
            self.nudge.notify_one();
        }
    }

    fn poll_time() -> Instant {
        Instant::now() + SAFETY_POLL.mul_f64(0.8 + fastrand::f64() * 0.4)
    }

    fn mark_due(&self, now: Instant) {
        for watched in &self.queues {
            let mut due = watched.due.lock().unwrap_or_else(PoisonError::into_inner);
            if due.is_some_and(|due| due <= now) {
                *due = None;
                watched.news.heard(None);
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.queues
            .iter()
            .filter_map(|watched| *watched.due.lock().unwrap_or_else(PoisonError::into_inner))
            .min()
    }

    /// The queues that may have jobs, in the order in which to look.
    fn order(&self) -> Vec<usize> {
        self.ask
            .order((0..self.queues.len()).filter(|&index| self.queues[index].news.is_any()))
    }

    /// Who gets how much of the next look: those who have stood in line longest.
    fn claims(&self) -> Vec<(Arc<Taker>, Claim)> {
        let mut claims: Vec<(Arc<Taker>, Claim)> = Vec::new();
        let mut left = MAX_GROUP_ITEMS as u32;
        while left > 0 && claims.len() < MAX_CLAIMS {
            let Some(taker) = self.line.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                break;
            };
            taker.left_line();
            if let Some(claim) = taker.claim(left) {
                left -= claim.jobs;
                claims.push((taker, claim));
            }
        }
        claims
    }

    async fn look(
        &self,
        order: &[usize],
        mut claims: Vec<(Arc<Taker>, Claim)>,
        dispatcher: &Dispatcher,
    ) -> Result<(), Error> {
        let mut failure = None;
        let mut stopped = false;
        for &index in order {
            let wanted: u32 = claims.iter().map(|(_, claim)| claim.jobs).sum();
            if wanted == 0 {
                break;
            }
            let watched = &self.queues[index];
            let begun = watched.news.begin();
            let asked: Vec<Claim> = claims.iter().map(|(_, claim)| claim.clone()).collect();
            let ask = LeaseAsk {
                priorities: &self.ask.filter.priorities,
                job_types: &self.ask.filter.job_types,
                lease_ms: self.ask.lease_ms,
                claims: &asked,
                requests: &[],
            };
            let look = match watched.queue.store().lease(watched.queue.keys(), &ask).await {
                Ok(look) => look,
                Err(error) => {
                    watched.news.heard(None);
                    failure = Some(error);
                    continue;
                }
            };
            watched.news.looked(&begun, look.now_us);
            *watched.due.lock().unwrap_or_else(PoisonError::into_inner) = look
                .next_due_ms
                .map(|due| Instant::now() + Duration::from_millis(due.saturating_sub(look.now_us / 1_000)));
            self.note_pause(watched, look.paused);
            let found = look.jobs.len() as u32;
            if found == wanted || look.more {
                watched.news.heard(None);
            }
            stopped |= look.more;
            if found > 0 {
                dispatcher.metrics.group_size.get("lease").record(u64::from(found));
                Self::deal(&watched.queue, look, &mut claims);
            }
        }
        for (taker, claim) in claims {
            // There is a job, but not for the room of one who holds others: looking again at once would only find it again.
            if stopped && claim.room_bytes < 0 && claim.jobs > 0 {
                taker.is_cramped();
            }
            // Nothing is delivered, so nothing comes back.
            let _ = taker.deliver(claim.jobs, None);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Hands every job to the taker of its claim. Jobs of a taker that is gone go back at once.
    fn deal(queue: &Arc<Queue>, mut look: Look, claims: &mut [(Arc<Taker>, Claim)]) {
        queue.note_leased(&look);
        let hands = look.deal(claims.len());
        for ((taker, claim), jobs) in claims.iter_mut().zip(hands) {
            if jobs.is_empty() {
                continue;
            }
            let taken = jobs.len() as u32;
            let delivery = Delivery {
                queue: queue.clone(),
                nonce: look.nonce,
                leased_us: look.now_us,
                jobs,
            };
            let bytes = delivery.bytes();
            if let Err(delivery) = taker.deliver(taken, Some(delivery)) {
                delivery.give_back();
                taker.let_go(taken, bytes);
            }
            claim.jobs -= taken;
            claim.room_bytes = -(claim.room_bytes.abs() - (bytes as i64)).max(0);
        }
    }

    fn note_pause(&self, watched: &Watched, paused: bool) {
        let all_paused = || self.queues.iter().all(|watched| watched.paused.load(SeqCst));
        let before = all_paused();
        watched.paused.store(paused, SeqCst);
        let after = all_paused();
        if before != after {
            for taker in self.attached.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                taker.notice_pause(after);
            }
        }
    }
}
