//! The frames of a stream: what a session sends, as the API has it.

use std::pin::Pin;

use bananas_proto::server::{self as pb, subscribe_response::Frame};
use tokio_stream::Stream;
use tonic::Status;

use crate::{
    dispatch::Advice,
    grpc::{
        convert::{duration, timestamp},
        settle::{wire_extended, wire_settled},
    },
    session::{DrainReason, Outbound},
};

/// The frames to the worker. Bounded by the window: jobs are only sent for demand, and everything else is small.
pub(in crate::grpc) type Frames = Pin<Box<dyn Stream<Item = Result<pb::SubscribeResponse, Status>> + Send>>;

/// A message of the session as a frame.
pub(super) fn frame(message: Outbound) -> Frame {
    match message {
        Outbound::Jobs { jobs, delivery } => Frame::Jobs(pb::Jobs { jobs, delivery }),
        Outbound::LeaseLost { lease_token, reason } => Frame::LeaseLost(pb::LeaseLost {
            lease_token,
            reason: reason.to_owned(),
        }),
        Outbound::Cancel {
            lease_token,
            reason,
            grace_ms,
        } => Frame::Cancel(pb::CancelLease {
            lease_token,
            reason,
            grace: Some(duration(grace_ms)),
        }),
        Outbound::Advice(notice) => Frame::Advice(pb::Advice {
            reason: match notice {
                Advice::Paused => pb::AdviceReason::Paused,
                Advice::Resumed => pb::AdviceReason::Empty,
                Advice::NoRoom => pb::AdviceReason::NoRoom,
            }
            .into(),
            retry_after: None,
        }),
        Outbound::SettleResults { sequence, results } => Frame::SettleResults(pb::SettleResults {
            sequence,
            results: results.into_iter().map(wire_settled).collect(),
        }),
        Outbound::ExtendResults { sequence, results } => Frame::ExtendResults(pb::ExtendResults {
            sequence,
            results: results.into_iter().map(wire_extended).collect(),
        }),
        Outbound::Heartbeat(now_ms) => Frame::Heartbeat(pb::Heartbeat {
            server_time: Some(timestamp(now_ms)),
        }),
        Outbound::Draining { reason, grace } => Frame::Draining(pb::Draining {
            reason: match reason {
                DrainReason::Shutdown => pb::DrainReason::Shutdown,
                DrainReason::StreamAge => pb::DrainReason::StreamAge,
            }
            .into(),
            grace: Some(duration(grace.as_millis() as u64)),
        }),
    }
}
