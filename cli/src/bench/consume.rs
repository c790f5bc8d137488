//! The subscriber of a bench: takes every job and settles it, frame by frame, as a worker does that has nothing else to do.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bananas_client::{
    Client, Error,
    connection::ConnectionSettings,
    proto::{
        Flow, Heartbeat, LeasedJob, Open, Selector, Settle, SettleAck, Settlement, SubscribeRequest, WorkerInfo,
        settlement::Outcome, subscribe_request::Frame as Up, subscribe_response::Frame as Down,
    },
};
use tokio::{sync::mpsc, time::Duration};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::produce::Counters;
use crate::exit::{Exit, Failure, Result};

/// Settlements of one frame.
const MAX_SETTLEMENTS: usize = 1000;
const MAX_WINDOW_BYTES: u64 = 64 << 20;
/// More often than any broker asks for.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Takes and settles jobs until it is dropped. `seen` gets every job as it arrives.
pub(super) async fn consume(
    client: Client,
    queue: String,
    window: u32,
    counters: Arc<Counters>,
    mut seen: impl FnMut(&LeasedJob),
) -> Result {
    let (frames, outgoing) = mpsc::channel(64);
    let open = Open {
        worker: Some(WorkerInfo {
            name: "bananas bench".to_owned(),
            ..WorkerInfo::default()
        }),
        selector: Some(Selector {
            routing_keys: vec![queue],
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
    let answer = service
        .subscribe(ReceiverStream::new(outgoing))
        .await
        .map_err(Error::from)?;
    let mut incoming = answer.into_inner();
    let mut sequence = 0;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        let frame = tokio::select! {
            frame = incoming.next() => frame,
            _ = heartbeat.tick() => {
                send(&frames, Up::Heartbeat(Heartbeat::default())).await?;
                continue;
            }
        };
        let Some(frame) = frame else { return Err(ended()) };
        match frame.map_err(Error::from)?.frame {
            Some(Down::Jobs(jobs)) => {
                let mut jobs = jobs.jobs;
                jobs.iter().for_each(&mut seen);
                while !jobs.is_empty() {
                    let rest = jobs.split_off(jobs.len().min(MAX_SETTLEMENTS));
                    sequence += 1;
                    let settlements = jobs.into_iter().map(settlement).collect();
                    send(&frames, Up::Settle(Settle { sequence, settlements })).await?;
                    jobs = rest;
                }
            }
            Some(Down::SettleResults(answers)) => {
                for result in &answers.results {
                    if let Some(error) = result.error.clone() {
                        return Err(Error::from(error).into());
                    }
                }
                counters.settled.fetch_add(answers.results.len() as u64, Relaxed);
            }
            Some(Down::Draining(_)) => return Err(ended()),
            _ => {}
        }
    }
}

fn settlement(job: LeasedJob) -> Settlement {
    Settlement {
        lease_token: job.lease_token,
        outcome: Some(Outcome::Ack(SettleAck::default())),
    }
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
