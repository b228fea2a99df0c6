//! Changes of one worker: stores walk down the tree, removals come by name.
//!
//! Invariant: after each block of a store everything that could be placed because of it is placed,
//! and between any two changes every run ends where its last placed block is.

use std::sync::Arc;

use super::ahead::Ahead;
use super::cut::{ALL, Cut};
use super::names::VocId;
use super::orphan::Link;
use super::run::{
    CUT_COUNT, FRESH, HEAD, INLINE, KIDS, LAST_KID, LONGEST, OFFSET, PART_COUNT, POSITION, ROOT,
    Run, RunId, SEGMENT, UP, USED, VOCABULARY,
};
use super::sync::{Ordering, guard};
use super::table::{Place, Table};
use super::write::Pen;
use crate::block::{Digest, Name, Shape, SpaceId, WorkerId};
use crate::index::{Applied, Block, Parent, Store};

/// Who changes something, and what its names mean.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) worker: WorkerId,
    pub(super) space: SpaceId,
    pub(super) voc: VocId,
    pub(super) table: Arc<Table>,
    pub(super) slot: u32,
    /// Blocks that have their names already are placed, which is not refused.
    pub(super) adopts: bool,
}

/// How many blocks ahead the buckets of names are asked for.
const AHEAD: usize = 8;

/// Blocks pushed or taken at a time: bounds how long a run is being changed, and what the budget has
/// to have room for.
pub(super) const STRETCH: usize = 256;

/// What is known of the block before the next one of a store.
#[derive(Clone, Copy)]
enum Above {
    /// So many blocks into a run.
    At(RunId, u32),
    Name(Name),
    Nothing,
}

impl<'a> Pen<'a> {
    pub(super) fn store(&mut self, lane: &Lane, store: &Store<'_>, applied: &mut Applied) {
        let mut above = match store.parent {
            Parent::Root => {
                self.w.pinned = self.root(lane.space, store.shape);
                Above::At(self.w.pinned, 0)
            }
            Parent::Block(name) => {
                let of_shape = |pen: &Self, p: Place| pen.shape(RunId(p.run)) == store.shape;
                let place = self.meaning(lane, name, of_shape);
                let describes = store.blocks.first().is_some_and(|block| block.digest.is_some());
                if describes && !self.is_known(lane, name, place) {
                    applied.unknown_parents += 1;
                }
                match place {
                    Some(place) => Above::At(RunId(place.run), place.at + 1),
                    None => Above::Name(name),
                }
            }
            Parent::Unknown => Above::Nothing,
        };
        let mut rest = store.blocks;
        while let [block, ..] = rest {
            let mut taken = 1;
            above = match (block.digest, above) {
                (Some(_), Above::At(run, at)) => {
                    let known = rest.iter().take_while(|b| b.digest.is_some()).count();
                    // With blocks waiting for a name, each binding may place some of them.
                    taken = if self.w.unplaced > 0 { 1 } else { known };
                    let (run, at, placed) = self.place(lane, (run, at), &rest[..taken]);
                    applied.stored += placed as u64;
                    if placed < taken {
                        applied.refused += (rest.len() - placed) as u64;
                        break;
                    }
                    Above::At(run, at)
                }
                (digest, above) => {
                    let link = match (digest, above) {
                        (Some(digest), Above::Name(parent)) => {
                            Some(Link { shape: store.shape, parent, digest })
                        }
                        _ => None,
                    };
                    match self.store_by_name(lane, block.name, link, applied) {
                        Some(place) => Above::At(RunId(place.run), place.at + 1),
                        None => Above::Name(block.name),
                    }
                }
            };
            rest = &rest[taken..];
        }
        let root = std::mem::replace(&mut self.w.pinned, RunId::NONE);
        if root != RunId::NONE {
            // It may have been made for a store without blocks.
            self.trim(root, None);
        }
    }

