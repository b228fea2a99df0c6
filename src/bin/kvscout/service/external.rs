//! Blocks that SGLang's bridges report: by hashes that mean nothing here, in a space of their own beside
//! the index.
//!
//! Invariants: never more than the given number of placements (a worker's block in a tier) after a batch;
//! a batch counts once for each life of its worker; an answer may say less than is held, never more than
//! was reported.

mod fleet;
mod lives;
mod prefix;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvscout::block::Tier;
use parking_lot::RwLock;

use self::fleet::Recovery;
pub(crate) use self::fleet::{Coverage, Expected, Unready, Whole};
use self::lives::{Life, Verdict};
use self::prefix::Scan;

/// Workers that are known at a time; one more takes the place of the one that was silent for longest.
const MOST_WORKERS: usize = 4096;

/// Placements in one answer: some 40 MB.
const LONGEST_ANSWER: usize = 1 << 20;

/// What a worker's cache is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheSpec {
    /// Which rules these are; 1 is known, and 0 means the same.
    pub(crate) version: u32,
    /// Bits of [`FULL`], [`WINDOW`], [`STATE`].
    pub(crate) components: u32,
    /// The window in tokens.
    pub(crate) window: u32,
    /// Tiers that count for each component, in that order: bits of 1 << SGLang's number of the tier.
    pub(crate) tiers: [u32; 3],
}

/// Full attention: needed on every block.
pub(crate) const FULL: u32 = 1;
/// A sliding window: needed on the last blocks.
pub(crate) const WINDOW: u32 = 2;
/// A state such as Mamba's: needed on the last block.
pub(crate) const STATE: u32 = 4;

/// A block as it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reported {
    pub(crate) hash: i64,
    /// What of it is there; 0 is the whole block.
    pub(crate) components: u32,
    /// Its tokens; 0 if that is not said.
    pub(crate) tokens: u32,
}

/// What became of blocks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    /// They are there, with what they have now.
    Report(Tier, Vec<Reported>),
    /// They are gone.
    Revoke(Tier, Vec<i64>),
    /// All are gone.
    Clear(Tier),
}

/// One message of a worker's bridge.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// The worker.
    pub(crate) worker: String,
    /// What routers call it; empty if they do not know it.
    pub(crate) address: String,
    /// Its life, if the bridge names them.
    pub(crate) epoch: String,
    /// Ascending in a life.
    pub(crate) seq: u64,
    /// What its cache is made of, if that is told.
    pub(crate) spec: Option<CacheSpec>,
    /// In order.
    pub(crate) changes: Vec<Change>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The highest number of this life.
    pub(crate) seq: u64,
    /// It had been applied before.
    pub(crate) duplicate: bool,
}

/// What one worker holds of some blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) worker: Arc<str>,
    pub(crate) address: Arc<str>,
    /// By tier, in the order of the question.
    pub(crate) tiers: BTreeMap<Tier, Vec<Reported>>,
}

/// How much one worker holds from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leading {
    pub(crate) worker: Arc<str>,
    pub(crate) address: Arc<str>,
    /// Leading blocks that it can use.
    pub(crate) blocks: u32,
}

/// The answer would be too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMuch;

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Placements, some of which may not count any more.
    pub(crate) placements: usize,
    /// Placements that made way for others.
    pub(crate) evicted: u64,
}

/// Everything that was reported.
#[derive(Debug)]
pub(crate) struct External {
    most: usize,
    hasher: RandomState,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    blocks: HashMap<i64, Block>,
    /// In which order blocks make way; some are gone, some are there twice.
    queue: VecDeque<i64>,
    numbers: HashMap<Arc<str>, u32>,
    workers: Vec<Worker>,
    /// Of all blocks, those that do not count any more included.
    placements: usize,
    /// Whether there may be some that do not count.
    has_stale: bool,
    evicted: u64,
    /// Messages so far, as a clock.
    told: u64,
}

#[derive(Debug, Default)]
struct Block {
    holders: Vec<Holder>,
    tokens: u32,
    hits: AtomicU64,
    /// Asked for since it was last about to make way.
    used: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    worker: u32,
    /// The worker's, in this tier; it counts as long as that is the same.
    round: u32,
    components: u32,
    tier: Tier,
}

#[derive(Debug)]
struct Worker {
    id: Arc<str>,
    address: Arc<str>,
    spec: Option<CacheSpec>,
    life: Life,
    /// Whether and how far its bridge recovered it.
    recovery: Recovery,
    /// How often each tier was emptied.
    rounds: [u32; 3],
    heard: u64,
}

impl Worker {
    fn holds(&self, holder: &Holder) -> bool {
        self.rounds[place(holder.tier)] == holder.round
    }
}

/// Of the three tiers that SGLang has.
fn place(tier: Tier) -> usize {
    match tier {
        Tier::Gpu => 0,
        Tier::Cpu => 1,
        _ => 2,
    }
}

