//! Frames that wait for their results: the worker has sent them, and the broker has not replied.

use std::collections::VecDeque;

#[derive(Debug)]
struct Frame<T> {
    stream: u64,
    sequence: u64,
    items: Vec<T>,
}

/// The frames of one kind that are in flight, in the order in which they were sent.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    frames: VecDeque<Frame<T>>,
    sequence: u64,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self {
            frames: VecDeque::new(),
            sequence: 0,
        }
    }
}

impl<T> InFlight<T> {
    /// Adds a frame with these items. Returns its sequence number.
    pub(super) fn add(&mut self, stream: u64, items: Vec<T>) -> u64 {
        self.sequence += 1;
        self.frames.push_back(Frame {
            stream,
            sequence: self.sequence,
            items,
        });
        self.sequence
    }

    /// Removes a frame and returns its items. None: no such frame was sent on this stream.
    pub(super) fn take(&mut self, stream: u64, sequence: u64) -> Option<Vec<T>> {
        let sent = |frame: &Frame<T>| frame.stream == stream && frame.sequence == sequence;
        let at = self.frames.iter().position(sent)?;
        self.frames.remove(at).map(|frame| frame.items)
    }

    /// Removes the frames of a stream that has ended. Returns their items in order.
    pub(super) fn take_stream(&mut self, stream: u64) -> Vec<T> {
        let (ended, alive): (VecDeque<_>, _) = self.frames.drain(..).partition(|frame| frame.stream == stream);
        self.frames = alive;
        ended.into_iter().flat_map(|frame| frame.items).collect()
    }

    /// Whether frames on this stream are in flight.
    pub(super) fn awaits(&self, stream: u64) -> bool {
        self.frames.iter().any(|frame| frame.stream == stream)
    }

    pub(super) fn frames(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn items(&self) -> usize {
        self.frames.iter().map(|frame| frame.items.len()).sum()
    }
}