    /// The block that a name means to a worker: the one that it holds, else the first one bound.
    pub(super) fn meaning(
        &mut self,
        lane: &Lane,
        name: Name,
        fits: impl Fn(&Self, Place) -> bool,
    ) -> Option<Place> {
        if self.w.dups == 0 && !self.w.slots.has_dead() {
            let hash = self.shared.hash(name.0);
            let is = |p| self.is_named(p, lane.voc, name);
            let place = lane.table.seek(&self.shared.arena, hash, is)?;
            return fits(self, place).then_some(place);
        }
        let mut places = std::mem::take(&mut self.w.places);
        self.places(lane.voc, &lane.table, name, &mut places);
        places.retain(|&p| fits(self, p));
        let slots = self.w.slots_of(lane.worker);
        let held = places.iter().find(|p| slots.iter().any(|&slot| self.holds(**p, slot)));
        let meant = held.or(places.first()).copied();
        self.w.places = places;
        meant
    }

    /// Whether a worker holds a copy of a block that lies there, if anywhere.
    #[inline]
    fn is_known(&mut self, lane: &Lane, name: Name, place: Option<Place>) -> bool {
        let Some(place) = place else { return self.holds_orphan(lane, name) };
        let run = self.run(RunId(place.run));
        // The usual case, without a look at the lists of holders.
        if run.get(CUT_COUNT) == 1 && run.get(PART_COUNT) == 0 {
            let cut = Cut::of(run.raw(INLINE), run.raw(INLINE + 1));
            let mine = cut.page == lane.slot / 64 && cut.bits >> (lane.slot % 64) & 1 == 1;
            if mine && place.at < cut.end {
                return true;
            }
        }
        self.holds(place, lane.slot)
            || self.w.slots_of(lane.worker).into_iter().any(|slot| self.holds(place, slot))
    }

    /// Stores blocks with contents below a place, as many as there is room for; returns the place
    /// below them and how many they are.
    fn place(&mut self, lane: &Lane, above: (RunId, u32), blocks: &[Block]) -> (RunId, u32, usize) {
        let (mut id, mut at) = above;
        let mut rest = blocks;
        while let [first, ..] = rest {
            self.refresh(id);
            let run = self.run(id);
            let len = run.len();
            let digest = content(first);
            if at < len {
                let (same, named) = common(run, at, len, rest);
                if same > 0 {
                    let known = named && run.get(VOCABULARY) == lane.voc.0 && self.w.unplaced == 0;
                    let some = if known { same } else { same.min(STRETCH) };
                    let stays = self.keep(id);
                    let (tried, done) = self.share(lane, id, at, &rest[..some], known);
                    self.let_go(stays);
                    rest = &rest[done..];
                    at += done as u32;
                    if done < tried || done == 0 {
                        break;
                    }
                    continue;
                }
            }
            // Most chains go on where no child is.
            let may_part = run.get(KIDS) > 0 && at <= run.get(LAST_KID);
            if may_part && let Some(kid) = self.kid(id, at, digest) {
                self.refresh(kid);
                // It may have been held by the dead only.
                if self.is_kid(kid, id, at, digest) {
                    (id, at) = (kid, 0);
                    continue;
                }
            }
            let stays = self.keep(id);
            if !self.make_room() {
                self.let_go(stays);
                break;
            }
            let base;
            if at == len && len > 0 && len < LONGEST && self.holds_all(run, lane.slot) {
                base = len;
                let most = rest.len().min((LONGEST - len) as usize).min(STRETCH);
                self.append(lane, id, &rest[..most]);
                at = len + most as u32;
            } else {
                base = 0;
                let most = rest.len().min(STRETCH);
                id = self.branch(lane, (id, at), &rest[..most]);
                at = most as u32;
            }
            self.keep(id);
            let new = (at - base) as usize;
            let named = self.name_new(lane, id, base, &rest[..new]);
            self.let_go(stays);
            rest = &rest[named..];
            if named < new {
                self.take_back(lane, id, base + named as u32);
                break;
            }
        }
        (id, at, blocks.len() - rest.len())
    }