impl External {
    /// Keeps so many placements.
    pub(crate) fn new(most: usize) -> External {
        External { most, hasher: RandomState::new(), inner: RwLock::default() }
    }

    /// Applies what a worker's bridge tells, unless it was applied before. A number that goes back is another life
    /// of the worker, which begins with nothing.
    pub(crate) fn apply(&self, told: Told) -> Applied {
        let sum = self.hasher.hash_one(&told.changes);
        let mut inner = self.inner.write();
        let number = inner.number(&told.worker);
        let Some(worker) = inner.workers.get_mut(number as usize) else {
            return Applied { seq: told.seq, duplicate: false };
        };
        // Without a change it is a sign of life, whatever its number.
        let verdict = match told.changes.is_empty() {
            true => Verdict::Next,
            false => worker.life.judge(&told.epoch, told.seq, sum),
        };
        if verdict == Verdict::Again {
            return Applied { seq: worker.life.last(), duplicate: true };
        }
        if *worker.address != *told.address {
            worker.address = told.address.into();
        }
        worker.spec = told.spec;
        if verdict == Verdict::Anew {
            worker.rounds.iter_mut().for_each(|round| *round = round.wrapping_add(1));
        }
        let seq = worker.life.last();
        inner.has_stale |= verdict == Verdict::Anew;
        inner.change(number, told.changes, self.most);
        Applied { seq, duplicate: false }
    }

    /// Who holds which of these blocks, by worker; `count` counts those that anyone holds.
    pub(crate) fn holdings(&self, hashes: &[i64], count: bool) -> Result<Vec<Holding>, TooMuch> {
        let inner = self.inner.read();
        let mut by_worker: BTreeMap<&str, Holding> = BTreeMap::new();
        let (mut seen, mut placements) = (HashSet::new(), 0);
        for &hash in hashes.iter().filter(|hash| seen.insert(**hash)) {
            let Some(block) = inner.blocks.get(&hash) else { continue };
            let mut is_held = false;
            for (worker, holder) in inner.live(block) {
                is_held = true;
                placements += 1;
                if placements > LONGEST_ANSWER {
                    return Err(TooMuch);
                }
                let holding = by_worker.entry(&worker.id).or_insert_with(|| Holding {
                    worker: Arc::clone(&worker.id),
                    address: Arc::clone(&worker.address),
                    tiers: BTreeMap::new(),
                });
                let components = holder.components;
                let found = Reported { hash, components, tokens: block.tokens };
                holding.tiers.entry(holder.tier).or_default().push(found);
            }
            if is_held {
                block.used.store(true, Ordering::Relaxed);
                block.hits.fetch_add(u64::from(count), Ordering::Relaxed);
            }
        }
        Ok(by_worker.into_values().collect())
    }

    /// How much workers hold from the start: the longest first, then by worker; and how many blocks were looked at.
    /// Who holds none, or has no address, is left out.
    pub(crate) fn leading(&self, hashes: &[i64]) -> (Vec<Leading>, u32) {
        let inner = self.inner.read();
        let mut scans: BTreeMap<u32, Scan> = BTreeMap::new();
        let mut read = 0;
        for (n, hash) in hashes.iter().enumerate() {
            read += 1;
            let block = inner.blocks.get(hash);
            if let Some(block) = block {
                block.used.store(true, Ordering::Relaxed);
                for (worker, holder) in inner.live(block) {
                    // Whoever lacks the first block has no prefix.
                    if n == 0 {
                        let scan = || Scan::new(worker.spec);
                        scans.entry(holder.worker).or_insert_with(scan);
                    }
                    if let Some(scan) = scans.get_mut(&holder.worker) {
                        scan.see(holder.tier, holder.components);
                    }
                }
            }
            let tokens = block.map_or(0, |block| block.tokens);
            let mut goes_on = false;
            for scan in scans.values_mut() {
                goes_on |= scan.end_block(tokens);
            }
            if !goes_on {
                break;
            }
        }
        let mut found: Vec<Leading> = scans
            .iter()
            .filter_map(|(&number, scan)| {
                let worker = inner.workers.get(number as usize)?;
                let is_told = scan.prefix() > 0 && !worker.address.is_empty();
                is_told.then(|| Leading {
                    worker: Arc::clone(&worker.id),
                    address: Arc::clone(&worker.address),
                    blocks: scan.prefix(),
                })
            })
            .collect();
        found.sort_by(|a, b| b.blocks.cmp(&a.blocks).then_with(|| a.worker.cmp(&b.worker)));
        (found, read)
    }

    /// How often blocks were counted, in the order of the question; without those that were not.
    pub(crate) fn hits(&self, hashes: &[i64]) -> Vec<(i64, u64)> {
        let inner = self.inner.read();
        let mut seen = HashSet::new();
        let count = |&hash: &i64| {
            let hits = inner.blocks.get(&hash)?.hits.load(Ordering::Relaxed);
            (hits > 0 && seen.insert(hash)).then_some((hash, hits))
        };
        hashes.iter().filter_map(count).collect()
    }

