//! One selector: a task that looks at Redis whenever somebody wants jobs and a queue may have some, and at no other time.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    Ask, Delivery, Dispatcher, Notice, Taker,
    line::Line,
    news::{Begun, News},
};
use crate::{
    domain::{Error, limits::MAX_GROUP_ITEMS},
    queue::Queue,
    queue::waiters::When,
    store::{Claim, LeaseAsk, Look, MAX_CLAIMS, Occupied, Verdict},
};

/// Even without a signal, a look this often (give or take a fifth): signals may get lost.
const SAFETY_POLL: Duration = Duration::from_secs(10);
/// A selector that nobody uses stays for this long: callers that poll come back.
const UNUSED_FOR: Duration = Duration::from_secs(30);
/// After an error of Redis, for the queue that it was about.
const ERROR_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A selector.
#[derive(Debug)]
pub(super) struct SelectorTask {
    ask: Ask,
    queues: Vec<Watched>,
    line: Mutex<Line>,
    attached: Mutex<Vec<Arc<Taker>>>,
    /// The last look found a job that was too large for somebody.
    has_cramped: AtomicBool,
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
    /// After an error: not before this, and how long that was.
    pause: Mutex<Option<(Instant, Duration)>>,
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
                pause: Mutex::default(),
            })
            .collect();
        let selector = Arc::new(Self {
            ask,
            queues,
            line: Mutex::default(),
            attached: Mutex::default(),
            has_cramped: AtomicBool::new(false),
            nudge: Notify::new(),
        });
        tokio::spawn(selector.clone().run(dispatcher));
        selector
    }

    pub(super) fn ask(&self) -> &Ask {
        &self.ask
    }

    pub(super) fn attach(self: &Arc<Self>, taker: &Arc<Taker>) {
        lock(&self.attached).push(taker.clone());
        taker.bind(Arc::downgrade(self));
    }

    pub(super) fn detach(&self, taker: &Taker) {
        lock(&self.attached).retain(|other| !std::ptr::eq(other.as_ref(), taker));
        lock(&self.line).remove(taker);
    }

    pub(super) fn is_unused(&self) -> bool {
        lock(&self.attached).is_empty()
    }

    pub(super) fn line_up(&self, taker: &Arc<Taker>, fill: u32) {
        lock(&self.line).put(taker, fill);
        self.nudge.notify_one();
    }

    async fn run(self: Arc<Self>, dispatcher: Arc<Dispatcher>) {
        let sleepers = self.watch();
        let mut unused_since = Instant::now();
        let mut next_poll = Self::poll_time();
        loop {
            let now = Instant::now();
            if now >= next_poll {
                next_poll = Self::poll_time();
                self.queues.iter().for_each(|watched| watched.news.polled());
                self.forget_cramped();
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
                let mut until = unused_since.max(now) + UNUSED_FOR;
                if !lock(&self.line).is_empty() {
                    until = until.min(next_poll).min(self.next_moment().unwrap_or(until));
                }
                tokio::select! {
                    () = self.nudge.notified() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                continue;
            }
            self.look(&order, claims, &dispatcher).await;
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
                selector.queues[index].news.polled();
                selector.nudge.notify_one();
            });
        }
        ids
    }

    /// Those for whom the next job was too large try again.
    fn forget_cramped(&self) {
        let attached = lock(&self.attached).clone();
        attached.iter().for_each(Taker::may_have_room);
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
            let mut due = lock(&watched.due);
            if due.is_some_and(|due| due <= now) {
                *due = None;
                watched.news.heard(None);
            }
        }
    }

    /// When a job falls due, or a queue may be looked at again.
    fn next_moment(&self) -> Option<Instant> {
        let moments = |watched: &Watched| {
            [
                *lock(&watched.due),
                watched.put_off_until().filter(|_| watched.news.is_any()),
            ]
        };
        self.queues.iter().flat_map(moments).flatten().min()
    }

    /// The queues that may have jobs, in the order in which to look.
    fn order(&self) -> Vec<usize> {
        let now = Instant::now();
        let may_look =
            |watched: &Watched| watched.news.is_any() && watched.put_off_until().is_none_or(|until| until <= now);
        self.ask
            .order((0..self.queues.len()).filter(|&index| may_look(&self.queues[index])))
    }

    /// Who gets how much of the next look: those who hold least for their size, and of those who have waited longest.
    fn claims(&self) -> Vec<(Arc<Taker>, Claim)> {
        let mut claims: Vec<(Arc<Taker>, Claim)> = Vec::new();
        let mut left = MAX_GROUP_ITEMS as u32;
        let mut later = Vec::new();
        while left > 0 && claims.len() < MAX_CLAIMS {
            let Some(taker) = lock(&self.line).pop() else {
                break;
            };
            // The same request twice in one look would get the leases of both under one id.
            let id = |taker: &Taker| taker.request().map(|(id, _)| id.to_owned());
            if taker.request().is_some() && claims.iter().any(|(other, _)| id(other) == id(&taker)) {
                later.push(taker);
            } else if let Some(claim) = taker.claim(left) {
                left -= claim.jobs;
                claims.push((taker, claim));
            }
        }
        for taker in later {
            taker.stand_in_line();
        }
        claims
    }

    /// Looks at these of the queues, one after the other, until nobody wants more.
    async fn look(&self, order: &[usize], mut claims: Vec<(Arc<Taker>, Claim)>, dispatcher: &Dispatcher) {
        let mut no_room = false;
        let mut served = vec![false; claims.len()];
        for &index in &self.with_work(order).await {
            let wanted: u32 = claims.iter().map(|(_, claim)| claim.jobs).sum();
            if wanted == 0 {
                break;
            }
            let watched = &self.queues[index];
            let begun = watched.news.begin();
            let look = match self.ask_for(watched, &claims).await {
                Ok(look) => look,
                // Of the only one who asks: it waits in vain.
                Err(Error::RequestIdReused) => continue,
                Err(error) => {
                    tracing::debug!(%error, queue = %watched.queue.routing_key(), "look failed");
                    watched.news.heard(None);
                    watched.put_off();
                    continue;
                }
            };
            *lock(&watched.pause) = None;
            watched.news.looked(&begun, look.now_us);
            *lock(&watched.due) = look
                .next_due_ms
                .map(|due| Instant::now() + Duration::from_millis(due.saturating_sub(look.now_us / 1_000)));
            self.note_pause(watched, look.verdict == Verdict::Paused);
            if look.among_repeated {
                // One of the requests was made before, at another broker or in another call: each is looked for alone.
                for (claim, served) in claims.iter_mut().zip(&mut served).filter(|(claim, _)| claim.1.jobs > 0) {
                    match self.ask_for(watched, std::slice::from_ref(claim)).await {
                        Ok(look) => {
                            let all = look.jobs.len() as u32 == claim.1.jobs;
                            if all || matches!(look.verdict, Verdict::Again | Verdict::NoRoom) {
                                watched.news.heard(None);
                            }
                            *served |= Self::deal(&watched.queue, look, std::slice::from_mut(claim))[0];
                        }
                        // Its own fault: nobody else waits for it.
                        Err(Error::RequestIdReused) => {}
                        Err(error) => {
                            tracing::debug!(%error, queue = %watched.queue.routing_key(), "look failed");
                            watched.news.heard(None);
                            watched.put_off();
                        }
                    }
                }
                continue;
            }
            let found = look.jobs.len() as u32;
            if found == wanted || matches!(look.verdict, Verdict::Again | Verdict::NoRoom) {
                watched.news.heard(None);
            }
            no_room |= look.verdict == Verdict::NoRoom;
            if found > 0 {
                dispatcher.metrics.group_size.get("lease").record(u64::from(found));
                for (served, now) in served.iter_mut().zip(Self::deal(&watched.queue, look, &mut claims)) {
                    *served |= now;
                }
            } else {
                watched.queue.note_leased(&look);
            }
        }
        if no_room {
            self.has_cramped.store(true, SeqCst);
        } else if self.has_cramped.swap(false, SeqCst) {
            self.forget_cramped();
        }
        for ((taker, claim), served) in claims.into_iter().zip(served) {
            if !no_room {
                taker.is_not_cramped();
            } else if !claim.alone && claim.jobs > 0 && !served {
                // There is a job, but not for the room of one who holds others: looking again at once would only find it again.
                taker.is_cramped(claim.room_bytes);
            }
            // Nothing is delivered, so nothing comes back.
            let _ = taker.deliver(claim.jobs, None);
        }
    }

    /// These queues without those that nobody has spoken of and that are empty: found out of all of them in one round trip.
    async fn with_work(&self, order: &[usize]) -> Vec<usize> {
        let unsure: Vec<usize> = order
            .iter()
            .copied()
            .filter(|&index| self.queues[index].news.is_unsure())
            .collect();
        if unsure.len() < 2 {
            return order.to_vec();
        }
        let queues = unsure.iter().map(|&index| &self.queues[index]);
        let begun: Vec<Begun> = queues.clone().map(|watched| watched.news.begin()).collect();
        let store = self.queues[0].queue.store();
        let keys = queues.map(|watched| watched.queue.keys());
        let occupied = store.occupied(keys).await;
        let mut with_work = order.to_vec();
        for ((&index, begun), occupied) in unsure.iter().zip(&begun).zip(occupied) {
            let watched = &self.queues[index];
            match occupied {
                // An error is for the look to find out. If others take all that is wanted, the next look is for this one.
                Ok(Occupied::Jobs) | Err(_) => watched.news.heard(None),
                Ok(other) => {
                    self.note_pause(watched, other == Occupied::Paused);
                    watched.news.found_empty(begun);
                    *lock(&watched.pause) = None;
                    with_work.retain(|&other| other != index);
                    if let Occupied::Empty {
                        first_lease_ends_in_ms: Some(ms),
                    } = other
                    {
                        watched.queue.due_within(ms);
                    }
                }
            }
        }
        with_work
    }

    async fn ask_for(&self, watched: &Watched, claims: &[(Arc<Taker>, Claim)]) -> Result<Look, Error> {
        let asked: Vec<Claim> = claims.iter().map(|(_, claim)| claim.clone()).collect();
        let requests: Vec<(&str, &str)> = if claims.iter().any(|(taker, _)| taker.request().is_some()) {
            claims
                .iter()
                .map(|(taker, _)| taker.request().unwrap_or_default())
                .collect()
        } else {
            Vec::new()
        };
        let ask = LeaseAsk {
            priorities: &self.ask.filter.priorities,
            job_types: &self.ask.filter.job_types,
            lease_ms: self.ask.lease_ms,
            claims: &asked,
            requests: &requests,
        };
        watched.queue.store().lease(watched.queue.keys(), &ask).await
    }

    /// Hands every job to the taker of its claim; says who got some. Jobs of a taker that is gone go back at once.
    fn deal(queue: &Arc<Queue>, mut look: Look, claims: &mut [(Arc<Taker>, Claim)]) -> Vec<bool> {
        queue.note_leased(&look);
        let hands = look.deal(claims.len());
        let mut served = vec![false; claims.len()];
        for (((taker, claim), jobs), served) in claims.iter_mut().zip(hands).zip(&mut served) {
            if jobs.is_empty() {
                continue;
            }
            *served = true;
            let taken = jobs.len() as u32;
            let delivery = Delivery {
                queue: queue.clone(),
                nonce: look.nonce,
                leased_us: look.now_us,
                jobs,
            };
            let bytes = delivery.bytes();
            let is_full = taker.is_a_call() && delivery.jobs.iter().any(|job| job.goes_alone);
            if let Err(delivery) = taker.deliver(taken, Some(delivery)) {
                delivery.give_back();
                taker.let_go(taken, bytes);
            }
            claim.jobs = if is_full { 0 } else { claim.jobs.saturating_sub(taken) };
            claim.held += taken;
            claim.room_bytes = claim.room_bytes.saturating_sub(bytes);
            claim.alone = false;
        }
        served
    }

    fn note_pause(&self, watched: &Watched, paused: bool) {
        let all_paused = || self.queues.iter().all(|watched| watched.paused.load(SeqCst));
        let before = all_paused();
        watched.paused.store(paused, SeqCst);
        let after = all_paused();
        if before != after {
            let notice = if after { Notice::Paused } else { Notice::Resumed };
            for taker in lock(&self.attached).iter() {
                taker.notice(notice);
            }
        }
    }
}

impl Watched {
    /// The queue cannot be looked at: after a while again. The others do not wait for it.
    fn put_off(&self) {
        let mut pause = lock(&self.pause);
        let last = pause.map_or(ERROR_PAUSE.0, |(_, last)| (last * 2).min(ERROR_PAUSE.1));
        *pause = Some((Instant::now() + last.mul_f64(1.0 + fastrand::f64() * 0.5), last));
    }

    fn put_off_until(&self) -> Option<Instant> {
        lock(&self.pause).map(|(until, _)| until)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