    /// Stores blocks that are there, a stretch of them if that takes much memory: how many it tried,
    /// and how many come before one that is refused.
    fn share(
        &mut self,
        lane: &Lane,
        id: RunId,
        at: u32,
        blocks: &[Block],
        known: bool,
    ) -> (usize, usize) {
        if !self.make_room() {
            return (blocks.len(), 0);
        }
        let to = self.hold(id, lane.slot, at, at + blocks.len() as u32);
        let tried = (to - at) as usize;
        for (i, block) in blocks[..tried].iter().enumerate().filter(|_| !known) {
            if !self.bind_and_settle(lane, id, at + i as u32, block.name) {
                for at in (at + i as u32..to).rev() {
                    self.drop_copy(lane, Place { run: id.0, at });
                }
                return (tried, i);
            }
        }
        (tried, tried)
    }

    /// A run, to which something is about to be added, stays as it is whatever is evicted meanwhile,
    /// until it is let go.
    #[inline]
    pub(super) fn keep(&mut self, id: RunId) -> usize {
        self.w.busy.push(id);
        self.w.busy.len() - 1
    }

    /// Lets the runs go that were kept since there were so many.
    #[inline]
    pub(super) fn let_go(&mut self, kept: usize) {
        if !self.w.untrimmed {
            return self.w.busy.truncate(kept);
        }
        while self.w.busy.len() > kept
            && let Some(id) = self.w.busy.pop()
        {
            // It may have gone with one below it.
            if !guard::is_open(self.run(id).raw(0)) {
                self.trim(id, None);
            }
        }
        self.w.untrimmed = !self.w.busy.is_empty();
    }

    /// Whether a block is there that was in a run with this birth number.
    pub(super) fn is_there(&self, place: Place, born: u32) -> bool {
        let run = self.run(RunId(place.run));
        !guard::is_open(run.raw(0)) && run.born() == born && place.at < run.len()
    }

    /// The block with a content below a place.
    pub(super) fn block_below(&mut self, above: (RunId, u32), digest: Digest) -> Option<Place> {
        let (id, at) = above;
        self.refresh(id);
        let run = self.run(id);
        let len = run.len();
        if at < len && run.content(at, len) == digest.0 {
            return Some(Place { run: id.0, at });
        }
        let kid = self.kid(id, at, digest)?;
        self.refresh(kid);
        self.is_kid(kid, id, at, digest).then_some(Place { run: kid.0, at: 0 })
    }

    /// Binds the names of blocks that were just pushed, which bear them already if the run's own
    /// vocabulary is the worker's; how many blocks come before one with a crowded name.
    fn name_new(&mut self, lane: &Lane, id: RunId, base: u32, blocks: &[Block]) -> usize {
        let own = self.run(id).get(VOCABULARY) == lane.voc.0;
        let touch = |block: &Block| {
            lane.table.touch_home(&self.shared.arena, self.shared.hash(block.name.0));
        };
        blocks.iter().take(AHEAD).for_each(touch);
        for (i, block) in blocks.iter().enumerate() {
            if let Some(ahead) = blocks.get(i + AHEAD) {
                lane.table.touch_home(&self.shared.arena, self.shared.hash(ahead.name.0));
            }
            let at = base + i as u32;
            if own && block.name.0 != 0 {
                if !lane.adopts && self.is_crowded(lane.voc, &lane.table, block.name) {
                    return i;
                }
                self.link(lane.voc, &lane.table, block.name, id, at);
                if self.w.unplaced > 0 {
                    self.settle_below(lane, block.name, Place { run: id.0, at });
                }
            } else if !self.bind_and_settle(lane, id, at, block.name) {
                return i;
            }
        }
        blocks.len()
    }

    /// Binds a name and places what waited for it; does nothing and says `false` if it is crowded, or
    /// if the block has too many.
    fn bind_and_settle(&mut self, lane: &Lane, id: RunId, at: u32, name: Name) -> bool {
        let place = Place { run: id.0, at };
        let refused = !lane.adopts
            && (self.is_full(place, lane.voc) || self.is_crowded(lane.voc, &lane.table, name));
        if refused && !self.is_named(place, lane.voc, name) {
            return false;
        }
        self.bind(lane.voc, &lane.table, id, at, name);
        if self.w.unplaced > 0 {
            self.settle_below(lane, name, place);
        }
        true
    }

