//! Scores against what the simulated engines hold.

use serde_json::{Value, json};

use crate::peer::{Peer, Ranker};
use crate::query::Query;
use crate::workload::Stream;

/// (prompt, worker) pairs and how many of them were scored wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wrong {
    /// Pairs where the worker holds something or is said to.
    pub pairs: usize,
    /// Scored above the truth.
    pub over: usize,
    /// Scored below it.
    pub under: usize,
}

impl Wrong {
    /// Wrong pairs; not a number when nothing was compared.
    pub fn figure(self) -> f64 {
        if self.pairs == 0 { f64::NAN } else { (self.over + self.under) as f64 }
    }

    /// Whether something was compared and all of it was right.
    pub fn is_exact(self) -> bool {
        self.figure() == 0.0
    }

    /// Both together.
    pub fn and(self, other: Wrong) -> Wrong {
        Wrong {
            pairs: self.pairs + other.pairs,
            over: self.over + other.over,
            under: self.under + other.under,
        }
    }

    /// As JSON.
    pub fn json(self) -> Value {
        json!({"pairs": self.pairs, "over": self.over, "under": self.under})
    }

    fn count(&mut self, stream: &Stream, query: &Query, leading: &[u32]) {
        for (worker, &scored) in leading.iter().enumerate() {
            let held = stream.depth_on(worker, &query.names);
            self.pairs += usize::from(held > 0 || scored > 0);
            self.over += usize::from(scored > held);
            self.under += usize::from(scored < held);
        }
    }
}

/// What an index says of prompts against the truth.
pub fn index<P: Peer>(peer: &P, stream: &Stream, queries: &[Query]) -> Wrong {
    let mut wrong = Wrong::default();
    let mut answer = P::Answer::default();
    for query in queries {
        let mut leading = vec![0; stream.held.len()];
        peer.lookup(&peer.prompt(query), &mut answer);
        peer.leading(&answer, &mut leading);
        wrong.count(stream, query, &leading);
    }
    wrong
}

/// What a router's whole path says of prompts against the truth.
pub fn ranker<R: Ranker>(ranker: &R, stream: &Stream, queries: &[Query]) -> Wrong {
    let mut wrong = Wrong::default();
    for query in queries {
        let mut leading = vec![0; stream.held.len()];
        ranker.check(&query.tokens(), &mut leading);
        wrong.count(stream, query, &leading);
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::feed;
    use crate::chain_index::Chains;
    use crate::ours::Ours;
    use crate::peer::Seeds;
    use crate::query::next_turns;
    use crate::rng::Rng;
    use crate::workload::{Fleet, Kind, simulate};

    /// What an index gets wrong that has seen all events but those of a kind after the fill.
    fn without<P: Peer>(unseen: Option<Kind>) -> Wrong {
        let fleet =
            Fleet { workers: 4, pool: 1024, system_prompts: 4, share: true, churn: 4000, seed: 1 };
        let stream = simulate(&fleet);
        let peer = P::new(fleet.workers, Seeds::Shared);
        let mut writer = peer.writer();
        for at in 0..stream.events.len() {
            if at < stream.fill_end || unseen != Some(stream.events[at].kind) {
                feed(&peer, &mut writer, &stream, at..at + 1);
            }
        }
        index(&peer, &stream, &next_turns(&stream, 100, &mut Rng::new(2)))
    }

    #[test]
    fn an_index_that_saw_everything_is_right() {
        assert!(without::<Chains>(None).is_exact());
        assert!(without::<Ours>(None).is_exact());
    }

    #[test]
    fn an_index_that_missed_removals_scores_too_high() {
        let wrong = without::<Ours>(Some(Kind::Removed));
        assert!(wrong.over > 0 && wrong.under == 0, "{wrong:?}");
    }

    #[test]
    fn nothing_compared_is_not_right() {
        assert!(!Wrong::default().is_exact());
    }
}
