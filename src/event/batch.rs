//! Batches: the outermost array, and one event after the other.

use std::iter::FusedIterator;

use super::error::{DecodeError, DecodeErrorKind, Field};
use super::fields::wrong_type;
use super::msgpack::{Reader, Value};
use super::{Event, vllm};
use crate::block::TokenId;

/// What a payload may cost. Nothing is allocated in decoding; the limits bound time, and what a
/// caller would allocate for the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a payload. Default 16 MiB: a store of a million one-token pages takes 15 MB, a
    /// full step of vLLM's far below 1 MB.
    pub max_frame: usize,
    /// Events of a batch. Default 2^20: no event with a hash is below 16 bytes, so that an
    /// honest batch reaches `max_frame` first.
    pub max_events: usize,
    /// Hashes of an event. Default 2^20: a prompt of a million tokens in SGLang's pages of one
    /// token.
    pub max_hashes: usize,
    /// Levels of nesting within a value that is ignored, and within a block's extra keys. Default
    /// 16, where engines use 2; above 64 counts as 64.
    pub max_depth: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_frame: 16 << 20, max_events: 1 << 20, max_hashes: 1 << 20, max_depth: 16 }
    }
}

/// A batch of events as it came from the wire: `[timestamp, [events..], rank]`, further elements
/// ignored.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    timestamp: f64,
    /// At the first event.
    events: Reader<'a>,
    len: usize,
    /// Elements of the batch after the events.
    tail: usize,
    limits: Limits,
}

impl<'a> Batch<'a> {
    /// Reads the head of a batch; the events are decoded by [`Batch::events`].
    ///
    /// # Errors
    ///
    /// The payload is no batch, or more than `limits` allow. A payload cut off after its head is a
    /// batch: its events come up to the cut.
    pub fn parse(payload: &'a [u8], limits: &Limits) -> Result<Batch<'a>, DecodeError> {
        if payload.len() > limits.max_frame {
            let (size, limit) = (payload.len(), limits.max_frame);
            return Err(DecodeError {
                at: 0,
                kind: DecodeErrorKind::FrameTooLarge { size, limit },
            });
        }
        let mut reader = Reader::new(payload);
        let elements = match reader.open()? {
            Value::Array(n) if n >= 2 => n,
            other => return Err(wrong_type(0, Field::Batch, other)),
        };
        let at = reader.at();
        let timestamp = match reader.value()? {
            Value::Float(seconds) => seconds,
            Value::Unsigned(n) => n as f64,
            Value::Negative(n) => n as f64,
            other => return Err(wrong_type(at, Field::Timestamp, other)),
        };
        let at = reader.at();
        let len = match reader.open()? {
            Value::Array(len) => len,
            other => return Err(wrong_type(at, Field::Events, other)),
        };
        if len > limits.max_events {
            let limit = limits.max_events;
            return Err(DecodeError {
                at,
                kind: DecodeErrorKind::TooManyEvents { found: len, limit },
            });
        }
        Ok(Batch { timestamp, events: reader, len, tail: elements - 2, limits: *limits })
    }

    /// When the engine sent the batch, as the publisher wrote it: seconds since the epoch from
    /// vLLM and SGLang, milliseconds from Mooncake.
    pub fn timestamp(&self) -> f64 {
        self.timestamp
    }

    /// The data-parallel rank that the batch claims: absent in vLLM 0.9.0, always there since
    /// 0.9.2, nil from some SGLang versions.
    ///
    /// It stands behind the events, so that every call walks over all of them. `None` also when the
    /// payload breaks before it; [`Batch::events`] tells.
    pub fn rank(&self) -> Option<u32> {
        if self.tail == 0 {
            return None;
        }
        let mut reader = self.events;
        for _ in 0..self.len {
            reader.pass_over().ok()?;
        }
        rank(&mut reader).ok()?
    }

    /// How many events the batch claims to have. A cut payload holds fewer, so nothing should be
    /// sized by this.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch has no events.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The events, decoded one after the other.
    pub fn events(&self) -> Events<'a> {
        Events { reader: self.events, left: self.len, tail: Some(self.tail), limits: self.limits }
    }
}

/// Iterator over the events of a [`Batch`].
///
/// An event that cannot be decoded is one `Err`, and the next event follows. Where the payload
/// itself is broken, so that nobody knows where the next event starts, one `Err` ends it. The rank
/// and the end of the payload are looked at last; what is wrong there is an `Err`, too. Hence a
/// batch took effect completely exactly if no `Err` was seen.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    reader: Reader<'a>,
    left: usize,
    /// Elements after the events; `None` when they were looked at, or never will be.
    tail: Option<usize>,
    limits: Limits,
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, DecodeError>;

    fn next(&mut self) -> Option<Result<Event<'a>, DecodeError>> {
        self.step(None)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left + usize::from(self.tail.is_some())))
    }
}

impl FusedIterator for Events<'_> {}

impl<'a> Events<'a> {
    /// The next event, with the token ids of a [`Stored`](super::Stored) in `ids`: read where they
    /// are checked, which is half the work of [`Tokens::read_into`](super::Tokens::read_into)
    /// afterwards. `ids` is empty if the event has none, or one beyond 32 bits.
    pub fn next_into(&mut self, ids: &mut Vec<TokenId>) -> Option<Result<Event<'a>, DecodeError>> {
        ids.clear();
        let event = self.step(Some(&mut *ids));
        if !matches!(event, Some(Ok(Event::Stored(_)))) {
            ids.clear();
        }
        event
    }

    fn step(&mut self, ids: Option<&mut Vec<TokenId>>) -> Option<Result<Event<'a>, DecodeError>> {
        let Some(left) = self.left.checked_sub(1) else {
            let tail = self.tail.take()?;
            return self.finish(tail).err().map(Err);
        };
        self.left = left;
        let start = self.reader;
        let mut context = vllm::Context { limits: &self.limits, ids };
        let event = vllm::event(&mut self.reader, &mut context);
        let Err(error) = event else { return Some(event) };

        self.reader = start;
        let Err(broken) = self.reader.pass_over() else { return Some(Err(error)) };
        self.left = 0;
        self.tail = None;
        Some(Err(broken))
    }

    fn finish(&mut self, tail: usize) -> Result<(), DecodeError> {
        if tail > 0 {
            rank(&mut self.reader)?;
        }
        for _ in 1..tail {
            self.reader.pass_over()?;
        }
        let at = self.reader.at();
        if self.reader.is_at_end() {
            return Ok(());
        }
        Err(DecodeError { at, kind: DecodeErrorKind::TrailingBytes })
    }
}

fn rank(reader: &mut Reader<'_>) -> Result<Option<u32>, DecodeError> {
    reader.optional(|r| r.up_to(u32::MAX, Field::DataParallelRank))
}
