//! A Subscribe stream, frame by frame.
use std::{collections::VecDeque, time::Duration};

use bananas_proto::v1::{
    Advice, CancelLease, Drain, Draining, ExtendResults, Flow, Heartbeat, Jobs, LeaseExtension, LeaseLost, Open,
    Opened, Received, SessionExtend, Settle, SettleAck, SettleNack, SettleResults, Settlement, SubscribeRequest,
    SubscribeResponse, settlement, subscribe_request, subscribe_response::Frame,
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    api::{Api, selector},
    eventually::within,
};

/// Shorter than any heartbeat interval of the tests.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(300);

/// An open stream. Dropping it breaks the stream.
#[derive(Debug)]
pub struct Session {
    /// The broker's first frame.
    pub opened: Opened,
    requests: Option<mpsc::Sender<SubscribeRequest>>,
    responses: Streaming<SubscribeResponse>,
    /// Frames that arrived while the test waited for another kind.
    passed_over: VecDeque<Frame>,
    /// Whether it sends heartbeats while it waits. Off for tests of silence.
    pub beats: bool,
    sequence: u64,
}

impl Session {
    /// Opens a stream; waits for `opened`.
    pub async fn open(api: &Api, open: Open) -> Result<Self, Status> {
        let (requests, frames) = mpsc::channel(64);
        let first = SubscribeRequest {
            frame: Some(subscribe_request::Frame::Open(open)),
        };
        requests.try_send(first).expect("the channel is empty");
        let call = api.broker.clone().subscribe(ReceiverStream::new(frames)).await?;
        let mut responses = call.into_inner();
        match responses.message().await? {
            Some(SubscribeResponse {
                frame: Some(Frame::Opened(opened)),
            }) => Ok(Self {
                opened,
                requests: Some(requests),
                responses,
                passed_over: VecDeque::new(),
                beats: true,
                sequence: 0,
            }),
            other => panic!("the first frame should be opened, but is {other:?}"),
        }
    }

    /// Opens a stream for one queue with a window of `max_jobs` jobs; has to succeed.
    pub async fn on(api: &Api, routing_key: &str, max_jobs: u32) -> Self {
        within("a stream opens", Self::open(api, open(routing_key, max_jobs)))
            .await
            .expect("a stream opens")
    }

    /// The next frame; `None` if the broker has ended the stream.
    pub async fn frame(&mut self) -> Result<Option<Frame>, Status> {
        if let Some(frame) = self.passed_over.pop_front() {
            return Ok(Some(frame));
        }
        let message = within("a frame", self.message()).await?;
        Ok(message.map(|message| message.frame.expect("a frame is something")))
    }

    /// The next frame for which `pick` returns a value; other frames are kept for later calls.
    pub async fn next<T>(&mut self, what: &str, mut pick: impl FnMut(Frame) -> Option<T>) -> T {
        let known = self.passed_over.iter().position(|frame| pick(frame.clone()).is_some());
        if let Some(frame) = known.and_then(|at| self.passed_over.remove(at)) {
            return pick(frame).expect("it was picked before");
        }
        within(what, async {
            loop {
                match self.message().await {
                    Ok(Some(message)) => {
                        let frame = message.frame.expect("a frame is something");
                        if let Some(picked) = pick(frame.clone()) {
                            return picked;
                        }
                        if !matches!(frame, Frame::Heartbeat(_)) {
                            self.passed_over.push_back(frame);
                        }
                    }
                    Ok(None) => panic!("the stream ended before: {what}"),
                    Err(status) => panic!("the stream broke before: {what}: {status:?}"),
                }
            }
        })
        .await
    }

    /// The next jobs.
    pub async fn jobs(&mut self) -> Jobs {
        self.next("jobs on the stream", |frame| {
            if let Frame::Jobs(jobs) = frame {
                Some(jobs)
            } else {
                None
            }
        })
        .await
    }

    /// The next advice.
    pub async fn advice(&mut self) -> Advice {
        self.next("advice", |frame| match frame {
            Frame::Advice(found) => Some(found),
            _ => None,
        })
        .await
    }

    /// The next heartbeat of the broker.
    pub async fn beat(&mut self) -> Heartbeat {
        self.next("a heartbeat", |frame| match frame {
            Frame::Heartbeat(found) => Some(found),
            _ => None,
        })
        .await
    }

    /// The next `draining`.
    pub async fn draining(&mut self) -> Draining {
        self.next("draining", |frame| match frame {
            Frame::Draining(found) => Some(found),
            _ => None,
        })
        .await
    }

    /// The next `lease_lost`.
    pub async fn lease_lost(&mut self) -> LeaseLost {
        self.next("lease_lost", |frame| match frame {
            Frame::LeaseLost(found) => Some(found),
            _ => None,
        })
        .await
    }

