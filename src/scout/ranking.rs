//! What a query answers: workers in order, read when they are looked at.

use std::fmt;
use std::iter::FusedIterator;

use super::roster::Roster;
use super::standing::Reading;
use crate::block::WorkerId;
use crate::ingest::Trust;
use crate::score::{self, Miss, Score, Unpredictable, Weights};

/// One worker's place in the answer to a [`Request`](super::Request).
#[derive(Clone, Copy, Debug)]
pub struct Ranked<'s> {
    /// The worker.
    pub worker: WorkerId,
    /// Its pod.
    pub pod: &'s str,
    /// Its data-parallel rank.
    pub rank: u32,
    /// What it holds of the prompt.
    pub score: Score,
    /// How far that can be believed.
    pub trust: Trust,
    /// The last batch whose effect is certainly included; `None` before the first. Where `trust` is
    /// [`Trust::Exact`], `score` is that of this batch, and of none after it.
    pub as_of: Option<u64>,
}

/// The answer to a [`Request`](super::Request): every worker that was asked about, once, in this order:
/// by [`weighted`](Score::weighted) score, best first, and by worker where those are equal.
///
/// It is a view of the [`Scratch`](super::Scratch) that it was made in. Rows are put together when they
/// are read, so that workers of no interest cost nothing; most of those hold nothing of the prompt and
/// come last.
#[derive(Clone, Copy)]
pub struct Ranking<'s> {
    roster: &'s Roster,
    answer: &'s Answer,
}

impl<'s> Ranking<'s> {
    pub(super) fn new(roster: &'s Roster, answer: &'s Answer) -> Ranking<'s> {
        Ranking { roster, answer }
    }

    /// How many workers there are, those included that hold nothing.
    #[inline]
    pub fn len(&self) -> usize {
        self.answer.asked_len()
    }

    /// Whether nobody was asked about: none of the request's candidates serves the model.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first worker. It holds nothing if nobody does.
    #[inline]
    pub fn best(&self) -> Option<Ranked<'s>> {
        self.get(0)
    }

    /// The worker at this place, counted from 0.
    #[inline]
    pub fn get(&self, place: usize) -> Option<Ranked<'s>> {
        (place < self.len()).then(|| self.ranked(self.answer.row_at(place)))
    }

    /// A worker, wherever it is. Takes the time of one table lookup.
    pub fn find(&self, worker: WorkerId) -> Option<Ranked<'s>> {
        let row = self.roster.row(worker)?;
        self.answer.is_asked(row).then(|| self.ranked(row))
    }

    /// All workers, best first.
    #[inline]
    pub fn iter(&self) -> Rows<'s> {
        Rows { ranking: *self, next: 0, end: self.len() }
    }

    /// The workers that hold something, best first: those whose weighted score is above 0.
    #[inline]
    pub fn holders(&self) -> Rows<'s> {
        Rows { ranking: *self, next: 0, end: self.answer.holders }
    }

    #[inline]
    fn ranked(&self, row: usize) -> Ranked<'s> {
        let facts = &self.roster.rows()[row];
        let reading = self.answer.readings[row];
        Ranked {
            worker: self.roster.ids()[row],
            pod: &facts.pod,
            rank: facts.rank,
            score: self.answer.score(self.roster, row),
            trust: reading.trust(),
            as_of: reading.as_of(),
        }
    }
}

impl fmt::Debug for Ranking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'s> IntoIterator for Ranking<'s> {
    type Item = Ranked<'s>;
    type IntoIter = Rows<'s>;

    fn into_iter(self) -> Rows<'s> {
        self.iter()
    }
}

impl<'s> IntoIterator for &Ranking<'s> {
    type Item = Ranked<'s>;
    type IntoIter = Rows<'s>;

    fn into_iter(self) -> Rows<'s> {
        self.iter()
    }
}

/// Workers of a [`Ranking`], best first.
#[derive(Clone, Debug)]
pub struct Rows<'s> {
    ranking: Ranking<'s>,
    next: usize,
    end: usize,
}

impl<'s> Iterator for Rows<'s> {
    type Item = Ranked<'s>;

    #[inline]
    fn next(&mut self) -> Option<Ranked<'s>> {
        if self.next >= self.end {
            return None;
        }
        let ranked = self.ranking.get(self.next);
        self.next += 1;
        ranked
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Rows<'_> {}

impl FusedIterator for Rows<'_> {}

/// The score of workers that hold nothing, in the list of scores.
const NOTHING: u32 = 0;

/// What a ranking is made of, row by row of a roster.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Where each row stood.
    pub(super) readings: Vec<Reading>,
    /// Rows that were asked about, ascending; all if `all`.
    asked: Vec<u32>,
    all: bool,
    /// Each once for all rows that have it; the first is that of nothing.
    scores: Vec<Score>,
    /// How many rows have it.
    counts: Vec<u32>,
    /// By row.
    score_of: Vec<u32>,
    /// Rows, best first; empty if nobody holds anything and the order is theirs.
    order: Vec<u32>,
    holders: usize,
    prompt: Length,
    weights: Weights,
    /// Work of [`rank`](Answer::rank): scores in order; where the next row of a score's place goes.
    sorted: Vec<u32>,
    place_of: Vec<u32>,
    places: Vec<u32>,
}