    /// Undoes the push of blocks from `from` on, whose names are not bound.
    #[cold]
    fn take_back(&mut self, lane: &Lane, id: RunId, from: u32) {
        let run = self.run(id);
        let len = run.len();
        if run.get(VOCABULARY) == lane.voc.0 {
            (from..len).for_each(|at| run.name(at, len).store(0, Ordering::Relaxed));
        }
        let Pen { w, .. } = self;
        w.entries -= u64::from(len - from);
        w.slots.count(lane.slot, -i64::from(len - from));
        w.cuts.load(run);
        w.cuts.keep_first(lane.slot, from);
        guard::open(run.guard());
        w.cuts.save(run, &mut w.book);
        guard::close(run.guard());
        self.trim(id, None);
    }

    /// Places one block with the copies that were counted while it was unplaced, and binds its name.
    pub(super) fn adopt(
        &mut self,
        lane: &Lane,
        above: (RunId, u32),
        digest: Digest,
        name: Name,
        holders: &[(u32, u32)],
    ) -> Option<Place> {
        let mut place = None;
        for &(slot, copies) in holders {
            // The block bears the name, so that binding it again below changes nothing.
            let mine = Lane { slot, adopts: true, ..lane.clone() };
            let block = [Block { name, digest: Some(digest) }];
            let (run, at) = match place {
                None => self.place_unsettled(&mine, above, &block)?,
                Some(Place { run, at }) => {
                    self.add_copies(RunId(run), at, slot, copies);
                    continue;
                }
            };
            place = Some(Place { run: run.0, at: at - 1 });
            if copies > 1 {
                self.add_copies(run, at - 1, slot, copies - 1);
            }
        }
        place
    }

    /// `place`, with what waits for the names left to the caller.
    fn place_unsettled(
        &mut self,
        lane: &Lane,
        above: (RunId, u32),
        blocks: &[Block],
    ) -> Option<(RunId, u32)> {
        let unplaced = std::mem::take(&mut self.w.unplaced);
        let (run, at, placed) = self.place(lane, above, blocks);
        self.w.unplaced = unplaced;
        (placed == blocks.len()).then_some((run, at))
    }

    /// Whether a slot is a whole holder.
    fn holds_all(&mut self, run: Run<'_>, slot: u32) -> bool {
        let has = |c: &Cut| c.end == ALL && c.page == slot / 64 && c.bits >> (slot % 64) & 1 == 1;
        if run.get(CUT_COUNT) == 1 && run.get(PART_COUNT) == 0 {
            return has(&Cut::of(run.raw(INLINE), run.raw(INLINE + 1)));
        }
        self.w.cuts.load(run);
        self.w.cuts.cuts.iter().any(has)
    }

    /// Adds blocks at the end of a run that the slot holds as a whole.
    fn append(&mut self, lane: &Lane, id: RunId, blocks: &[Block]) {
        let run = self.run(id);
        let len = run.len();
        let own = run.get(VOCABULARY) == lane.voc.0;
        let alone = run.get(CUT_COUNT) == 1
            && run.get(PART_COUNT) == 0
            && run.raw(INLINE + 1).is_power_of_two();
        let Pen { w, .. } = self;
        if !alone {
            w.cuts.load(run);
            w.cuts.grow(len, lane.slot);
        }
        guard::open(run.guard());
        run.push(&mut w.book, blocks.iter().map(|b| (content(b), if own { b.name.0 } else { 0 })));
        if !alone {
            w.cuts.save(run, &mut w.book);
        }
        guard::close(run.guard());
        self.added(run, lane.slot, blocks.len());
    }

