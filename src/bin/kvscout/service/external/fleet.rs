//! Workers that a bridge recovers: it says which there are, hands over all that each holds, and from there on
//! tells every change by its number.
//!
//! Invariant: a worker with a snapshot holds what the changes up to its number amount to; with a gap it holds
//! nothing until the next snapshot.

use std::collections::HashSet;

use kvscout::block::Tier;

use super::lives::Life;
use super::{Applied, CacheSpec, External, Inner, Reported, Told};

/// One of the workers that there are.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// The worker.
    pub(crate) worker: String,
    /// What routers call it; empty if they do not know it.
    pub(crate) address: String,
    /// What its cache is made of, if that is told.
    pub(crate) spec: Option<CacheSpec>,
}

/// All that a worker holds.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    /// The worker.
    pub(crate) expected: Expected,
    /// Its life.
    pub(crate) epoch: String,
    /// The last change that is in it.
    pub(crate) seq: u64,
    /// By tier.
    pub(crate) blocks: Vec<(Tier, Vec<Reported>)>,
}

/// How many workers there are, and how many of them have a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) total: u32,
    pub(crate) ready: u32,
}

/// Why a change or a snapshot is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unready {
    /// Nobody has said that there is such a worker.
    Unexpected,
    /// There is no snapshot of this life.
    NoSnapshot,
    /// Changes are missing; what the worker held is dropped.
    Gap {
        /// The one that was the next.
        next: u64,
    },
}

/// How far a recovered worker is known.
#[derive(Clone, Debug, Default)]
pub(super) enum Recovery {
    /// Its bridge does not recover it.
    #[default]
    None,
    /// It was said to be there.
    Expected,
    /// Its snapshot, and every change up to this one of this life.
    Ready { epoch: String, last: u64 },
}

impl External {
    /// Says which workers there are. What others held is dropped.
    pub(crate) fn expect(&self, workers: Vec<Expected>) -> Coverage {
        let mut inner = self.inner.write();
        let named: HashSet<&str> = workers.iter().map(|worker| worker.worker.as_str()).collect();
        let gone = inner.numbers.iter().filter(|(id, _)| !named.contains(&***id));
        let gone = gone.map(|(_, &number)| number);
        // Whoever is gone already was heard of at 0.
        let gone: Vec<u32> = gone.filter(|&n| inner.workers[n as usize].heard > 0).collect();
        for number in gone {
            inner.empty(number, Recovery::None);
            let worker = &mut inner.workers[number as usize];
            // The first to make way for another one; routers hear of it no more.
            (worker.address, worker.spec, worker.heard) = ("".into(), None, 0);
        }
        let total = named.len() as u32;
        let mut ready = HashSet::new();
        for Expected { worker, address, spec } in workers {
            let number = inner.number(&worker);
            let worker = &mut inner.workers[number as usize];
            (worker.address, worker.spec) = (address.into(), spec);
            match worker.recovery {
                Recovery::None => worker.recovery = Recovery::Expected,
                Recovery::Expected => {}
                Recovery::Ready { .. } => drop(ready.insert(number)),
            }
        }
        Coverage { total, ready: ready.len() as u32 }
    }

    /// Takes all that a worker holds in place of what was known of it.
    pub(crate) fn replace(&self, whole: Whole) -> Result<(), Unready> {
        let Whole { expected: Expected { worker, address, spec }, epoch, seq, blocks } = whole;
        let mut inner = self.inner.write();
        let number = inner.expected(&worker)?;
        inner.empty(number, Recovery::Ready { epoch, last: seq });
        let worker = &mut inner.workers[number as usize];
        (worker.address, worker.spec) = (address.into(), spec);
        for (tier, blocks) in blocks {
            inner.report(number, tier, &blocks);
            inner.make_room(self.most);
        }
        inner.tidy();
        Ok(())
    }

    /// Applies the change after the last one of a recovered worker.
    pub(crate) fn apply_next(&self, told: Told) -> Result<Applied, Unready> {
        let mut inner = self.inner.write();
        let number = inner.expected(&told.worker)?;
        let worker = &mut inner.workers[number as usize];
        let last = match &mut worker.recovery {
            Recovery::Ready { epoch, last } if *epoch == told.epoch => last,
            _ => return Err(Unready::NoSnapshot),
        };
        if told.seq <= *last {
            return Ok(Applied { seq: *last, duplicate: true });
        }
        let next = *last + 1;
        if told.seq != next {
            inner.empty(number, Recovery::Expected);
            return Err(Unready::Gap { next });
        }
        *last = next;
        (worker.address, worker.spec) = (told.address.into(), told.spec);
        inner.change(number, told.changes, self.most);
        Ok(Applied { seq: next, duplicate: false })
    }
}

impl Inner {
    /// The number of a worker that was said to be there, which was heard now.
    fn expected(&mut self, id: &str) -> Result<u32, Unready> {
        let number = *self.numbers.get(id).ok_or(Unready::Unexpected)?;
        if let Recovery::None = self.workers[number as usize].recovery {
            return Err(Unready::Unexpected);
        }
        Ok(self.number(id))
    }

    /// Drops what a worker holds.
    fn empty(&mut self, number: u32, recovery: Recovery) {
        let worker = &mut self.workers[number as usize];
        worker.rounds.iter_mut().for_each(|round| *round = round.wrapping_add(1));
        (worker.life, worker.recovery) = (Life::default(), recovery);
        self.has_stale = true;
    }
}
