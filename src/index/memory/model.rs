//! Every order of a reader's and the writer's steps, over the index's own functions: records that are
//! used again, slots that get new owners, buckets that are split, copies that are given up.
//!
//! The structures are the real ones with less room (`cfg(loom)` in `arena`, `slot` and `table`). A
//! model is one step of the protocol: a whole lookup beside a whole batch is more than can be tried.
//! The writer is the thread that comes first, and up to two times a thread is interrupted where it could
//! go on; what a reader may see of older words is tried in all ways.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib index::memory`.

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use super::MemoryOptions;
use super::answer::Answer;
use super::arena::{Arena, Book};
use super::cut::{ALL, Cuts};
use super::run::{CUT_COUNT, INLINE, Run, RunId};
use super::slot::{Owner, Slots};
use super::slots::SlotBook;
use super::sync::Ordering::Relaxed;
use super::sync::guard;
use super::table::{Place, Table};
use super::walk::{Above, Key};
use super::write::{Pen, Shared, Writer};
use crate::block::{BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::index::{Block, BlockSource, Change, Home, Matches, Parent, Store};

const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut bounded = Builder::new();
    bounded.preemption_bound = Some(2);
    bounded.max_branches = 20_000;
    bounded.check(model);
}

/// A prompt of one block.
struct One(Digest);

impl BlockSource for One {
    fn len(&self) -> usize {
        1
    }

    fn digests(&mut self, from: usize, _: usize) -> &[Digest] {
        &std::slice::from_ref(&self.0)[from..]
    }

    fn name(&mut self, _: VocabularyId, _: usize) -> Option<Name> {
        None
    }
}

fn index() -> (Arc<Shared>, Writer) {
    let mut book = Book::default();
    let shared = Shared::new(&mut book);
    let unplaced = shared.names.read().unplaced.clone();
    (Arc::new(shared), Writer::new(MemoryOptions::default(), book, unplaced))
}

/// A run of one block below a place, held by a slot.
fn run<'a>(pen: &mut Pen<'a>, parent: RunId, at: u32, head: u64, slot: u32) -> Run<'a> {
    let run = pen.make(parent, at, head);
    run.push(&mut pen.w.book, [(Digest(head), 0)].into_iter());
    held_by(run, slot);
    pen.publish(run, parent, at, head);
    run
}

fn root_key(space: u32) -> Key {
    Key { parent: RunId::NONE, at: 0, head: u64::from(space) << 32 | u64::from(SHAPE.size.get()) }
}

/// A reader's step to a run, as `walk` and `detail` do it.
fn step(shared: &Shared, above: Above, at: u32, head: u64) -> Option<Above> {
    let key = Key { parent: above.id, at, head };
    let id = shared.find_kid(key)?;
    let mut cuts = Cuts::default();
    let seen = shared.see(shared.run(id), key, 0, &mut One(Digest(head)), &mut cuts, |_| ())?;
    shared.is_same(above).then_some(Above { id, born: seen.born })
}

/// The last block of a space goes, and its root's record serves the next space, which holds the same
/// prompt.
#[test]
fn a_root_that_is_used_again_leads_to_no_block_of_another_space() {
    check(|| {
        let (shared, mut w) = index();
        let mut pen = Pen { shared: &shared, w: &mut w };
        let root = pen.root(SpaceId(1), SHAPE);
        let reader = shared.clone();
        let reader = thread::spawn(move || {
            let above = reader.begin(root_key(1), root)?;
            step(&reader, above, 0, 7)
        });
        pen.end(shared.run(root));
        assert_eq!(pen.root(SpaceId(2), SHAPE), root);
        run(&mut pen, root, 0, 7, 0);
        assert!(reader.join().unwrap().is_none(), "it is in space 2");
    });
}

/// A run goes while a reader is on the way to its child, and its record serves another chain.
#[test]
fn a_run_that_is_used_again_leads_to_no_block_of_another_chain() {
    check(|| {
        let (shared, mut w) = index();
        let mut pen = Pen { shared: &shared, w: &mut w };
        let root = pen.root(SpaceId(1), SHAPE);
        let parent = run(&mut pen, root, 0, 5, 0).id;
        let reader = shared.clone();
        let reader = thread::spawn(move || {
            let above = reader.begin(Key { parent: root, at: 0, head: 5 }, parent)?;
            step(&reader, above, 1, 7)
        });
        pen.w.runs.clear();
        shared.run(parent).free(&mut pen.w.book);
        assert_eq!(run(&mut pen, root, 0, 6, 0).id, parent);
        run(&mut pen, parent, 1, 7, 0);
        assert!(reader.join().unwrap().is_none(), "7 comes behind 6 and never came behind 5");
    });
}

/// A slot whose worker goes, whose bits are swept, and that a worker gets who holds nothing yet.
#[test]
fn a_slot_that_gets_a_new_owner_answers_for_neither_with_the_bits_of_the_other() {
    check(|| {
        let (arena, mut book, mut slots) = (Arena::default(), Book::default(), SlotBook::default());
        let shared = Arc::new((arena, Slots::default()));
        let (arena, owners) = &*shared;
        let owner = |worker| Owner {
            worker: WorkerId(worker),
            group: Group(0),
            tier: Tier::Gpu,
            layered: false,
        };
        let slot = slots.take(owners, owner(1));
        let run = Run::make(arena, &mut book, 1);
        held_by(run, slot);
        slots.count(slot, 1);
        let (id, reader) = (run.id, shared.clone());
        let reader = thread::spawn(move || {
            let (arena, owners) = &*reader;
            holders(owners, Run::at(arena, id))
        });
        slots.retire(owners, slot);
        slots.begin();
        guard::open(run.guard());
        run.set(CUT_COUNT, 0u32);
        guard::close(run.guard());
        slots.end(owners);
        assert_eq!(slots.take(owners, owner(2)), slot);
        let found = reader.join().unwrap().unwrap_or_default();
        assert!(!found.contains(&WorkerId(2)), "it holds nothing");
    });
}

