//! What is measured. Each part gives the rows of it that are wanted.

pub mod end_to_end;
pub mod exactness;
pub mod fleet;
pub mod memory;
pub mod names;
pub mod wire;

use std::ops::Range;

use crate::peer::Peer;
use crate::workload::{Fleet, Stream};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Repetitions of every figure; their median counts.
    pub reps: usize,
    /// A small fleet and short measurements, for work on the harness: no results.
    pub quick: bool,
    /// Names of the rows that are wanted.
    pub rows: Vec<&'static str>,
}

impl Options {
    /// Whether a row is wanted.
    pub fn wants(&self, row: &str) -> bool {
        self.rows.contains(&row)
    }

    /// Whether any of these rows is wanted.
    pub fn wants_any(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.wants(row))
    }

    /// A fleet of engines with mid-size pools; in a quick run a small one.
    pub fn fleet(&self, workers: usize, churn: usize) -> Fleet {
        let (workers, pool, churn) =
            if self.quick { (workers / 4, 4096, churn / 8) } else { (workers, 16_384, churn) };
        Fleet { workers, pool, system_prompts: 32, share: true, churn, seed: 7 }
    }

    /// Milliseconds of one repetition of a lookup figure.
    pub fn budget(&self) -> u128 {
        if self.quick { 30 } else { 150 }
    }
}

/// How many events are in an index's own types at a time.
const CHUNK: usize = 40_000;

/// Applies a stretch of the stream; CPU seconds.
pub fn feed<P: Peer>(
    peer: &P,
    writer: &mut P::Writer,
    stream: &Stream,
    range: Range<usize>,
) -> f64 {
    let starts = range.clone().step_by(CHUNK);
    let chunks = starts.map(|start| start..(start + CHUNK).min(range.end));
    chunks.map(|chunk| peer.apply(writer, peer.events(stream, chunk), || ())).sum()
}

/// Says on the error stream what is being done.
pub fn progress(what: &str) {
    eprintln!("# {what}");
}
