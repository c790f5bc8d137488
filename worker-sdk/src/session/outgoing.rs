//! Which frame the session sends next, and when.

use bananas_proto::v1::{self, Drain, Flow, Received, SubscribeRequest, subscribe_request::Frame};
use tokio::time::Instant;

use super::Session;

impl Session {
    /// The next frame to send on stream `number`.
    pub(crate) fn next_frame(&mut self, number: u64, now: Instant) -> Option<SubscribeRequest> {
        let frame = self.choose_frame(number, now)?;
        self.stream_mut(number)?.heartbeat.sent(now);
        Some(SubscribeRequest { frame: Some(frame) })
    }

    fn choose_frame(&mut self, number: u64, now: Instant) -> Option<Frame> {
        let is_current = self.current.as_ref().is_some_and(|stream| stream.number == number);
        let (flow, draining) = (self.flow(), self.draining);
        let stream = self.stream_mut(number).filter(|stream| !stream.half_closed)?;
        if stream.delivered > stream.confirmed {
            stream.confirmed = stream.delivered;
            return Some(Frame::Received(Received {
                delivery: stream.delivered,
            }));
        }
        if is_current {
            if draining && !stream.drain_sent {
                stream.drain_sent = true;
                return Some(Frame::Drain(Drain {}));
            }
            if !draining && stream.window != flow.max_jobs {
                stream.window = flow.max_jobs;
                return Some(Frame::Flow(flow));
            }
            let lease_duration = self.lease_clock.lease_duration();
            if let Some(extend) = self.reports.next_frame(number, lease_duration, now) {
                return Some(Frame::Extend(extend));
            }
            if let Some(settle) = self.settle_queue.next_frame(number, now) {
                return Some(Frame::Settle(settle));
            }
        }
        let due_at = self.stream_mut(number)?.heartbeat.due_at();
        (due_at <= now).then(|| Frame::Heartbeat(v1::Heartbeat::default()))
    }

    /// Whether the worker has nothing left to send on a retiring stream. If so, it will send nothing more there.
    pub(crate) fn half_close(&mut self, number: u64) -> bool {
        let awaits = self.settle_queue.awaits(number) || self.reports.awaits(number);
        let Some(stream) = self.stream_mut(number) else {
            return true;
        };
        stream.half_closed = !awaits;
        stream.half_closed
    }

    /// When [`Session::next_frame`], [`Session::silent`] or [`Session::expire_leases`] has to be called next, if
    /// nothing arrives before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let heartbeats = [&self.current, &self.retiring].into_iter().flatten().map(|stream| {
            let (due_at, dead_at) = (stream.heartbeat.due_at(), stream.heartbeat.dead_at());
            if stream.half_closed {
                dead_at
            } else {
                dead_at.min(due_at)
            }
        });
        let leases = (self.unfinished > 0).then(|| self.lease_clock.ends_at());
        let sending = self.current.as_ref().and_then(|_| {
            let wakes = self.settle_queue.wake_at().into_iter().chain(self.reports.wake_at());
            wakes.min()
        });
        heartbeats.chain(leases).chain(sending).min()
    }

    pub(super) fn flow(&self) -> Flow {
        Flow {
            max_jobs: if self.draining { 0 } else { self.window.jobs() },
            max_bytes: self.options.window_bytes,
        }
    }
}
