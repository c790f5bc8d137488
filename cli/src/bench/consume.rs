//! The workers of a benchmark: they settle each job at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bananas_client::{
    Client, Error, LeaseOptions, LeaseToken,
    connection::ConnectionSettings,
    proto::{
        Flow, Heartbeat, LeasedJob, Open, Selector, Settle, SettleAck, Settlement, SubscribeRequest, SubscribeResponse,
        WorkerInfo, settlement::Outcome, subscribe_request::Frame as Up, subscribe_response::Frame as Down,
    },
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Streaming;

use super::produce::Counters;
use crate::exit::{Exit, Failure, Result};

/// Routing keys of one stream.
pub(super) const MAX_QUEUES: usize = 64;
/// Settlements of one frame.
const MAX_SETTLEMENTS: usize = 1000;
const MAX_WINDOW_BYTES: u64 = 64 << 20;
/// How long a slow worker takes for the jobs of one frame.
pub(super) const SLOW: Duration = Duration::from_millis(100);
const LEASE_WAIT: Duration = Duration::from_secs(20);

/// An open stream of a worker.
#[derive(Debug)]
pub(super) struct Stream {
    frames: mpsc::Sender<SubscribeRequest>,
    incoming: Streaming<SubscribeResponse>,
    /// Heartbeat interval of the broker.
    pub heartbeat: Duration,
    /// Jobs received so far.
    pub taken: Arc<AtomicU64>,
}

impl Stream {
    pub(super) async fn open(client: &Client, queues: &[String], window: u32) -> Result<Self> {
        let (frames, outgoing) = mpsc::channel(64);
        let open = Open {
            worker: Some(WorkerInfo {
                name: "bananas bench".to_owned(),
                ..WorkerInfo::default()
            }),
            selector: Some(Selector {
                routing_keys: queues.to_vec(),
                ..Selector::default()
            }),
            flow: Some(Flow {
                max_jobs: window,
                max_bytes: MAX_WINDOW_BYTES,
            }),
            ..Open::default()
        };
        send(&frames, Up::Open(open)).await?;
        let mut service = ConnectionSettings::default().broker_service(client.channel());
        let response = service
            .subscribe(ReceiverStream::new(outgoing))
            .await
            .map_err(Error::from)?;
        let mut incoming = response.into_inner();
        let Some(Down::Opened(opened)) = next(&mut incoming).await? else {
            return Err(ended());
        };
        let heartbeat = opened.heartbeat_interval.and_then(|interval| interval.try_into().ok());
        Ok(Self {
            frames,
            incoming,
            heartbeat: heartbeat.unwrap_or(Duration::from_secs(1)),
            taken: Arc::default(),
        })
    }

    /// Settles jobs frame by frame, each frame after `pause`, until it is dropped.
    pub(super) async fn work(mut self, counters: Arc<Counters>, pause: Duration) -> Result {
        let mut sequence = 0;
        // A little early, so that it reaches the broker in time.
        let mut heartbeat = tokio::time::interval(self.heartbeat * 9 / 10);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        loop {
            let frame = tokio::select! {
                frame = next(&mut self.incoming) => frame?,
                _ = heartbeat.tick() => {
                    send(&self.frames, Up::Heartbeat(Heartbeat::default())).await?;
                    continue;
                }
            };
            match frame {
                Some(Down::Jobs(jobs)) => {
                    let mut jobs = jobs.jobs;
                    self.taken.fetch_add(jobs.len() as u64, Relaxed);
                    for job in &jobs {
                        arrived(job, &counters);
                    }
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    while !jobs.is_empty() {
                        let rest = jobs.split_off(jobs.len().min(MAX_SETTLEMENTS));
                        sequence += 1;
                        let settlements = jobs.into_iter().map(settlement).collect();
                        send(&self.frames, Up::Settle(Settle { sequence, settlements })).await?;
                        jobs = rest;
                    }
                }
                Some(Down::SettleResults(settled)) => {
                    for result in &settled.results {
                        if let Some(error) = result.error.clone() {
                            return Err(Error::from(error).into());
                        }
                    }
                    counters.settled.fetch_add(settled.results.len() as u64, Relaxed);
                }
                Some(Down::Draining(_)) => return Err(ended()),
                _ => {}
            }
        }
    }
}

/// Leases and acks jobs one at a time, with a call for each step, until it is dropped.
pub(super) async fn lease_and_ack(client: Client, queues: Vec<String>, counters: Arc<Counters>) -> Result {
    let options = LeaseOptions::new(queues).wait(LEASE_WAIT);
    loop {
        for job in client.lease(options.clone()).await?.jobs {
            arrived(&job, &counters);
            client.ack(&LeaseToken::from(job.lease_token), None).await?;
            counters.settled.fetch_add(1, Relaxed);
        }
    }
}

fn arrived(job: &LeasedJob, counters: &Counters) {
    if let Some(times) = &counters.times {
        times.arrived(&job.payload);
    }
}

fn settlement(job: LeasedJob) -> Settlement {
    Settlement {
        lease_token: job.lease_token,
        outcome: Some(Outcome::Ack(SettleAck::default())),
    }
}

async fn next(incoming: &mut Streaming<SubscribeResponse>) -> Result<Option<Down>> {
    let frame = incoming.next().await.ok_or_else(ended)?;
    Ok(frame.map_err(Error::from)?.frame)
}

async fn send(frames: &mpsc::Sender<SubscribeRequest>, frame: Up) -> Result {
    frames
        .send(SubscribeRequest { frame: Some(frame) })
        .await
        .map_err(|_| ended())
}

fn ended() -> Failure {
    Failure::new(Exit::Unavailable, "the broker ended the stream")
}
