//! Blocks that a worker was given to compute and has not announced yet.
//!
//! Between a router's pick and the engine's event lies a prefill. Whoever asks in between is told that
//! nobody holds the prompt, and equal prompts that come together are spread over all workers.
//! [`Predictions`] remembers picks for that while. What it says is a guess: it is kept beside an index,
//! never in it, and counts only behind what the index knows a worker to hold.
//!
//! There is no clock in here: whoever calls says the time, as a [`Duration`] since a moment of its own.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use kvscout::block::{BlockSize, Prompt, Shape, WorkerId};
//! use kvscout::predict::{PredictOptions, Predictions};
//!
//! # fn main() -> Result<(), kvscout::Error> {
//! let mut predictions = Predictions::new(PredictOptions::default())?;
//! let (worker, shape) = (WorkerId(7), Shape::plain(BlockSize::DEFAULT));
//! let tokens = [1; 40];
//! predictions.picked(worker, &Prompt::new(&tokens), shape, Duration::from_secs(1));
//!
//! // Nothing of it is announced yet; then its first block is.
//! let mut ask = |held, now| {
//!     predictions.beyond(&Prompt::new(&tokens), shape, &[(worker, held)], Duration::from_millis(now))
//! };
//! assert_eq!(ask(0, 1_500), [2]);
//! assert_eq!(ask(1, 1_600), [1]);
//! // Time passes.
//! assert_eq!(ask(1, 9_000), [0]);
//! # Ok(())
//! # }
//! ```

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::block::{Prompt, Shape, WorkerId};
use crate::error::Error;
use crate::hash::content::{self, DigestKey};

/// Settings of [`Predictions`].
///
/// # Defaults
///
/// 5 seconds, within which a prefill of a long prompt is announced; 262,144 blocks, some 14 MB when all
/// are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredictOptions {
    /// How long a pick counts.
    pub ttl: Duration,
    /// How many (worker, block) pairs are remembered; the oldest ones go first.
    pub most_blocks: usize,
}

impl Default for PredictOptions {
    fn default() -> PredictOptions {
        PredictOptions { ttl: Duration::from_secs(5), most_blocks: 1 << 18 }
    }
}

/// A block of a prompt with all before it, on one worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Pick(u64);

/// Picks that are not confirmed yet.
pub struct Predictions {
    options: PredictOptions,
    key: DigestKey,
    /// When each ends.
    ends: HashMap<Pick, Duration>,
    /// In the order in which they end; what was picked again, confirmed or dropped may be in it still.
    order: VecDeque<(Duration, Pick)>,
}

impl fmt::Debug for Predictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Predictions { options, ends, .. } = self;
        f.debug_struct("Predictions")
            .field("options", options)
            .field("blocks", &ends.len())
            .finish_non_exhaustive()
    }
}

impl Predictions {
    /// No picks yet.
    ///
    /// # Errors
    ///
    /// The operating system gave no randomness.
    pub fn new(options: PredictOptions) -> Result<Predictions, Error> {
        let (ends, order) = (HashMap::new(), VecDeque::new());
        Ok(Predictions { options, key: DigestKey::random()?, ends, order })
    }

    /// Remembers that a worker was picked for a prompt, cut as it cuts its blocks; how many full
    /// blocks that are. A pick of the same prompt again lasts from now on.
    ///
    /// `now` never goes back; if it does, the last one counts.
    pub fn picked(
        &mut self,
        worker: WorkerId,
        prompt: &Prompt<'_>,
        shape: Shape,
        now: Duration,
    ) -> usize {
        let end = now.saturating_add(self.options.ttl);
        let end = self.order.back().map_or(end, |&(last, _)| end.max(last));
        let mut prefixes = Prefixes::new(prompt, shape);
        let blocks = prefixes.len();
        for block in 0..blocks.min(self.options.most_blocks) {
            let pick = prefixes.on(&self.key, worker, block);
            if self.ends.get(&pick) == Some(&end) {
                continue;
            }
            while self.order.len() >= self.options.most_blocks {
                self.drop_first();
            }
            self.ends.insert(pick, end);
            self.order.push_back((end, pick));
        }
        blocks
    }