    /// How much is kept.
    pub(crate) fn load(&self) -> Load {
        let Inner { placements, evicted, .. } = *self.inner.read();
        Load { placements, evicted }
    }
}

impl Inner {
    /// The number of a worker, which was heard now.
    fn number(&mut self, id: &str) -> u32 {
        self.told += 1;
        if let Some(&number) = self.numbers.get(id) {
            self.workers[number as usize].heard = self.told;
            return number;
        }
        let id: Arc<str> = id.into();
        let mut worker = Worker {
            id: Arc::clone(&id),
            address: "".into(),
            spec: None,
            life: Life::default(),
            recovery: Recovery::None,
            rounds: [0; 3],
            heard: self.told,
        };
        let silent = match self.workers.len() < MOST_WORKERS {
            true => None,
            false => (0..self.workers.len()).min_by_key(|&n| self.workers[n].heard),
        };
        let number = match silent {
            Some(number) => {
                let old = &mut self.workers[number];
                // What the old one held does not count for the new one.
                worker.rounds = old.rounds.map(|round| round.wrapping_add(1));
                self.numbers.remove(&old.id);
                *old = worker;
                self.has_stale = true;
                number
            }
            None => {
                self.workers.push(worker);
                self.workers.len() - 1
            }
        };
        // Below MOST_WORKERS.
        let number = number as u32;
        self.numbers.insert(id, number);
        number
    }

    /// The placements of a block that count, with their workers.
    fn live<'a>(&'a self, block: &'a Block) -> impl Iterator<Item = (&'a Worker, &'a Holder)> {
        block.holders.iter().filter_map(|holder| {
            let worker = self.workers.get(holder.worker as usize)?;
            worker.holds(holder).then_some((worker, holder))
        })
    }

    /// Makes a worker's changes in order, within `most` placements.
    fn change(&mut self, number: u32, changes: Vec<Change>, most: usize) {
        for change in changes {
            match change {
                Change::Report(tier, blocks) => self.report(number, tier, &blocks),
                Change::Revoke(tier, hashes) => self.revoke(number, tier, &hashes),
                Change::Clear(tier) => {
                    if let Some(worker) = self.workers.get_mut(number as usize) {
                        let round = &mut worker.rounds[place(tier)];
                        *round = round.wrapping_add(1);
                        self.has_stale = true;
                    }
                }
            }
            self.make_room(most);
        }
        self.tidy();
    }

    fn report(&mut self, worker: u32, tier: Tier, blocks: &[Reported]) {
        let round = self.workers[worker as usize].rounds[place(tier)];
        for &Reported { hash, components, tokens } in blocks {
            let block = match self.blocks.entry(hash) {
                Entry::Occupied(block) => block.into_mut(),
                Entry::Vacant(free) => {
                    self.queue.push_back(hash);
                    free.insert(Block::default())
                }
            };
            if tokens > 0 {
                block.tokens = tokens;
            }
            let holder = Holder { worker, round, components, tier };
            let same = |other: &&mut Holder| other.worker == worker && other.tier == tier;
            match block.holders.iter_mut().find(same) {
                Some(before) => *before = holder,
                None => {
                    block.holders.push(holder);
                    self.placements += 1;
                }
            }
        }
    }

    fn revoke(&mut self, worker: u32, tier: Tier, hashes: &[i64]) {
        for &hash in hashes {
            let Entry::Occupied(mut block) = self.blocks.entry(hash) else { continue };
            let holders = &mut block.get_mut().holders;
            let before = holders.len();
            holders.retain(|holder| holder.worker != worker || holder.tier != tier);
            self.placements -= before - holders.len();
            if holders.is_empty() {
                block.remove();
            }
        }
    }

    /// Drops what does not count any more, then blocks that nobody asked for lately, the oldest first.
    fn make_room(&mut self, most: usize) {
        if self.placements > most && self.has_stale {
            self.has_stale = false;
            let Inner { blocks, workers, placements, .. } = self;
            blocks.retain(|_, block| {
                let before = block.holders.len();
                block.holders.retain(|holder| workers[holder.worker as usize].holds(holder));
                *placements -= before - block.holders.len();
                !block.holders.is_empty()
            });
        }
        while self.placements > most {
            let Some(hash) = self.queue.pop_front() else { return };
            let Entry::Occupied(block) = self.blocks.entry(hash) else { continue };
            if block.get().used.swap(false, Ordering::Relaxed) {
                self.queue.push_back(hash);
                continue;
            }
            let gone = block.remove().holders.len();
            self.placements -= gone;
            self.evicted += gone as u64;
        }
    }

    /// Keeps the queue in proportion: blocks that are revoked and reported again enter it again.
    fn tidy(&mut self) {
        if self.queue.len() > 2 * self.blocks.len() + 1024 {
            let mut seen = HashSet::with_capacity(self.blocks.len());
            self.queue.retain(|hash| self.blocks.contains_key(hash) && seen.insert(*hash));
        }
    }
}

#[cfg(test)]
mod tests;