    /// The next `cancel`.
    pub async fn cancel(&mut self) -> CancelLease {
        self.next("cancel", |frame| match frame {
            Frame::Cancel(found) => Some(found),
            _ => None,
        })
        .await
    }

    /// Receives `count` jobs in any number of frames; confirms each frame.
    pub async fn collect_jobs(&mut self, count: usize) -> Vec<bananas_proto::v1::LeasedJob> {
        let mut jobs = Vec::new();
        while jobs.len() < count {
            let frame = self.jobs().await;
            self.received(frame.delivery).await;
            jobs.extend(frame.jobs);
        }
        jobs
    }

    /// Whether nothing but heartbeats and advice arrives for this time.
    pub async fn is_quiet_for(&mut self, time: Duration) -> bool {
        let quiet = |frame: &Frame| matches!(frame, Frame::Heartbeat(_) | Frame::Advice(_));
        if !self.passed_over.iter().all(quiet) {
            return false;
        }
        let busy = async {
            while let Ok(Some(message)) = self.message().await {
                let frame = message.frame.expect("a frame is something");
                if !quiet(&frame) {
                    self.passed_over.push_back(frame);
                    return;
                }
            }
        };
        tokio::time::timeout(time, busy).await.is_err()
    }

    /// The next message; sends heartbeats while it waits.
    async fn message(&mut self) -> Result<Option<SubscribeResponse>, Status> {
        loop {
            tokio::select! {
                message = self.responses.message() => return message,
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => {}
            }
            if self.beats {
                self.heartbeat().await;
            }
        }
    }

    /// Sends a frame. If the broker has ended the stream, nothing is sent, and [`Session::frame`] returns the error.
    pub async fn send(&mut self, frame: subscribe_request::Frame) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(SubscribeRequest { frame: Some(frame) }).await;
        }
    }

    /// Settles over the stream; returns the sequence of the frame.
    pub async fn send_settle(&mut self, settlements: Vec<Settlement>) -> u64 {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(subscribe_request::Frame::Settle(Settle { sequence, settlements }))
            .await;
        sequence
    }

    /// Settles over the stream and waits for the results.
    pub async fn settle(&mut self, settlements: Vec<Settlement>) -> SettleResults {
        let sequence = self.send_settle(settlements).await;
        self.next("settle_results", |frame| match frame {
            Frame::SettleResults(results) if results.sequence == sequence => Some(results),
            _ => None,
        })
        .await
    }

    /// Acks over the stream; has to succeed.
    pub async fn ack(&mut self, lease_token: &Bytes) {
        let results = self.settle(vec![ack(lease_token)]).await;
        assert_eq!(results.results[0].error, None);
    }

    /// Extends over the stream and waits for the results.
    pub async fn extend(&mut self, leases: Vec<LeaseExtension>) -> ExtendResults {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(subscribe_request::Frame::Extend(SessionExtend { sequence, leases }))
            .await;
        self.next("extend_results", |frame| match frame {
            Frame::ExtendResults(results) if results.sequence == sequence => Some(results),
            _ => None,
        })
        .await
    }

    /// Confirms deliveries.
    pub async fn received(&mut self, delivery: u64) {
        self.send(subscribe_request::Frame::Received(Received { delivery }))
            .await;
    }

    /// Changes the window.
    pub async fn flow(&mut self, max_jobs: u32) {
        self.send(subscribe_request::Frame::Flow(Flow { max_jobs, max_bytes: 0 }))
            .await;
    }

    /// Sends `drain`.
    pub async fn drain(&mut self) {
        self.send(subscribe_request::Frame::Drain(Drain {})).await;
    }

    /// Sends a heartbeat.
    pub async fn heartbeat(&mut self) {
        self.send(subscribe_request::Frame::Heartbeat(Heartbeat::default()))
            .await;
    }

    /// Half-closes the stream and goes on reading.
    pub fn half_close(&mut self) {
        self.requests = None;
    }
}

/// The first frame, for one queue with a window of `max_jobs` jobs.
pub fn open(routing_key: &str, max_jobs: u32) -> Open {
    Open {
        selector: Some(selector(routing_key)),
        flow: Some(Flow { max_jobs, max_bytes: 0 }),
        ..Open::default()
    }
}

/// An Ack without a result.
pub fn ack(lease_token: &Bytes) -> Settlement {
    Settlement {
        lease_token: lease_token.clone(),
        outcome: Some(settlement::Outcome::Ack(SettleAck::default())),
    }
}

/// A Nack.
pub fn nack(lease_token: &Bytes, nack: SettleNack) -> Settlement {
    Settlement {
        lease_token: lease_token.clone(),
        outcome: Some(settlement::Outcome::Nack(nack)),
    }
}
