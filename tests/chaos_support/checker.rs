//! Holds every answer against the oracle.
//!
//! An answer does not say which life of an engine it is about. It is right if it equals what the engine
//! held as of the batch that it names, in a life that kvscout may still believe in. That is any life from
//! the worker's **floor** on to the present one; the floor rises with all that shows what kvscout knows:
//!
//! * A kvscout that was just started knows nothing but a snapshot, which nobody has confirmed to it. It
//!   can only believe in the lives that there are from its start on.
//! * Whoever has asked a life's replay socket has doubts about the lives before, and only the present one
//!   can dispel them. This counts for questions that are sent after the request was received.
//! * An answer that only fits later lives shows that kvscout has got there. It never goes back.
//!
//! Between its restart and the moment when kvscout hears of it, nobody can know that an engine has died:
//! then its last life is what an answer is about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::engine::{Facts, Fleet};

/// One row of an answer.
#[derive(Debug, Deserialize)]
struct Row {
    worker: String,
    matched_blocks: u32,
    expected_cached_tokens: Option<u64>,
    as_of: Option<u64>,
    trust: String,
}

/// What the last answer said of a worker.
pub(crate) struct Seen {
    at: Instant,
    pub(crate) trust: String,
    pub(crate) as_of: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    workers: Vec<Row>,
}

pub(crate) struct Checker {
    fleet: Arc<Fleet>,
    facts: Vec<Arc<Facts>>,
    bodies: Vec<String>,
    floors: Vec<usize>,
    /// How each worker was last seen.
    pub(crate) seen: Vec<Option<Seen>>,
    began: Instant,
    pub(crate) answers: u64,
    /// Rows that said `exact`.
    pub(crate) exact: u64,
    /// Rows that said so about a batch, and that some blocks are held.
    pub(crate) telling: u64,
    /// What was wrong with rows that said so, the first ones.
    pub(crate) wrong: Vec<String>,
    pub(crate) wrong_rows: u64,
    /// Summed over workers.
    pub(crate) time: BTreeMap<String, Duration>,
}

/// Wrong rows that are described.
const DESCRIBED: usize = 20;

impl Checker {
    pub(crate) fn new(fleet: &Arc<Fleet>, facts: Vec<Arc<Facts>>) -> Checker {
        let questions = fleet.questions.iter();
        let body = |tokens: &Vec<u32>| json!({ "model": "m", "token_ids": tokens }).to_string();
        Checker {
            fleet: Arc::clone(fleet),
            bodies: questions.map(|question| body(&question.tokens)).collect(),
            floors: vec![0; facts.len()],
            seen: facts.iter().map(|_| None).collect(),
            facts,
            began: Instant::now(),
            answers: 0,
            exact: 0,
            telling: 0,
            wrong: Vec::new(),
            wrong_rows: 0,
            time: BTreeMap::new(),
        }
    }

    /// kvscout is about to be started.
    pub(crate) fn starts(&mut self) {
        for (engine, floor) in self.floors.iter_mut().enumerate() {
            *floor = self.fleet.oracle.life(engine);
        }
        self.seen.fill_with(|| None);
    }

    /// Asks one question and checks the answer. Returns whether it says all there is to say: every
    /// worker is exact as of the last batch of its engine's present life; and how
    /// long it took. Without an answer, an error.
    pub(crate) fn ask(
        &mut self,
        client: &mut Client,
        question: usize,
    ) -> Result<(bool, Duration), String> {
        // Before the question is sent: what is heard of later says nothing about the answer.
        for (floor, facts) in self.floors.iter_mut().zip(&self.facts) {
            *floor = facts.asked_life.load(SeqCst).max(*floor);
        }
        let sent = Instant::now();
        let (status, body) =
            client.score(&self.bodies[question]).map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(format!("{status}: {body}"));
        }
        let took = sent.elapsed();
        let answer: Answer = serde_json::from_str(&body).unwrap();
        self.answers += 1;
        let mut complete = answer.workers.len() == self.facts.len();
        for row in &answer.workers {
            let engine: usize = row.worker.strip_prefix('e').unwrap().parse().unwrap();
            self.note(engine, row);
            if row.trust == "exact" {
                self.exact += 1;
                self.telling += u64::from(row.as_of.is_some() && row.matched_blocks > 0);
                self.check(engine, question, row);
            }
            let last = self.facts[engine].next.load(SeqCst).checked_sub(1);
            let life = self.fleet.oracle.life(engine);
            let held = self.fleet.oracle.held(engine, life, question, last);
            complete &= row.trust == "exact" && row.as_of == last;
            complete &= held == [Some(row.matched_blocks)];
        }
        Ok((complete, took))
    }

    fn note(&mut self, engine: usize, row: &Row) {
        let now = Instant::now();
        let seen = Seen { at: now, trust: row.trust.clone(), as_of: row.as_of };
        if let Some(last) = self.seen[engine].replace(seen) {
            *self.time.entry(last.trust).or_default() += now - last.at;
        }
    }

    fn check(&mut self, engine: usize, question: usize, row: &Row) {
        let floor = self.floors[engine];
        let held = self.fleet.oracle.held(engine, floor, question, row.as_of);
        let cached = self.fleet.questions[question].cached_tokens(row.matched_blocks);
        let fits = held.iter().position(|held| *held == Some(row.matched_blocks));
        match fits.filter(|_| row.expected_cached_tokens == Some(cached)) {
            Some(later) => self.floors[engine] = floor + later,
            None => {
                self.wrong_rows += 1;
                if self.wrong.len() < DESCRIBED {
                    let after = self.began.elapsed();
                    self.wrong.push(format!(
                        "after {after:.1?}, question {question}: {row:?}; held in its lives from \
                         {floor} on: {held:?}, of them cached {cached} tokens"
                    ));
                }
            }
        }
    }

    /// Seconds that workers were seen with this trust, summed over all.
    pub(crate) fn seconds(&self, trust: &str) -> f64 {
        self.time.get(trust).map_or(0.0, Duration::as_secs_f64)
    }
}
