//! Live batches that wait for the ones before them.

use std::collections::VecDeque;

use super::Mark;

/// A batch that was held back, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub seq: u64,
    /// Its bytes, as they came.
    pub payload: Box<[u8]>,
}

/// Batches in the order of their numbers, within bounds.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldBack {
    batches: VecDeque<(Mark, Box<[u8]>)>,
    bytes: usize,
}

impl HeldBack {
    /// Adds a batch whose number is above all others; whether there was room for it.
    pub(super) fn push(
        &mut self,
        mark: Mark,
        payload: &[u8],
        max_batches: usize,
        max_bytes: usize,
    ) -> bool {
        if self.batches.len() >= max_batches || payload.len() > max_bytes.saturating_sub(self.bytes)
        {
            return false;
        }
        self.bytes += payload.len();
        self.batches.push_back((mark, payload.into()));
        true
    }

    /// The first one.
    pub(super) fn front(&self) -> Option<&Mark> {
        self.batches.front().map(|(mark, _)| mark)
    }

    /// Takes the first one out.
    pub(super) fn pop(&mut self) -> Option<(Mark, Box<[u8]>)> {
        let (mark, payload) = self.batches.pop_front()?;
        self.bytes -= payload.len();
        Some((mark, payload))
    }

    /// Drops those up to a number.
    pub(super) fn drop_through(&mut self, seq: u64) {
        while self.front().is_some_and(|mark| mark.seq <= seq) {
            self.pop();
        }
    }

    /// Drops all; returns how many there were.
    pub(super) fn clear(&mut self) -> u64 {
        let dropped = self.batches.len() as u64;
        // The memory goes as well: most workers hold nothing back, ever again.
        *self = HeldBack::default();
        dropped
    }

    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
