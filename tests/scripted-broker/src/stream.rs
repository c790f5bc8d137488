//! One `Subscribe` stream, seen from the broker.
use std::time::Duration;

use bananas_proto::{
    server::{
        self as wire, settlement::Outcome, subscribe_request::Frame as Request, subscribe_response::Frame as Response,
    },
    v1::LeasedJob,
};
use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use crate::frames;

/// What a test waits for comes soon. In paused time this is no wait but the end of a test that would never end.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_hours(1), future)
        .await
        .expect("it never came")
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    pub(crate) inbound: Streaming<wire::SubscribeRequest>,
    pub(crate) outbound: mpsc::Sender<Result<wire::SubscribeResponse, Status>>,
    /// The number of the last delivery.
    pub(crate) delivery: u64,
}

impl Stream {
    /// Sends a frame.
    pub async fn send_frame(&self, frame: Response) {
        let frame = wire::SubscribeResponse { frame: Some(frame) };
        self.outbound.send(Ok(frame)).await.expect("the worker hung up");
    }

    /// Opens the session with these results of the leases that the worker named.
    pub async fn opened(&mut self, held: Vec<wire::ExtendResult>) {
        self.send_frame(Response::Opened(frames::opened(held))).await;
    }

    /// Delivers jobs.
    pub async fn jobs(&mut self, jobs: impl IntoIterator<Item = LeasedJob>) {
        self.delivery += 1;
        let jobs = jobs.into_iter().map(|job| Bytes::from(job.encode_to_vec())).collect();
        self.send_frame(Response::Jobs(wire::Jobs {
            jobs,
            delivery: self.delivery,
        }))
        .await;
    }

    /// Ends the stream with an error, as a broken connection does.
    pub async fn break_with(self, code: Code) {
        let _ = self.outbound.send(Err(Status::new(code, "broken by the test"))).await;
    }

    /// The next frame of the worker. `None` once it has closed its side.
    pub async fn next(&mut self) -> Option<Request> {
        let request = soon(self.inbound.message()).await.ok()??;
        Some(request.frame.expect("an empty frame"))
    }

    /// The next frame that is neither a heartbeat, which is returned, nor a confirmation.
    pub async fn next_matter(&mut self) -> Option<Request> {
        let matter = async {
            loop {
                match self.next().await {
                    Some(Request::Heartbeat(_)) => {
                        self.send_frame(Response::Heartbeat(wire::Heartbeat::default())).await;
                    }
                    Some(Request::Received(_)) => {}
                    other => return other,
                }
            }
        };
        soon(matter).await
    }

    /// Waits until `jobs` handlers have reported progress, as those do that say when they run.
    pub async fn at_work(&mut self, mut jobs: usize) {
        while jobs > 0 {
            match self.next_matter().await {
                Some(Request::Extend(extend)) => {
                    jobs -= extend.leases.len();
                    let results = vec![wire::ExtendResult::default(); extend.leases.len()];
                    let sequence = extend.sequence;
                    self.send_frame(Response::ExtendResults(wire::ExtendResults { sequence, results }))
                        .await;
                }
                other => panic!("no extend frame but {other:?}"),
            }
        }
    }

    /// The next settle frame, without a response.
    pub async fn settle_frame(&mut self) -> wire::Settle {
        match self.next_matter().await {
            Some(Request::Settle(settle)) => settle,
            other => panic!("no settle frame but {other:?}"),
        }
    }

    /// The next settle frame; all of it is applied.
    pub async fn settled(&mut self) -> Vec<wire::Settlement> {
        let settle = self.settle_frame().await;
        self.apply(&settle).await;
        settle.settlements
    }

    /// The next settle frame, which has one settlement; it is applied.
    pub async fn settled_one(&mut self) -> Outcome {
        let mut settlements = self.settled().await;
        assert_eq!(settlements.len(), 1, "{settlements:?}");
        settlements.remove(0).outcome.expect("no outcome")
    }

    /// As [`Stream::settled_one`], for a nack.
    pub async fn nacked(&mut self) -> wire::SettleNack {
        match self.settled_one().await {
            Outcome::Nack(nack) => nack,
            other @ Outcome::Ack(_) => panic!("no nack but {other:?}"),
        }
    }

    /// Tells the worker that all settlements of a frame are applied.
    pub async fn apply(&self, settle: &wire::Settle) {
        let results = vec![wire::SettleResult::default(); settle.settlements.len()];
        self.send_frame(Response::SettleResults(wire::SettleResults {
            sequence: settle.sequence,
            results,
        }))
        .await;
    }
}
