//! The writer: everything that changes the index, under one lock that readers never take.
//!
//! Invariant: a `Pen` exists only while that lock is held, so words of the arena have one writer.

use std::collections::VecDeque;
#[cfg(not(loom))]
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::RwLock;

use super::MemoryOptions;
use super::ahead::Ahead;
use super::arena::{Arena, Book};
use super::cut::Cuts;
use super::losers::Losers;
use super::map::Map;
use super::names::{Names, VocId};
use super::run::{EXTRAS, Run, RunId};
use super::slot::{Owner, Slots};
use super::slots::SlotBook;
use super::store::{Lane, STRETCH};
use super::sweep::STEP;
use super::sync::{Apart, AtomicU32, Ordering};
use super::table::{Place, Table};
use crate::block::{Group, Name, SpaceId, Tier, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::index::{Applied, Change, Home, Stats};

/// Batches of fewer changes end before the first eviction of the next one can be asked for in time.
const AHEAD: usize = 4;

/// What readers and the writer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) arena: Arena,
    /// Runs by (parent, offset, content of the first block); roots by (0, look-ahead, space, size).
    pub(super) kids: Table,
    pub(super) slots: Slots,
    pub(super) names: Apart<RwLock<Names>>,
    pub(super) homes: Apart<RwLock<Map<WorkerId, (Home, VocId)>>>,
    pub(super) losers: Apart<Losers>,
    /// Unplaced blocks, by space: queries need not look for any where there are none.
    unplaced: [AtomicU32; 64],
    pub(super) clock: Apart<AtomicU32>,
    keys: [u64; 2],
}

impl Shared {
    pub(super) fn new(book: &mut Book) -> Shared {
        let arena = Arena::default();
        let kids = Table::new(&arena, book);
        Shared {
            arena,
            kids,
            slots: Slots::default(),
            names: Apart::default(),
            homes: Apart::default(),
            losers: Apart::default(),
            unplaced: std::array::from_fn(|_| AtomicU32::new(0)),
            clock: Apart::default(),
            keys: keys(),
        }
    }

    /// A hash that who chooses the names cannot steer.
    #[inline]
    pub(super) fn hash(&self, name: u64) -> u64 {
        let wide = u128::from(name ^ self.keys[0]) * u128::from(self.keys[1]);
        wide as u64 ^ (wide >> 64) as u64
    }

    #[inline]
    pub(super) fn kid_hash(&self, parent: RunId, at: u32, head: u64) -> u64 {
        self.hash(head ^ self.hash(u64::from(parent.0) << 32 | u64::from(at)))
    }

    #[inline]
    pub(super) fn run(&self, id: RunId) -> Run<'_> {
        Run::at(&self.arena, id)
    }

    /// How many unplaced blocks there are in a space, and in those that share its counter.
    #[inline]
    pub(super) fn unplaced(&self, space: SpaceId) -> &AtomicU32 {
        &self.unplaced[space.0 as usize % self.unplaced.len()]
    }

    /// Coarse time, for recency.
    #[inline]
    pub(super) fn now(&self) -> u32 {
        self.clock.load(Ordering::Relaxed)
    }
}

/// Keys of hashes, for this index alone.
#[cfg(not(loom))]
fn keys() -> [u64; 2] {
    let random = RandomState::new();
    [random.hash_one(0), random.hash_one(1) | 1]
}

/// The model checker has to come by the same places in every interleaving.
#[cfg(loom)]
fn keys() -> [u64; 2] {
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9]
}

