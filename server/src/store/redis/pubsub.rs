//! Notifications between brokers over Redis pub/sub. They are hints: after a break every broker checks its queues
//! again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesOrdered};
use redis::{
    RedisError,
    aio::{PubSubSink, PubSubStream},
};
use tokio::sync::{mpsc, oneshot};

use super::Endpoint;
use crate::{
    domain::JobId,
    store::{Store, protocol::notify},
};

/// A channel that no task uses is kept for this long: it is mostly used again, and every change costs Redis a command.
const LINGER: Duration = Duration::from_secs(10);
/// How often unused channels are left.
const TIDY_EVERY: Duration = Duration::from_secs(2);

/// Names in one SUBSCRIBE: ten thousand channels take a few dozen commands after a reconnect.
const NAMES_AT_ONCE: usize = 500;
/// How long Redis may take for each of them.
const STEP: Duration = Duration::from_secs(5);
/// The pause after a failure, and the longest after many.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A message on a queue's channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A lane was empty and is not any more.
    LaneReady {
        /// Whether this broker caused it.
        by_us: bool,
        /// 1 to 9.
        priority: u8,
        /// The handler.
        job_type: String,
    },
    /// There is a scheduled job that is due before all others, at this time in milliseconds.
    DueEarlier(u64),
    /// A job for which a call waits has settled.
    Settled(JobId),
    /// A leased job is to be cancelled.
    Cancel {
        /// The job.
        job_id: JobId,
        /// How long the worker may take to stop.
        grace: Duration,
        /// The reason.
        reason: String,
    },
    /// The connection was away: notifications may have been missed.
    Missed,
}

impl Notification {
    fn parse(message: &[u8], our_tag: &str) -> Option<Self> {
        let (kind, rest) = message.split_at_checked(1)?;
        let kind = std::str::from_utf8(kind).ok()?;
        if kind == notify::SETTLED {
            return Some(Self::Settled(JobId::from_slice(rest)?));
        }
        let (tag, rest) = rest.split_at_checked(8)?;
        match kind {
            notify::LANE_READY => {
                let (priority, job_type) = std::str::from_utf8(rest).ok()?.split_once(':')?;
                Some(Self::LaneReady {
                    by_us: tag == our_tag.as_bytes(),
                    priority: priority.parse().ok()?,
                    job_type: job_type.to_owned(),
                })
            }
            notify::DUE_EARLIER => Some(Self::DueEarlier(std::str::from_utf8(rest).ok()?.parse().ok()?)),
            notify::CANCEL => {
                let (id, rest) = rest.split_at_checked(16)?;
                let (grace, reason) = rest.split_first_chunk::<4>()?;
                Some(Self::Cancel {
                    job_id: JobId::from_slice(id)?,
                    grace: Duration::from_millis(u64::from(u32::from_be_bytes(*grace))),
                    reason: String::from_utf8_lossy(reason).into_owned(),
                })
            }
            _ => None,
        }
    }
}

/// A change of the channels to listen to.
#[derive(Debug)]
pub enum Interest {
    /// Listen. The sender reports when the subscription is in place: nothing is missed from then on.
    Listen(String, oneshot::Sender<()>),
    /// Stop listening.
    Forget(String),
}

/// The two ends of the listener: the channels to listen to, and the notifications that come in.
#[derive(Debug)]
pub struct Notifications {
    /// Changes of the channels.
    pub interest: mpsc::UnboundedSender<Interest>,
    /// Channel and message. [`Notification::Missed`] comes with an empty channel.
    pub incoming: mpsc::UnboundedReceiver<(String, Notification)>,
}

impl Store {
    /// Starts the listener, on a connection of its own, which it replaces whenever it breaks.
    pub fn listen(&self) -> Notifications {
        let (interest, asked) = mpsc::unbounded_channel();
        let (notifications, incoming) = mpsc::unbounded_channel();
        tokio::spawn(listen(self.endpoint.clone(), self.tag.clone(), asked, notifications));
        Notifications { interest, incoming }
    }
}

/// The channels to listen to, and since when no task has used them.
#[derive(Debug)]
struct Channels {
    tag: String,
    all: BTreeMap<String, Option<Instant>>,
}

impl Channels {
    /// The channel, and a second one to which only this broker listens: it shows the scripts that this broker is among
    /// the listeners of the first. One command subscribes to both.
    fn both(&self, channel: &str) -> [String; 2] {
        [channel.to_owned(), format!("{channel}{}", self.tag)]
    }

    /// Applies a change, and adds the names to subscribe to if the channel is new.
    fn change(&mut self, change: Interest, new: &mut Vec<String>, waiting: &mut Vec<oneshot::Sender<()>>) {
        match change {
            Interest::Listen(channel, subscribed) => {
                let both = self.both(&channel);
                if self.all.insert(channel, None).is_none() {
                    new.extend(both);
                }
                waiting.push(subscribed);
            }
            Interest::Forget(channel) => drop(self.all.insert(channel, Some(Instant::now()))),
        }
    }