    /// For each worker that holds so many leading blocks of a prompt, how many more it was given to
    /// compute, one after the other. Workers that cut blocks differently are asked about apart.
    ///
    /// What a worker holds is confirmed, and no longer predicted: if the engine drops it, it is gone.
    pub fn beyond(
        &mut self,
        prompt: &Prompt<'_>,
        shape: Shape,
        workers: &[(WorkerId, u32)],
        now: Duration,
    ) -> Vec<u32> {
        self.expire(now);
        if self.ends.is_empty() {
            return vec![0; workers.len()];
        }
        let Predictions { key, ends, .. } = self;
        let mut prefixes = Prefixes::new(prompt, shape);
        let mut beyond = Vec::with_capacity(workers.len());
        for &(worker, held) in workers {
            let held = (held as usize).min(prefixes.len());
            // Picks cover a prompt from its beginning, and what was confirmed of them is gone: what is left
            // ends where either way comes to a block that is not there.
            for block in 0..held {
                if ends.remove(&prefixes.on(key, worker, block)).is_none() {
                    break;
                }
            }
            for block in (0..held).rev() {
                if ends.remove(&prefixes.on(key, worker, block)).is_none() {
                    break;
                }
            }
            let rest = held..prefixes.len();
            let more =
                rest.take_while(|&block| ends.contains_key(&prefixes.on(key, worker, block)));
            beyond.push(more.count() as u32);
        }
        beyond
    }

    /// How many (worker, block) pairs are remembered.
    pub fn blocks(&self) -> usize {
        self.ends.len()
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now: Duration) {
        while self.order.front().is_some_and(|&(end, _)| end <= now) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        let Some((end, pick)) = self.order.pop_front() else { return };
        // Unless it was picked again since.
        if self.ends.get(&pick) == Some(&end) {
            self.ends.remove(&pick);
        }
    }
}

/// A prompt's blocks, each with everything before it, as far as they were asked for.
struct Prefixes<'p> {
    prompt: &'p Prompt<'p>,
    shape: Shape,
    known: Vec<u64>,
}

impl<'p> Prefixes<'p> {
    fn new(prompt: &'p Prompt<'p>, shape: Shape) -> Prefixes<'p> {
        Prefixes { prompt, shape, known: Vec::new() }
    }

    fn len(&self) -> usize {
        self.shape.blocks_in(self.prompt.token_ids.len())
    }

    fn on(&mut self, key: &DigestKey, worker: WorkerId, block: usize) -> Pick {
        while self.known.len() <= block {
            let at = self.known.len();
            let size = self.shape.size.tokens();
            let (start, end) = (at * size, (at + 1) * size);
            let tokens = self.prompt.token_ids;
            let ahead = &tokens[end..end + self.shape.lookahead as usize];
            let extra_keys = content::extra_keys(self.prompt, self.shape, at);
            let digest = key.digest(&tokens[start..end], ahead, extra_keys);
            let before = self.known.last().copied().unwrap_or_default();
            self.known.push(mix(key, before, digest.0));
        }
        Pick(mix(key, self.known[block], u64::from(worker.0)))
    }
}