/// What only the writer knows.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) options: MemoryOptions,
    pub(super) book: Book,
    pub(super) slots: SlotBook,
    pub(super) workers: Map<WorkerId, Worker>,
    /// Every run, roots included, in no order.
    pub(super) runs: Vec<RunId>,
    /// Where the sweep under way is in `runs`.
    pub(super) cursor: usize,
    /// Copies above one, by run, block and slot.
    pub(super) extras: Map<(RunId, u32, u32), u32>,
    pub(super) born: u32,
    pub(super) blocks: u64,
    pub(super) entries: u64,
    pub(super) unplaced: u64,
    pub(super) evicted: u64,
    /// Copies given up behind holes that no `apply` has reported yet.
    pub(super) lost: u64,
    /// Bindings in `Names::dups`.
    pub(super) dups: u64,
    /// Changes whenever blocks go.
    pub(super) trims: u64,
    /// The root that a store stands on, which stays however little hangs below it.
    pub(super) pinned: RunId,
    pub(super) cuts: Cuts,
    pub(super) places: Vec<Place>,
    /// Names of removals that follow each other.
    names: Vec<Name>,
    pub(super) changes: u32,
    /// How many runs were looked at to find something to evict.
    pub(super) looks: u64,
    /// The runs that a store is at: nothing of them is evicted or trimmed.
    pub(super) busy: Vec<RunId>,
    /// Some of them may have to be trimmed.
    pub(super) untrimmed: bool,
    /// Vocabularies that nobody speaks, whose names are being forgotten, and how far the first is.
    pub(super) leaving: VecDeque<VocId>,
    pub(super) leaving_at: u64,
    /// How many children there are at each offset, of runs that have many.
    pub(super) crowds: Map<RunId, Vec<u32>>,
    /// Bytes of the lists in `crowds` and of the workers' lanes.
    pub(super) crowd_bytes: usize,
    pub(super) lane_bytes: usize,
    /// Bytes of the maps of names and of homes, and what those of names take more all at once when
    /// they grow.
    pub(super) naming: usize,
    pub(super) naming_soon: usize,
    pub(super) homes: usize,
    /// Bytes of unplaced blocks, which those count.
    pub(super) unplaced_bytes: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) home: Home,
    pub(super) voc: VocId,
    pub(super) table: Arc<Table>,
    pub(super) lanes: Vec<(Group, Tier, u32)>,
    unplaced: usize,
}

impl Worker {
    pub(super) fn lane_bytes(&self) -> usize {
        self.lanes.capacity() * size_of::<(Group, Tier, u32)>()
    }
}

impl Writer {
    pub(super) fn new(
        options: MemoryOptions,
        book: Book,
        unplaced_bytes: Arc<AtomicUsize>,
    ) -> Writer {
        Writer {
            options,
            book,
            slots: SlotBook::default(),
            workers: Map::default(),
            runs: Vec::new(),
            cursor: 0,
            extras: Map::default(),
            born: 0,
            blocks: 0,
            entries: 0,
            unplaced: 0,
            evicted: 0,
            lost: 0,
            dups: 0,
            trims: 0,
            pinned: RunId::NONE,
            cuts: Cuts::default(),
            places: Vec::new(),
            names: Vec::new(),
            changes: 0,
            looks: 0,
            busy: Vec::new(),
            untrimmed: false,
            leaving: VecDeque::new(),
            leaving_at: 0,
            crowds: Map::default(),
            crowd_bytes: 0,
            lane_bytes: 0,
            naming: 0,
            naming_soon: 0,
            homes: 0,
            unplaced_bytes,
        }
    }

    pub(super) fn unplaced_of(&self, worker: WorkerId) -> usize {
        self.workers.get(&worker).map_or(0, |w| w.unplaced)
    }

    pub(super) fn count_unplaced(&mut self, worker: WorkerId, change: i64) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.unplaced = worker.unplaced.saturating_add_signed(change as isize);
        }
    }

    pub(super) fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// The worker with the most entries in runs.
    pub(super) fn largest(&self) -> Option<(WorkerId, u64)> {
        let sizes = self.workers.keys().map(|&id| (id, self.size(id)));
        sizes.max_by_key(|&(id, entries)| (entries, id))
    }

    /// A worker's entries in runs.
    pub(super) fn size(&self, worker: WorkerId) -> u64 {
        let lanes = self.workers.get(&worker).into_iter().flat_map(|w| &w.lanes);
        lanes.map(|l| self.slots.entries(l.2)).sum()
    }

    pub(super) fn slots_of(&self, worker: WorkerId) -> Vec<u32> {
        let lanes = self.workers.get(&worker).map(|w| w.lanes.iter().map(|l| l.2).collect());
        lanes.unwrap_or_default()
    }
}

/// The right to change an index.
#[derive(Debug)]
pub(super) struct Pen<'a> {
    pub(super) shared: &'a Shared,
    pub(super) w: &'a mut Writer,
}

