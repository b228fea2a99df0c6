//! What is asked of an index under test. An index gets events and prompts in its own types, made
//! outside of what is timed.

use std::ops::Range;

use crate::query::Query;
use crate::workload::Stream;

/// Whether engines call equal blocks by equal names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seeds {
    /// One hash seed for the fleet.
    Shared,
    /// A hash seed for each worker.
    PerWorker,
}

/// An index from block names and contents to workers.
pub trait Peer: Sync + Sized {
    /// What it is called in results.
    const NAME: &'static str;
    /// What one writer keeps between events.
    type Writer: Send;
    /// A stretch of the stream.
    type Events: Send;
    /// A prompt whose block contents are known.
    type Prompt: Sync;
    /// The answer of a lookup, reused where the index allows it.
    type Answer: Default;

    /// An empty index for so many workers.
    fn new(workers: usize, seeds: Seeds) -> Self;

    /// The writer of all workers.
    fn writer(&self) -> Self::Writer;

    /// Events in the index's own types.
    fn events(&self, stream: &Stream, range: Range<usize>) -> Self::Events;

    /// Applies events until readers see all of them, and returns the CPU seconds that took.
    /// `started` is called when all preparation is over.
    fn apply(&self, writer: &mut Self::Writer, events: Self::Events, started: impl FnOnce())
    -> f64;

    /// A prompt in the index's own types.
    fn prompt(&self, query: &Query) -> Self::Prompt;

    /// Reads the prompt once: a router that has just digested it has it in its cache.
    fn touch(&self, prompt: &Self::Prompt) -> u64;

    /// How far each worker holds the prompt.
    fn lookup(&self, prompt: &Self::Prompt, answer: &mut Self::Answer);

    /// Sets each worker's leading blocks from an answer; workers that are not in it stay.
    fn leading(&self, answer: &Self::Answer, leading: &mut [u32]);

    /// (block, worker) entries the index says it has, if it counts them.
    fn entries(&self) -> Option<usize>;
}

/// A router's whole path from a prompt's tokens to what workers hold of it.
pub trait Ranker {
    /// What it is called in results.
    const NAME: &'static str;
    /// Memory of a caller's requests.
    type Answer: Default;

    /// Ranks, or at least scores, the workers; whoever hands rows out one by one has those of all
    /// workers that hold something read.
    fn rank(&self, tokens: &[u32], answer: &mut Self::Answer);

    /// Sets each worker's leading blocks; workers that hold nothing stay.
    fn check(&self, tokens: &[u32], leading: &mut [u32]);
}