    /// A new run below a place.
    fn branch(&mut self, lane: &Lane, above: (RunId, u32), blocks: &[Block]) -> RunId {
        let (parent, at) = above;
        let root = self.run(parent).get(ROOT);
        let head = content(&blocks[0]);
        let run = self.make(parent, at, head.0);
        run.set(ROOT, root);
        run.set(VOCABULARY, lane.voc.0);
        run.push(&mut self.w.book, blocks.iter().map(|b| (content(b), b.name.0)));
        run.word(INLINE).store(u64::from(ALL) << 32 | u64::from(lane.slot / 64), Ordering::Relaxed);
        run.word(INLINE + 1).store(1 << (lane.slot % 64), Ordering::Relaxed);
        run.set(CUT_COUNT, 1u32);
        guard::close(run.guard());
        self.publish(run, parent, at, head.0);
        self.adopt_kid(parent, run.id, at);
        self.added(run, lane.slot, blocks.len());
        run.id
    }

    fn added(&mut self, run: Run<'_>, slot: u32, blocks: usize) {
        self.w.blocks += blocks as u64;
        self.w.entries += blocks as u64;
        self.w.slots.count(slot, blocks as i64);
        run.set(USED, self.shared.now());
    }

    /// A new record with its guard open.
    pub(super) fn make(&mut self, parent: RunId, at: u32, head: u64) -> Run<'a> {
        let w = &mut *self.w;
        w.born = w.born.wrapping_add(1);
        let run = Run::make(&self.shared.arena, &mut w.book, w.born);
        run.set(UP, parent.0);
        run.set(OFFSET, at);
        run.set(HEAD, head);
        run.set(FRESH, w.slots.deaths);
        run.set(POSITION, w.runs.len() as u64);
        w.runs.push(run.id);
        run
    }

    pub(super) fn publish(&mut self, run: Run<'_>, parent: RunId, at: u32, head: u64) {
        let hash = self.shared.kid_hash(parent, at, head);
        let place = Place { run: run.id.0, at: 0 };
        let shared = self.shared;
        let rehash = |place: Place, _: u64| {
            let run = shared.run(RunId(place.run));
            shared.kid_hash(run.parent(), run.get(OFFSET), run.field(HEAD))
        };
        shared.kids.insert(&shared.arena, &mut self.w.book, hash, place, |_| false, &rehash);
    }

    /// The run that stands for the empty prefix of a (space, shape).
    pub(super) fn root(&mut self, space: SpaceId, shape: Shape) -> RunId {
        let head = u64::from(space.0) << 32 | u64::from(shape.size.get());
        if let Some(root) = self.kid(RunId::NONE, shape.lookahead, Digest(head)) {
            return root;
        }
        let run = self.make(RunId::NONE, shape.lookahead, head);
        run.set(ROOT, run.id.0);
        guard::close(run.guard());
        self.publish(run, RunId::NONE, shape.lookahead, head);
        run.id
    }

    pub(super) fn kid(&self, parent: RunId, at: u32, head: Digest) -> Option<RunId> {
        let hash = self.shared.kid_hash(parent, at, head.0);
        let is = |p: Place| self.is_kid(RunId(p.run), parent, at, head);
        self.shared.kids.seek(&self.shared.arena, hash, is).map(|p| RunId(p.run))
    }

    fn is_kid(&self, id: RunId, parent: RunId, at: u32, head: Digest) -> bool {
        let run = self.run(id);
        !guard::is_open(run.raw(0))
            && run.get(UP) == parent.0
            && run.get(OFFSET) == at
            && run.field(HEAD) == head.0
    }

    /// Takes one copy of each block away.
    pub(super) fn remove_all(
        &mut self,
        lane: &Lane,
        names: &[Name],
        ahead: &mut Ahead<'_>,
        applied: &mut Applied,
    ) {
        let mut rest = names;
        while let [name, ..] = rest {
            let taken = if self.w.dups == 0 && !self.w.slots.has_dead() {
                self.remove_plain(lane, rest, ahead)
            } else {
                usize::from(self.remove_meant(lane, *name))
            };
            applied.removed += taken as u64;
            if taken == 0 {
                let was_unplaced = self.w.unplaced > 0 && self.drop_orphan(lane, *name);
                applied.removed += u64::from(was_unplaced);
                applied.unknown_removals += u64::from(!was_unplaced);
            }
            let done = taken.max(1);
            // What was taken of a stretch has moved on already.
            ahead.advance(usize::from(taken <= 1), self.shared, &lane.table);
            rest = &rest[done..];
        }
    }

    /// Takes copies of blocks away that follow each other up a chain, while no name has several
    /// blocks and nobody is dead; how many of the names are done.
    #[inline]
    fn remove_plain(&mut self, lane: &Lane, names: &[Name], ahead: &mut Ahead<'_>) -> usize {
        let name = names[0];
        let likely = self.w.slots.likely[lane.slot as usize];
        let place = match self.is_likely(lane, likely, name) {
            true => Some(likely),
            false => {
                let is = |p| self.is_named(p, lane.voc, name);
                lane.table.seek(&self.shared.arena, self.shared.hash(name.0), is)
            }
        };
        let Some(place) = place else { return 0 };
        // The run may be gone afterwards.
        let above = self.before(Place { at: 0, ..place });
        let mut taken = self.drop_tail(lane, place, names, ahead);
        if taken == 0 {
            taken = usize::from(self.drop_copy(lane, place));
        }
        let gone = taken.max(1) as u32;
        let rest = place.at.checked_sub(gone).map(|at| Place { at, ..place });
        self.w.slots.likely[lane.slot as usize] = rest.unwrap_or(above);
        taken
    }

    /// Takes one copy of the block that a name means to a worker away; whether it had one.
    fn remove_meant(&mut self, lane: &Lane, name: Name) -> bool {
        let mut places = std::mem::take(&mut self.w.places);
        self.places(lane.voc, &lane.table, name, &mut places);
        let dropped = places.iter().any(|&place| self.drop_copy(lane, place));
        self.w.places = places;
        dropped
    }

    /// Whether a name means a block that was guessed, of which nothing is known but that it was one
    /// of this index. While no name has several blocks, the one that bears it is the one it means.
    #[inline]
    fn is_likely(&self, lane: &Lane, guess: Place, name: Name) -> bool {
        let run = self.run(RunId(guess.run));
        let len = run.len();
        guess.run != 0
            && !guard::is_open(run.raw(0))
            && guess.at < len
            && run.get(VOCABULARY) == lane.voc.0
            && name.0 != 0
            && run.name(guess.at, len).load(Ordering::Relaxed) == name.0
    }

    /// The block before one: engines evict chains from the tail.
    #[inline]
    fn before(&self, place: Place) -> Place {
        if place.at > 0 {
            return Place { at: place.at - 1, ..place };
        }
        let run = self.run(RunId(place.run));
        match run.get(OFFSET) {
            0 => Place::default(),
            offset => Place { run: run.parent().0, at: offset - 1 },
        }
    }

    /// Asks for the bucket of the name that a slot is likely to remove next.
    pub(super) fn ask_for_likely(&self, lane: &Lane) {
        let guess = self.w.slots.likely[lane.slot as usize];
        let run = self.run(RunId(guess.run));
        let len = run.len();
        if guess.run != 0 && !guard::is_open(run.raw(0)) && guess.at < len {
            let name = run.name(guess.at, len).load(Ordering::Relaxed);
            lane.table.touch_home(&self.shared.arena, self.shared.hash(name));
        }
    }
}

fn content(block: &Block) -> Digest {
    // Callers pass blocks with contents only; 0 is as good as any other for a bug.
    block.digest.unwrap_or(Digest(0))
}

/// How many blocks a run has in common with a store from `at` on, and whether they all bear the
/// names that the store gives them already.
fn common(run: Run<'_>, at: u32, len: u32, blocks: &[Block]) -> (usize, bool) {
    let most = blocks.len().min((len - at) as usize);
    let (mut same, mut named) = (0, true);
    while same < most {
        let from = at as usize + same;
        let words = run.segment(from as u32, len);
        for i in from % SEGMENT..SEGMENT.min(from % SEGMENT + most - same) {
            let block = &blocks[same];
            if words.load(i) != content(block).0 {
                return (same, named);
            }
            named &= words.load(SEGMENT + i) == block.name.0 && block.name.0 != 0;
            same += 1;
        }
    }
    (same, named)
}