impl Pen<'_> {
    pub(super) fn assign(&mut self, id: WorkerId, home: Home) -> Result<(), Error> {
        let Some(worker) = self.w.workers.get(&id) else {
            let (voc, table) = self.move_in(id, home);
            let new = Worker { home, voc, table, lanes: Vec::new(), unplaced: 0 };
            self.w.workers.insert(id, new);
            return Ok(());
        };
        let (old, old_voc, old_table) = (worker.home, worker.voc, worker.table.clone());
        if old == home {
            return Ok(());
        }
        let in_runs = worker.lanes.iter().any(|l| self.w.slots.entries(l.2) > 0);
        let holds = in_runs || worker.unplaced > 0;
        if holds {
            if old.space != home.space {
                return Err(Error::invalid(format!(
                    "worker {} holds blocks in space {} and cannot move to space {}: remove it first",
                    id.0, old.space.0, home.space.0
                )));
            }
            if self.w.workers.iter().any(|(&other, w)| other != id && w.home == old) {
                return Err(Error::invalid(format!(
                    "worker {} shares vocabulary {} with other workers and cannot leave it with its \
                     blocks: remove it first",
                    id.0, old.vocabulary.0
                )));
            }
        } else {
            // Slots belong to a space for as long as they live.
            self.retire_lanes(id, None);
        }
        let (voc, table) = self.move_in(id, home);
        if let Some(worker) = self.w.workers.get_mut(&id) {
            (worker.home, worker.voc, worker.table) = (home, voc, table.clone());
        }
        if holds {
            self.move_names(id, (old_voc, &old_table), (voc, table), home);
        }
        self.move_out(old_voc);
        Ok(())
    }

    fn move_in(&mut self, id: WorkerId, home: Home) -> (VocId, Arc<Table>) {
        let (voc, table) = self.vocabulary((home.space, home.vocabulary));
        if let Some(v) = self.shared.names.write().vocabularies.get_mut(&voc) {
            v.workers += 1;
        }
        let mut homes = self.shared.homes.write();
        homes.insert(id, (home, voc));
        self.w.homes = homes.bytes();
        (voc, table)
    }

    fn move_out(&mut self, voc: VocId) {
        if let Some(v) = self.shared.names.write().vocabularies.get_mut(&voc) {
            v.workers -= 1;
        }
        self.leave_vocabulary(voc);
    }

    /// Moves everything the names of a vocabulary mean to another, and settles what can be placed
    /// there.
    fn move_names(
        &mut self,
        worker: WorkerId,
        old: (VocId, &Table),
        new: (VocId, Arc<Table>),
        home: Home,
    ) {
        while self.sweep(usize::MAX) {}
        let (voc, table) = new;
        // No lane is needed to bind and to settle; adopted orphans bring their own slots.
        let lane = Lane { worker, space: home.space, voc, table, slot: u32::MAX, adopts: true };
        let mut bindings = self.bindings(old.0, old.1);
        let mut left = Vec::new();
        bindings.retain(|&(name, place)| {
            self.unname(old.0, old.1, name, place);
            let full = self.is_full(place, voc) && !self.is_named(place, voc, name);
            if full {
                left.push((place, self.run(RunId(place.run)).born()));
            } else {
                self.bind(voc, &lane.table, RunId(place.run), place.at, name);
            }
            !full
        });
        if self.w.unplaced > 0 {
            // A block that is there is what a name means rather than a new one below its parent.
            bindings.iter().for_each(|&(name, place)| self.merge(&lane, name, place));
            self.move_orphans(old.0, &lane, &bindings);
        }
        for (place, born) in left {
            self.lose(&lane, place, born);
        }
    }

    /// A worker loses all its copies of a block that it cannot name any more.
    fn lose(&mut self, lane: &Lane, place: Place, born: u32) {
        for slot in self.w.slots_of(lane.worker) {
            if !self.is_there(place, born) || !self.holds(place, slot) {
                continue;
            }
            self.shared.losers.add(lane.worker);
            let run = self.run(RunId(place.run));
            if self.w.extras.remove(&(run.id, place.at, slot)).is_some() {
                run.set(EXTRAS, run.get(EXTRAS) - 1);
            }
            self.w.evicted += u64::from(self.drop_copy(&Lane { slot, ..lane.clone() }, place));
        }
    }

    pub(super) fn apply(&mut self, id: WorkerId, changes: &[Change<'_>]) -> Result<Applied, Error> {
        let Some(worker) = self.w.workers.get(&id) else {
            return Err(Error::new(
                ErrorKind::UnknownWorker,
                format!("worker {} has no home: assign one before its first change", id.0),
            ));
        };
        let (space, voc, table) = (worker.home.space, worker.voc, worker.table.clone());
        let mut lane = Lane { worker: id, space, voc, table, slot: 0, adopts: false };
        // The slot of the change before: most changes of a batch are of one group and tier.
        let mut last: Option<(Group, Tier, u32)> = worker.lanes.first().copied();
        let same = |last: Option<(Group, Tier, u32)>, group, tier| {
            last.filter(|l| (l.0, l.1) == (group, tier)).map(|l| l.2)
        };
        let mut applied = Applied::default();
        let mut ahead = Ahead::new(changes, self.shared, &lane.table);
        let mut rest = changes;
        while let [change, further @ ..] = rest {
            rest = further;
            self.tick();
            match change {
                Change::Store(store) => {
                    lane.slot = same(last, store.group, store.tier)
                        .unwrap_or_else(|| self.lane(id, store.group, store.tier));
                    last = Some((store.group, store.tier, lane.slot));
                    ahead.advance(Ahead::names_of(store), self.shared, &lane.table);
                    self.store(&lane, store, &mut applied);
                }
                Change::Remove { group, tier, names } => {
                    let known = same(last, *group, *tier);
                    let Some(slot) = known.or_else(|| self.find_lane(id, *group, *tier)) else {
                        applied.unknown_removals += names.len() as u64;
                        continue;
                    };
                    lane.slot = slot;
                    last = Some((*group, *tier, slot));
                    // vLLM names one block in each removal, and a chain goes from its tail: what
                    // follows is likely to be of the same run, which changes once for all of it.
                    let mut all = std::mem::take(&mut self.w.names);
                    all.clear();
                    all.extend_from_slice(names);
                    while !self.w.slots.has_dead()
                        && let [Change::Remove { group: g, tier: t, names }, further @ ..] = rest
                        && (g, t) == (group, tier)
                        && all.len() < STRETCH
                    {
                        rest = further;
                        self.tick();
                        all.extend_from_slice(names);
                    }
                    self.remove_all(&lane, &all, &mut ahead, &mut applied);
                    all.truncate(STRETCH);
                    all.shrink_to(STRETCH);
                    self.w.names = all;
                }
                Change::Clear { tier } => {
                    self.retire_lanes(id, *tier);
                    if tier.is_none() {
                        self.shared.losers.forget(id);
                    }
                    last = None;
                }
            }
            if self.is_dirty() {
                let blocks = if let Change::Store(store) = change { store.blocks.len() } else { 0 };
                self.sweep(STEP + 2 * blocks);
            }
            self.keep_within();
        }
        if applied.removed > 0 && changes.len() < AHEAD {
            self.ask_for_likely(&lane);
        }
        applied.refused += std::mem::take(&mut self.w.lost);
        Ok(applied)
    }

    fn find_lane(&self, id: WorkerId, group: Group, tier: Tier) -> Option<u32> {
        let lanes = &self.w.workers.get(&id)?.lanes;
        lanes.iter().find(|l| (l.0, l.1) == (group, tier)).map(|l| l.2)
    }

    fn lane(&mut self, id: WorkerId, group: Group, tier: Tier) -> u32 {
        if let Some(slot) = self.find_lane(id, group, tier) {
            return slot;
        }
        let owner = Owner { worker: id, group, tier, layered: false };
        let slot = self.w.slots.take(&self.shared.slots, owner);
        if let Some(worker) = self.w.workers.get_mut(&id) {
            self.w.lane_bytes -= worker.lane_bytes();
            worker.lanes.push((group, tier, slot));
            self.w.lane_bytes += worker.lane_bytes();
        }
        self.mark_layers(id, group);
        slot
    }

    /// Notes in each slot of a worker's group whether there are several that count.
    fn mark_layers(&mut self, worker: WorkerId, group: Group) {
        let Some(w) = self.w.workers.get(&worker) else { return };
        let counted = |l: &&(Group, Tier, u32)| l.0 == group && l.1 != Tier::Unknown;
        let layered = w.lanes.iter().filter(counted).count() > 1;
        for &(group, tier, slot) in w.lanes.iter().filter(counted) {
            self.shared.slots.set(slot, Owner { worker, group, tier, layered });
        }
    }

    fn retire_lanes(&mut self, id: WorkerId, tier: Option<Tier>) {
        let Some(worker) = self.w.workers.get_mut(&id) else { return };
        let voc = worker.voc;
        let gone: Vec<_> =
            worker.lanes.extract_if(.., |l| tier.is_none_or(|tier| l.1 == tier)).collect();
        let slots: Vec<u32> = gone.iter().map(|l| l.2).collect();
        self.clear_orphans(voc, &slots);
        for (group, _, slot) in gone {
            self.retire(slot);
            self.mark_layers(id, group);
        }
    }

    pub(super) fn remove_worker(&mut self, id: WorkerId) {
        self.retire_lanes(id, None);
        self.shared.losers.forget(id);
        let mut homes = self.shared.homes.write();
        homes.remove(&id);
        self.w.homes = homes.bytes();
        drop(homes);
        if let Some(worker) = self.w.workers.remove(&id) {
            self.w.lane_bytes -= worker.lane_bytes();
            self.move_out(worker.voc);
        }
    }

    pub(super) fn stats(&mut self) -> Stats {
        while self.sweep(usize::MAX) {}
        Stats {
            blocks: self.w.blocks,
            unplaced: self.w.unplaced,
            entries: self.w.entries,
            evicted: self.w.evicted,
            bytes: self.in_use() as u64,
            reserved: self.reserved() as u64,
        }
    }
}
