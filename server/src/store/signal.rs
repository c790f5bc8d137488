//! What brokers tell each other over Redis pub/sub. A hint, never the truth: after a break everybody looks for himself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};

use super::Store;
use crate::domain::JobId;

/// A channel that nobody here cares for is listened to for so long: as a rule somebody comes back, and every change costs Redis a command.
const LINGER: Duration = Duration::from_secs(10);
/// How often channels are given up.
const TIDY_EVERY: Duration = Duration::from_secs(2);

/// A message on a queue's channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A lane was empty and is not any more.
    LaneReady {
        /// Whose doing it was.
        by_us: bool,
        /// 1 to 9.
        priority: u8,
        /// The handler.
        job_type: String,
    },
    /// There is a scheduled job that is due before all others, at this time in milliseconds.
    DueEarlier(u64),
    /// A job that somebody waits for has settled.
    Settled(JobId),
    /// A leased job is to be cancelled.
    Cancel {
        /// Which.
        job_id: JobId,
        /// How long the worker may take.
        grace: Duration,
        /// Why.
        reason: String,
    },
    /// The connection was away: anything may have been missed.
    Missed,
}

impl Signal {
    fn parse(message: &[u8], our_tag: &str) -> Option<Self> {
        let (&kind, rest) = message.split_first()?;
        if kind == b'd' {
            return Some(Self::Settled(JobId::from_slice(rest)?));
        }
        let (tag, rest) = rest.split_at_checked(8)?;
        match kind {
            b'r' => {
                let (priority, job_type) = std::str::from_utf8(rest).ok()?.split_once(':')?;
                Some(Self::LaneReady {
                    by_us: tag == our_tag.as_bytes(),
                    priority: priority.parse().ok()?,
                    job_type: job_type.to_owned(),
                })
            }
            b'z' => Some(Self::DueEarlier(std::str::from_utf8(rest).ok()?.parse().ok()?)),
            b'c' => {
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

/// A change of what the broker listens to.
#[derive(Debug)]
pub enum Interest {
    /// Listen; told when it is sure that nothing is missed from then on.
    Listen(String, oneshot::Sender<()>),
    /// Stop listening.
    Forget(String),
}

/// The broker's ear: which channels to listen to, and what comes in.
#[derive(Debug)]
pub struct Signals {
    /// Channels to listen to, or not any more.
    pub interest: mpsc::UnboundedSender<Interest>,
    /// Channel and message. [`Signal::Missed`] comes with an empty channel.
    pub incoming: mpsc::UnboundedReceiver<(String, Signal)>,
}

impl Store {
    /// Starts to listen, on a connection of its own that is made anew whenever it breaks.
    pub fn listen(&self) -> Signals {
        let (interest, asked) = mpsc::unbounded_channel();
        let (heard, incoming) = mpsc::unbounded_channel();
        tokio::spawn(listen(self.endpoint.clone(), self.tag.clone(), asked, heard));
        Signals { interest, incoming }
    }
}

async fn listen(
    endpoint: super::Endpoint,
    tag: String,
    mut asked: mpsc::UnboundedReceiver<Interest>,
    heard: mpsc::UnboundedSender<(String, Signal)>,
) {
    // A second channel for each, which only we listen to, tells the scripts that we are among the listeners of the first: both come and go in one command.
    let both = |channel: &String| [channel.clone(), format!("{channel}{tag}")];
    // Since when nobody has cared.
    let mut channels: BTreeMap<String, Option<Instant>> = BTreeMap::new();
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pause = Duration::from_millis(100);
    loop {
        let connected = async {
            let mut pubsub = endpoint.client()?.get_async_pubsub().await?;
            for channel in channels.keys() {
                pubsub.subscribe(&both(channel)).await?;
            }
            Ok::<_, redis::RedisError>(pubsub)
        };
        let Ok(Ok(pubsub)) = tokio::time::timeout(Duration::from_secs(5), connected).await else {
            // Interest that comes meanwhile is remembered.
            let wait = tokio::time::sleep(pause.mul_f64(1.0 + fastrand::f64() * 0.2));
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    ask = asked.recv() => match ask {
                        Some(Interest::Listen(channel, _)) => { channels.insert(channel, None); }
                        Some(Interest::Forget(channel)) => { channels.remove(&channel); }
                        None => return,
                    },
                }
            }
            pause = (pause * 2).min(Duration::from_secs(2));
            continue;
        };
        pause = Duration::from_millis(100);
        if heard.send((String::new(), Signal::Missed)).is_err() {
            return;
        }
        let (mut sink, mut stream) = pubsub.split();
        loop {
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(Interest::Listen(channel, sure)) => {
                        let names = both(&channel);
                        if channels.insert(channel, None).is_none() && sink.subscribe(&names).await.is_err() {
                            break;
                        }
                        // Whoever asked may be gone.
                        let _ = sure.send(());
                    }
                    Some(Interest::Forget(channel)) => {
                        channels.insert(channel, Some(Instant::now()));
                    }
                    None => return,
                },
                _ = tidy.tick() => {
                    let is_over = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() > LINGER);
                    let over: Vec<String> = channels.iter().filter(|(_, since)| is_over(since)).flat_map(|(channel, _)| both(channel)).collect();
                    channels.retain(|_, since| !is_over(since));
                    if !over.is_empty() && sink.unsubscribe(&over).await.is_err() {
                        break;
                    }
                }
                message = stream.next() => {
                    let Some(message) = message else { break };
                    if let Some(signal) = Signal::parse(message.get_payload_bytes(), &tag)
                        && heard.send((message.get_channel_name().to_owned(), signal)).is_err()
                    {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_scripts_publish_is_understood() {
        assert_eq!(
            Signal::parse(b"r000000015:send", "00000001"),
            Some(Signal::LaneReady {
                by_us: true,
                priority: 5,
                job_type: "send".into()
            })
        );
        assert_eq!(
            Signal::parse(b"z000000011763000000000", "x"),
            Some(Signal::DueEarlier(1_763_000_000_000))
        );
        let cancel = [&b"c00000001"[..], &[7; 16], &30_000_u32.to_be_bytes(), b"why"].concat();
        assert!(matches!(Signal::parse(&cancel, "x"), Some(Signal::Cancel { reason, .. }) if reason == "why"));
        for junk in [&b""[..], b"r", b"rshort", b"d123", b"?00000001xyz"] {
            assert_eq!(Signal::parse(junk, "x"), None);
        }
    }
}