/// A worker gets blocks in a second tier: its slot of the first is of another kind from then on.
#[test]
fn a_slot_that_changes_its_kind_is_never_seen_without_any() {
    check(|| {
        let (arena, mut book, mut slots) = (Arena::default(), Book::default(), SlotBook::default());
        let shared = Arc::new((arena, Slots::default()));
        let (arena, owners) = &*shared;
        let owner = |tier, layered| Owner { worker: WorkerId(1), group: Group(0), tier, layered };
        let slot = slots.take(owners, owner(Tier::Gpu, false));
        let run = Run::make(arena, &mut book, 1);
        held_by(run, slot);
        let (id, reader) = (run.id, shared.clone());
        let reader = thread::spawn(move || {
            let (arena, owners) = &*reader;
            holders(owners, Run::at(arena, id))
        });
        owners.set(slot, owner(Tier::Gpu, true));
        let found = reader.join().unwrap();
        assert!(
            found.is_none_or(|found| found == [WorkerId(1)]),
            "it holds the block all the time"
        );
    });
}

/// The bucket of a place is split while a reader looks for it, and the place moves to the new one:
/// where the directory doubles for that, and where it does not.
#[test]
fn a_place_that_moves_to_a_new_bucket_is_not_missed() {
    // Places are found by bits of hashes: here the two lowest, all at home in the first line.
    for (bits, doubles) in [(0b00, true), (0b01, false)] {
        check(move || {
            let (arena, mut book) = (Arena::default(), Book::default());
            let table = Table::new(&arena, &mut book);
            let place = |n: u32| Place { run: n, at: 0 };
            let hash = |n: u32, bits: u64| u64::from(n) << 2 | bits;
            let insert = |book: &mut Book, table: &Table, arena: &Arena, n: u32, bits: u64| {
                let hash = hash(n, bits);
                table.insert(arena, book, hash, place(n), |_| false, &|_, hash| hash);
            };
            if !doubles {
                // The bucket of even hashes is split first, so that both odd entries share one.
                (1..=6).for_each(|n| insert(&mut book, &table, &arena, n, 0b00));
                (7..=8).for_each(|n| insert(&mut book, &table, &arena, n, 0b10));
            }
            let moves = if doubles { 0b01 } else { 0b11 };
            (11..=16).for_each(|n| insert(&mut book, &table, &arena, n, bits));
            insert(&mut book, &table, &arena, 17, moves);
            let before = table.depth();
            let shared = Arc::new((arena, table));
            let reader = shared.clone();
            let reader = thread::spawn(move || {
                let (arena, table) = &*reader;
                table.find(arena, hash(17, moves), |p| p == place(17))
            });
            let (arena, table) = &*shared;
            insert(&mut book, table, arena, 18, bits);
            assert_eq!(table.depth() > before, doubles);
            assert_eq!(reader.join().unwrap(), Some(place(17)));
        });
    }
}

/// The index gives up the only copy of a block.
#[test]
fn who_misses_a_copy_that_was_given_up_finds_its_worker_listed() {
    check(|| {
        let (shared, mut w) = index();
        let mut pen = Pen { shared: &shared, w: &mut w };
        let worker = WorkerId(1);
        let home = Home { space: SpaceId(1), vocabulary: VocabularyId(1) };
        pen.assign(worker, home).unwrap();
        let blocks = [Block { name: Name(7), digest: Some(Digest(7)) }];
        let (group, tier, parent) = (Group(0), Tier::Gpu, Parent::Root);
        let store = Store { shape: SHAPE, group, tier, parent, blocks: &blocks };
        pen.apply(worker, &[Change::Store(store)]).unwrap();
        let root = shared.find_kid(root_key(1)).unwrap();
        let key = Key { parent: root, at: 0, head: 7 };
        let id = shared.find_kid(key).unwrap();
        let reader = shared.clone();
        let reader = thread::spawn(move || {
            // The run is gone, or it is there and says who holds it, or it is being changed.
            let run = reader.run(id);
            let held = match key.is(run) {
                true => holders(&reader.slots, run).is_none_or(|found| found == [worker]),
                false => false,
            };
            held || reader.losers.has(worker)
        });
        pen.cut_holders(id, None);
        assert!(reader.join().unwrap());
    });
}

/// Ends what `Run::make` began, with one holder of every block.
fn held_by(run: Run<'_>, slot: u32) {
    run.word(INLINE).store(u64::from(ALL) << 32 | u64::from(slot / 64), Relaxed);
    run.word(INLINE + 1).store(1 << (slot % 64), Relaxed);
    run.set(CUT_COUNT, 1u32);
    guard::close(run.guard());
}

/// One try of a reader: who holds a run, if what it read was one state.
fn holders(slots: &Slots, run: Run<'_>) -> Option<Vec<WorkerId>> {
    let epoch = slots.epoch();
    let seen = guard::enter(run.guard());
    let mut cuts = Cuts::default();
    cuts.load(run);
    if guard::is_open(seen) || !guard::held(run.guard(), seen) {
        return None;
    }
    let (mut matches, mut layers) = (Matches::default(), Vec::new());
    let Matches { classes, members, .. } = &mut matches;
    let mut answer = Answer { slots, candidates: None, classes, members, layers: &mut layers };
    for cut in &cuts.cuts {
        answer.page(cut.page, cut.bits, 1);
    }
    answer.join_layers();
    slots.is(epoch).then(|| matches.iter().map(|found| found.worker).collect())
}
