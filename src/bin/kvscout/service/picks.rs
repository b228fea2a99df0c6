//! What routers say they decided: counted behind what the index knows, until events confirm it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use kvscout::Error;
use kvscout::block::{BlockSize, Lora, Prompt, Shape, WorkerId};
use kvscout::predict::{PredictOptions, Predictions};
use kvscout::score::GroupRule;
use kvscout::scout::{Blocks, Request, WorkerStatus};
use parking_lot::Mutex;

use super::registering::unknown_instance;
use super::{Candidate, Question, Refusal, Row, Service};

/// Picks, and how the workers that were picked cut prompts.
#[derive(Debug)]
pub(super) struct Picks {
    inner: Mutex<Inner>,
    began: Instant,
    weight: f64,
}

#[derive(Debug)]
struct Inner {
    predictions: Predictions,
    workers: HashMap<WorkerId, Cut>,
    /// How often each worker was picked.
    counts: HashMap<WorkerId, u64>,
}

/// How a worker cuts prompts, and for which model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cut {
    shape: Shape,
    model: Option<Box<str>>,
}

impl Cut {
    fn of(status: &WorkerStatus) -> Cut {
        let groups = &status.groups;
        let full = groups.iter().find(|facts| facts.rule == GroupRule::Full);
        let size = status.registration.block_size.unwrap_or(BlockSize::DEFAULT);
        let shape = full.or(groups.first()).map_or(Shape::plain(size), |facts| facts.shape);
        Cut { shape, model: status.registration.model.as_deref().map(Box::from) }
    }

    /// The prompt as it is on the worker: of an adapter, if the request names that as its model.
    fn prompt<'a>(&self, model: Option<&'a str>, prompt: &Prompt<'a>) -> Prompt<'a> {
        let adapter = model.filter(|model| self.model.as_deref().is_some_and(|own| own != *model));
        let named = adapter.map(|name| Lora { name, id: None, path: None });
        Prompt { lora: prompt.lora.or(named), ..*prompt }
    }
}

impl Picks {
    pub(super) fn new(options: PredictOptions, weight: f64) -> Result<Picks, Error> {
        let predictions = Predictions::new(options)?;
        let (workers, counts) = (HashMap::new(), HashMap::new());
        let inner = Mutex::new(Inner { predictions, workers, counts });
        Ok(Picks { inner, began: Instant::now(), weight })
    }

    pub(super) fn forget(&self, worker: WorkerId) {
        // Its number is given to nobody else.
        let mut inner = self.inner.lock();
        inner.workers.remove(&worker);
        inner.counts.remove(&worker);
    }

    /// How often a worker was picked.
    pub(super) fn of(&self, worker: WorkerId) -> u64 {
        self.inner.lock().counts.get(&worker).copied().unwrap_or(0)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// How many (worker, block) pairs are predicted.
    pub(super) fn blocks(&self) -> usize {
        let now = self.now();
        let mut inner = self.inner.lock();
        inner.predictions.expire(now);
        inner.predictions.blocks()
    }

    /// Adds what is predicted to an answer, and ranks it anew where that changes something.
    pub(super) fn predict(&self, request: &Request<'_>, rows: &mut [Row<'_>]) {
        let Blocks::Prompt(prompt) = &request.blocks else { return };
        let now = self.now();
        let mut inner = self.inner.lock();
        let Inner { predictions, workers, .. } = &mut *inner;
        predictions.expire(now);
        if predictions.blocks() == 0 {
            workers.clear();
            return;
        }
        let mut by_cut: Vec<(&Cut, Vec<usize>)> = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let Some(cut) = workers.get(&row.ranked.worker) else { continue };
            if row.excluded {
                continue;
            }
            match by_cut.iter_mut().find(|(other, _)| *other == cut) {
                Some((_, rows)) => rows.push(n),
                None => by_cut.push((cut, vec![n])),
            }
        }
        let mut changed = false;
        for (cut, places) in by_cut {
            let held = |&n: &usize| (rows[n].ranked.worker, rows[n].ranked.score.matched_blocks);
            let held: Vec<_> = places.iter().map(held).collect();
            let prompt = cut.prompt(request.model, prompt);
            let beyond = predictions.beyond(&prompt, cut.shape, &held, now);
            let blocks = cut.shape.blocks_in(prompt.token_ids.len()).max(1);
            for (&n, more) in places.iter().zip(beyond).filter(|(_, more)| *more > 0) {
                let row = &mut rows[n];
                row.predicted_blocks = more;
                let added = f64::from(more) * self.weight;
                row.ranked.score.weighted += added;
                row.ranked.score.ratio += added / blocks as f64;
                changed = true;
            }
        }
        if changed {
            // Stable: among equals the order stays.
            rows.sort_by(|a, b| b.ranked.score.weighted.total_cmp(&a.ranked.score.weighted));
        }
    }
}

/// Counts a pick of one of those that are there.
fn count(
    counts: &mut HashMap<WorkerId, u64>,
    worker: WorkerId,
    there: impl ExactSizeIterator<Item = WorkerId>,
) {
    *counts.entry(worker).or_default() += 1;
    // Workers of a store go without a word.
    if counts.len() > there.len() {
        let there: HashSet<WorkerId> = there.collect();
        counts.retain(|worker, _| there.contains(worker));
    }
}

impl Service {
    /// Remembers that a worker was picked for a prompt; how many blocks are predicted.
    pub(crate) fn picked(&self, question: &Question, picked: &Candidate) -> Result<usize, Refusal> {
        let worker = self.one_worker(question.tenant(), picked)?;
        let statuses = self.statuses();
        let status = statuses.iter().find(|status| status.worker == worker).ok_or_else(|| {
            Refusal::UnknownWorker(format!("instance {:?} is registered no more", picked.pod))
        })?;
        let cut = Cut::of(status);
        let now = self.picks.now();
        Ok(question.with_prompt(|prompt| {
            let prompt = cut.prompt(question.model.as_deref(), &prompt);
            let mut inner = self.picks.inner.lock();
            let blocks = inner.predictions.picked(worker, &prompt, cut.shape, now);
            inner.workers.insert(worker, cut);
            count(&mut inner.counts, worker, statuses.iter().map(|status| status.worker));
            blocks
        }))
    }

    /// How many (worker, block) pairs are predicted.
    pub(crate) fn predicted_blocks(&self) -> usize {
        self.picks.blocks()
    }

    /// The worker that a pod and a rank name; the rank may be left out where there is one.
    pub(super) fn one_worker(&self, tenant: &str, named: &Candidate) -> Result<WorkerId, Refusal> {
        let Candidate { pod, rank } = named;
        match &self.workers_of(tenant, pod, *rank)[..] {
            [worker] => Ok(*worker),
            [] => Err(unknown_instance(tenant, pod, *rank)),
            several => Err(Refusal::Rank(format!(
                "pod {pod:?} has {} ranks: say which one",
                several.len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_counted_of_workers_that_are_there_and_of_no_more() {
        let mut counts = HashMap::new();
        let there = |numbers: &[u32]| numbers.iter().map(|&n| WorkerId(n)).collect::<Vec<_>>();
        for (worker, present) in [(1, there(&[1, 2])), (1, there(&[1, 2])), (2, there(&[1, 2]))] {
            count(&mut counts, WorkerId(worker), present.into_iter());
        }
        assert_eq!(counts, HashMap::from([(WorkerId(1), 2), (WorkerId(2), 1)]));
        count(&mut counts, WorkerId(3), there(&[2, 3]).into_iter());
        assert_eq!(counts, HashMap::from([(WorkerId(2), 1), (WorkerId(3), 1)]));
    }
}