/// How long the prompt is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Length {
    pub(super) tokens: usize,
    /// The tokens are only at least as many.
    pub(super) is_unknown: bool,
}

impl Answer {
    /// Begins anew: nobody holds anything.
    #[inline]
    pub(super) fn begin(
        &mut self,
        roster: &Roster,
        candidates: Option<&[WorkerId]>,
        prompt: Length,
        weights: Weights,
    ) {
        (self.prompt, self.weights) = (prompt, weights);
        self.all = candidates.is_none();
        self.asked.clear();
        let rows = candidates.into_iter().flatten().filter_map(|&worker| roster.row(worker));
        self.asked.extend(rows.map(|row| row as u32));
        let len = roster.ids().len();
        self.readings.resize(len, Reading::UNHEARD);
        self.score_of.clear();
        self.score_of.resize(len, NOTHING);
        self.scores.clear();
        self.scores.push(Score::NOTHING);
        self.counts.clear();
        self.counts.push(self.asked_len() as u32);
        self.order.clear();
        self.holders = 0;
    }

    #[inline]
    fn asked_len(&self) -> usize {
        if self.all { self.score_of.len() } else { self.asked.len() }
    }

    pub(super) fn is_asked(&self, row: usize) -> bool {
        self.all || self.asked.binary_search(&(row as u32)).is_ok()
    }

    /// The rows that were asked about, if that is not all.
    #[inline]
    pub(super) fn asked(&self) -> Option<&[u32]> {
        (!self.all).then_some(&self.asked[..])
    }

    /// The row in one of the places before ranking: those asked about, ascending.
    #[inline]
    pub(super) fn asked_at(&self, place: usize) -> usize {
        if self.all { place } else { self.asked[place] as usize }
    }

    /// How many rows were asked about.
    #[inline]
    pub(super) fn rows(&self) -> usize {
        self.asked_len()
    }

    #[inline]
    fn row_at(&self, place: usize) -> usize {
        self.order.get(place).map_or_else(|| self.asked_at(place), |&row| row as usize)
    }

    /// Adds a score, which rows may be given.
    #[inline]
    pub(super) fn add(&mut self, mut score: Score) -> u32 {
        if self.prompt.is_unknown {
            score.expected_cached_tokens = Err(Unpredictable::LengthUnknown);
        }
        self.scores.push(score);
        self.counts.push(0);
        self.scores.len() as u32 - 1
    }

    /// Gives rows that were asked about their score.
    #[inline]
    pub(super) fn give(&mut self, rows: impl IntoIterator<Item = usize>, score: u32) {
        let mut count = 0;
        for row in rows {
            let before = std::mem::replace(&mut self.score_of[row], score);
            self.counts[before as usize] -= 1;
            count += 1;
        }
        self.counts[score as usize] += count;
    }

    #[inline]
    fn score(&self, roster: &Roster, row: usize) -> Score {
        match self.score_of[row] {
            NOTHING => self.of_nothing(roster, row),
            at => self.scores[at as usize],
        }
    }

    /// What a worker that holds nothing may expect; its groups may be such that this is not 0.
    fn of_nothing(&self, roster: &Roster, row: usize) -> Score {
        let mut score = match roster.plain {
            Some(plain) if roster.rows()[row].has_group() => {
                Score { miss: Miss::of(self.prompt.tokens, plain.shape), ..Score::NOTHING }
            }
            Some(_) => Score::NOTHING,
            None => {
                let groups = &roster.rows()[row].groups.facts;
                score::score(self.prompt.tokens, groups, &[], &[], &self.weights)
            }
        };
        if self.prompt.is_unknown {
            score.expected_cached_tokens = Err(Unpredictable::LengthUnknown);
        }
        score
    }

    /// Puts the rows in order. There are few scores and many rows: the scores are sorted, and the rows,
    /// which come by worker, are counted out.
    pub(super) fn rank(&mut self) {
        let Answer { scores, counts, score_of, sorted, place_of, places, .. } = self;
        let weighted = |at: u32| scores[at as usize].weighted;
        sorted.clear();
        sorted.extend((1..scores.len() as u32).filter(|&at| weighted(at) > 0.0));
        if sorted.is_empty() {
            return;
        }
        sorted.sort_unstable_by(|&a, &b| weighted(b).total_cmp(&weighted(a)));
        // Equal scores share their places; so do all that are worth nothing, behind.
        place_of.clear();
        place_of.resize(scores.len(), sorted.len() as u32);
        places.clear();
        let (mut place, mut last) = (0, f64::NAN);
        for &at in sorted.iter() {
            if weighted(at) != last {
                last = weighted(at);
                places.push(place);
            }
            place_of[at as usize] = places.len() as u32 - 1;
            place += counts[at as usize];
        }
        places.resize(sorted.len(), 0);
        places.push(place);
        self.holders = place as usize;
        let rows = if self.all { score_of.len() } else { self.asked.len() };
        self.order.resize(rows, 0);
        let mut next = |row: u32| {
            let place = &mut places[place_of[score_of[row as usize] as usize] as usize];
            self.order[*place as usize] = row;
            *place += 1;
        };
        match self.all {
            true => (0..rows as u32).for_each(&mut next),
            false => self.asked.iter().for_each(|&row| next(row)),
        }
    }
}