fn mix(key: &DigestKey, a: u64, b: u64) -> u64 {
    let mut sip = SipHasher13::new_with_key(&key.to_bytes());
    sip.write_u64(a);
    sip.write_u64(b);
    sip.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockSize, Lora};

    const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);
    const A: WorkerId = WorkerId(0);
    const B: WorkerId = WorkerId(1);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn with(most_blocks: usize) -> Predictions {
        Predictions::new(PredictOptions { ttl: at(1000), most_blocks }).unwrap()
    }

    fn beyond(
        p: &mut Predictions,
        prompt: &Prompt<'_>,
        held: &[(WorkerId, u32)],
        now: u64,
    ) -> Vec<u32> {
        p.beyond(prompt, SHAPE, held, at(now))
    }

    #[test]
    fn a_pick_counts_for_its_worker_and_its_prefix_until_its_time_is_over() {
        let mut p = with(100);
        let tokens: Vec<u32> = (0..64).collect();
        assert_eq!(p.picked(A, &Prompt::new(&tokens[..50]), SHAPE, at(0)), 3);
        let whole = Prompt::new(&tokens);
        assert_eq!(beyond(&mut p, &whole, &[(A, 0), (B, 0)], 999), [3, 0]);
        let other: Vec<u32> = (0..32).chain(90..122).collect();
        assert_eq!(beyond(&mut p, &Prompt::new(&other), &[(A, 0)], 999), [2]);
        let salted = Prompt { cache_salt: Some("s"), ..whole };
        let adapted = Prompt { lora: Some(Lora { name: "l", id: None, path: None }), ..whole };
        for prompt in [&salted, &adapted, &Prompt::new(&tokens[16..])] {
            assert_eq!(beyond(&mut p, prompt, &[(A, 0)], 999), [0]);
        }
        assert_eq!(beyond(&mut p, &whole, &[(A, 0)], 1000), [0]);
        assert_eq!((p.blocks(), p.order.len()), (0, 0));
    }

    #[test]
    fn a_pick_of_the_same_again_lasts_from_then_on() {
        let mut p = with(100);
        let tokens = [5; 32];
        let prompt = Prompt::new(&tokens);
        p.picked(A, &prompt, SHAPE, at(0));
        p.picked(A, &prompt, SHAPE, at(600));
        assert_eq!(beyond(&mut p, &prompt, &[(A, 0)], 1500), [2]);
        assert_eq!(beyond(&mut p, &prompt, &[(A, 0)], 1600), [0]);
    }

    #[test]
    fn what_was_confirmed_is_not_predicted_again_once_it_is_gone() {
        let mut p = with(100);
        let tokens = [5; 64];
        let prompt = Prompt::new(&tokens);
        p.picked(A, &prompt, SHAPE, at(0));
        assert_eq!(beyond(&mut p, &prompt, &[(A, 3)], 10), [1]);
        // The engine dropped the second and the third.
        assert_eq!(beyond(&mut p, &prompt, &[(A, 1)], 20), [0]);
        assert_eq!(p.blocks(), 1);
    }

    #[test]
    fn memory_is_bounded_whatever_is_picked_and_the_oldest_go_first() {
        let mut p = with(10);
        let prompts: Vec<Vec<u32>> = (0..50).map(|n| vec![n; 64]).collect();
        for (n, tokens) in prompts.iter().enumerate() {
            p.picked(A, &Prompt::new(tokens), SHAPE, at(n as u64));
            p.picked(A, &Prompt::new(tokens), SHAPE, at(n as u64));
            assert!(p.ends.len() <= 10 && p.order.len() <= 10);
        }
        assert_eq!(beyond(&mut p, &Prompt::new(&prompts[49]), &[(A, 0)], 60), [4]);
        assert_eq!(beyond(&mut p, &Prompt::new(&prompts[10]), &[(A, 0)], 60), [0]);
        let long: Vec<u32> = (0..16_000).collect();
        assert_eq!(p.picked(B, &Prompt::new(&long), SHAPE, at(70)), 1000);
        assert_eq!(beyond(&mut p, &Prompt::new(&long), &[(B, 0)], 70), [10]);
    }

    #[test]
    fn time_that_goes_back_ends_nothing_sooner() {
        let mut p = with(100);
        let (first, second) = ([1; 16], [2; 16]);
        p.picked(A, &Prompt::new(&first), SHAPE, at(500));
        p.picked(A, &Prompt::new(&second), SHAPE, at(0));
        assert_eq!(beyond(&mut p, &Prompt::new(&second), &[(A, 0)], 1400), [1]);
    }
}