    /// Removes channels that have been unused for long; returns their names.
    fn tidy(&mut self) -> Vec<String> {
        let is_over = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() > LINGER);
        let over = self.all.iter().filter(|(_, since)| is_over(since));
        let names = over.flat_map(|(channel, _)| self.both(channel)).collect();
        self.all.retain(|_, since| !is_over(since));
        names
    }
}

/// Subscribes with many names in a command and all commands in flight at once; each has its own deadline, counted from
/// the reply before it.
async fn subscribe(sink: &PubSubSink, names: &[String]) -> Result<(), RedisError> {
    let mut answers: FuturesOrdered<_> = names
        .chunks(NAMES_AT_ONCE)
        .map(|some| {
            let mut sink = sink.clone();
            async move { sink.subscribe(some).await }
        })
        .collect();
    while let Some(answer) = step(answers.next()).await? {
        answer?;
    }
    Ok(())
}

/// One step of connecting, with a deadline.
async fn step<T>(work: impl Future<Output = T>) -> Result<T, RedisError> {
    let late = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    tokio::time::timeout(STEP, work).await.map_err(late)
}

async fn connect(endpoint: &Endpoint, channels: &Channels) -> Result<(PubSubSink, PubSubStream), RedisError> {
    let pubsub = step(endpoint.client()?.get_async_pubsub()).await??;
    let (sink, stream) = pubsub.split();
    let names: Vec<String> = channels.all.keys().flat_map(|channel| channels.both(channel)).collect();
    subscribe(&sink, &names).await?;
    Ok((sink, stream))
}

async fn listen(
    endpoint: Endpoint,
    tag: String,
    mut asked: mpsc::UnboundedReceiver<Interest>,
    notifications: mpsc::UnboundedSender<(String, Notification)>,
) {
    let mut channels = Channels {
        tag: tag.clone(),
        all: BTreeMap::new(),
    };
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pause = SHORTEST_PAUSE;
    loop {
        let (sink, mut stream) = match connect(&endpoint, &channels).await {
            Ok(connected) => connected,
            Err(error) => {
                tracing::debug!(%error, channels = channels.all.len(), "the subscription to Redis failed");
                if !remember_until(&mut asked, &mut channels, pause.mul_f64(1.0 + fastrand::f64() * 0.2)).await {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        pause = SHORTEST_PAUSE;
        // Every channel is subscribed: no notification is missed from now on.
        if notifications.send((String::new(), Notification::Missed)).is_err() {
            return;
        }
        let mut changes = Vec::new();
        loop {
            tokio::select! {
                count = asked.recv_many(&mut changes, NAMES_AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                    let (mut new, mut waiting) = (Vec::new(), Vec::new());
                    for change in changes.drain(..) {
                        channels.change(change, &mut new, &mut waiting);
                    }
                    if !new.is_empty() && subscribe(&sink, &new).await.is_err() {
                        break;
                    }
                    for subscribed in waiting {
                        // The task that asked may be gone.
                        let _ = subscribed.send(());
                    }
                }
                _ = tidy.tick() => {
                    let over = channels.tidy();
                    let mut sink = sink.clone();
                    if !over.is_empty() && !matches!(step(sink.unsubscribe(&over)).await, Ok(Ok(()))) {
                        break;
                    }
                }
                message = stream.next() => {
                    let Some(message) = message else { break };
                    if let Some(notification) = Notification::parse(message.get_payload_bytes(), &tag)
                        && notifications.send((message.get_channel_name().to_owned(), notification)).is_err()
                    {
                        return;
                    }
                }
            }
        }
    }
}

/// Applies changes until the pause is over; `false` if the store is gone.
async fn remember_until(
    asked: &mut mpsc::UnboundedReceiver<Interest>,
    channels: &mut Channels,
    pause: Duration,
) -> bool {
    let wait = tokio::time::sleep(pause);
    tokio::pin!(wait);
    loop {
        tokio::select! {
            () = &mut wait => return true,
            ask = asked.recv() => match ask {
                Some(Interest::Forget(channel)) => drop(channels.all.remove(&channel)),
                // No report: the subscription is not in place yet.
                Some(Interest::Listen(channel, _)) => drop(channels.all.insert(channel, None)),
                None => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_scripts_publish_is_parsed() {
        assert_eq!(
            Notification::parse(b"r000000015:send", "00000001"),
            Some(Notification::LaneReady {
                by_us: true,
                priority: 5,
                job_type: "send".into()
            })
        );
        assert_eq!(
            Notification::parse(b"z000000011763000000000", "x"),
            Some(Notification::DueEarlier(1_763_000_000_000))
        );
        let cancel = [&b"c00000001"[..], &[7; 16], &30_000_u32.to_be_bytes(), b"why"].concat();
        assert!(
            matches!(Notification::parse(&cancel, "x"), Some(Notification::Cancel { reason, .. }) if reason == "why")
        );
        for junk in [&b""[..], b"r", b"rshort", b"d123", b"?00000001xyz"] {
            assert_eq!(Notification::parse(junk, "x"), None);
        }
    }
}
