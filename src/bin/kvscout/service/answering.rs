//! Who holds how much of a prompt, and how far that can be believed.

use std::cell::RefCell;
use std::time::Instant;

use kvscout::Error;
use kvscout::ingest::zmq::SourceStatus;
use kvscout::ingest::{Reason, Trust};
use kvscout::score::Score;
use kvscout::scout::{Blocks, Ranked, Ranking, Request, Scratch};

use super::{Refusal, Service};
use crate::config::OnGap;
use crate::intake::Feed;
use crate::metrics::{Lookup, Outcome};

/// One worker in an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'s> {
    /// The worker, and what it holds. Its weighted score includes what is predicted.
    pub(crate) ranked: Ranked<'s>,
    /// Leading blocks beyond those that it holds which it was given to compute lately.
    pub(crate) predicted_blocks: u32,
    /// Whether it is left out of the ranking because it did not deliver what it announced.
    pub(crate) quarantined: bool,
    /// Whether it counts as holding nothing, for that or any other reason.
    pub(crate) excluded: bool,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Service {
    /// Scores, and hands the ranked workers to `read`.
    pub(crate) fn score<T>(
        &self,
        request: &Request<'_>,
        read: impl FnOnce(&[Row<'_>]) -> T,
    ) -> Result<T, Refusal> {
        let start = Instant::now();
        let answer = SCRATCH.with_borrow_mut(|scratch| {
            let ranked = self.rank(request, scratch)?;
            self.metrics.score_seconds.observe(start.elapsed().as_secs_f64());
            let mut rows = self.believed(ranked);
            self.count_lookup(request, &rows);
            self.picks.predict(request, &mut rows);
            Ok::<T, Error>(read(&rows))
        });
        Ok(answer?)
    }

    /// Counts what a lookup came to, before anything is predicted.
    fn count_lookup(&self, request: &Request<'_>, rows: &[Row<'_>]) {
        let tokens = match &request.blocks {
            Blocks::Prompt(prompt) => prompt.token_ids.len(),
            Blocks::Names { names, block_size } => names.len() * block_size.tokens(),
            Blocks::Local { hashes, block_size } => hashes.len() * block_size.tokens(),
        };
        let most = rows.iter().map(|row| row.ranked.score.matched_blocks).max();
        let first = rows.first().map(|row| row.ranked.score.expected_cached_tokens);
        self.metrics.count_lookup(Lookup {
            tokens: tokens as u64,
            most_blocks: most.unwrap_or(0),
            outcome: outcome(rows),
            expected_tokens: first.unwrap_or(Ok(0)),
        });
    }

    /// The answer with the trust of workers that were never heard of, and without what workers hold that
    /// may have lost it, or that do not deliver.
    fn believed<'r>(&self, ranking: Ranking<'r>) -> Vec<Row<'r>> {
        let unheard = |row: &Row<'_>| is_unheard(row.ranked.trust, row.ranked.as_of);
        let row = |ranked| Row { ranked, predicted_blocks: 0, quarantined: false, excluded: false };
        let mut rows: Vec<Row<'r>> = ranking.iter().map(row).collect();
        if rows.iter().any(unheard) {
            let feeds = self.switchboard.feeds.lock();
            for Row { ranked, .. } in rows.iter_mut().filter(|row| unheard(row)) {
                let feed = feeds.get(&ranked.worker);
                ranked.trust =
                    trust(ranked.trust, ranked.as_of, feed, self.source_of(feed).as_ref());
            }
        }
        for worker in self.receipts.quarantined(Instant::now()) {
            let row = rows.iter_mut().find(|row| row.ranked.worker == worker);
            row.into_iter().for_each(|row| row.quarantined = true);
        }
        let excludes = self.on_gap == OnGap::Exclude;
        let is_out = |row: &Row<'_>| row.quarantined || excludes && may_be_gone(row.ranked.trust);
        if rows.iter().any(is_out) {
            for row in rows.iter_mut().filter(|row| is_out(row)) {
                (row.ranked.score, row.excluded) = (Score::NOTHING, true);
            }
            // Stable: among equals the order stays.
            rows.sort_by(|a, b| b.ranked.score.weighted.total_cmp(&a.ranked.score.weighted));
        }
        rows
    }
}

/// How far a worker can be believed, the link to it considered: before its first batch, nothing is
/// known of an engine that we do not reach. Later, `as_of` says what an answer rests on.
pub(super) fn trust(
    trust: Trust,
    as_of: Option<u64>,
    feed: Option<&Feed>,
    source: Option<&SourceStatus>,
) -> Trust {
    let reached = source.is_some_and(|source| source.up);
    match feed {
        Some(Feed::Source { .. }) if is_unheard(trust, as_of) && !reached => Trust::Silent,
        _ => trust,
    }
}

/// What a lookup came to; of whoever is excluded nothing counts.
fn outcome(rows: &[Row<'_>]) -> Outcome {
    if rows.iter().any(|row| row.ranked.score.matched_blocks > 0) {
        return Outcome::Hit;
    }
    let best = rows.iter().find(|row| !row.excluded).or(rows.first());
    match best.map(|row| row.ranked.score.miss) {
        None => Outcome::NoWorker,
        Some(Some(why)) => Outcome::Never(why),
        Some(None) => Outcome::Miss,
    }
}

/// Whether no batch of a worker has come: one that was applied leaves a number or another trust.
fn is_unheard(trust: Trust, as_of: Option<u64>) -> bool {
    trust == Trust::Exact && as_of.is_none()
}

/// Whether a worker may hold less than the index shows.
fn may_be_gone(trust: Trust) -> bool {
    trust == Trust::Silent || trust.reason().is_some_and(Reason::may_hold_less)
}
