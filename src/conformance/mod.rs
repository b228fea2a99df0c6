//! The contract of [`Index`] as a test that any backend can run (feature `conformance`).
//!
//! [`check`] runs the stated cases and seeded random histories over an index and over the literal
//! [`Reference`], and compares every answer. A backend outside this crate needs one line:
//!
//! ```
//! use kvscout::{conformance, index::MemoryIndex};
//!
//! conformance::check(MemoryIndex::default);
//! ```
//!
//! [`run`] takes a history of the caller's own, so that a property test can shrink it.

mod cases;
mod reference;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

pub use self::reference::Reference;
use crate::block::{BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::index::{
    Applied, Block, BlockSource, Change, Home, Index, Matches, MemoryOptions, Parent, Query, Stats,
    Store,
};

/// Runs everything this module knows against fresh indexes from `make`.
///
/// # Panics
///
/// On the first difference from the contract, with the history that led to it.
pub fn check<I: Index>(mut make: impl FnMut() -> I) {
    for (name, steps) in cases::all() {
        if let Err(difference) = run(&make(), MemoryOptions::default(), &steps) {
            panic!("case '{name}': {difference}");
        }
    }
    for seed in 0..64 {
        let steps = history(seed, 120);
        if let Err(difference) = run(&make(), MemoryOptions::default(), &steps) {
            panic!("seed {seed}: {difference}");
        }
    }
}

/// One step of a history. Blocks are numbered by small integers, so that histories collide often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Index::assign`].
    Assign(WorkerId, Home),
    /// [`Change::Store`] of the blocks `from..` of a path of contents.
    Store {
        /// Who stores.
        worker: WorkerId,
        /// Contents from the root; the blocks stored are `path[from..]`.
        path: Vec<u8>,
        /// How many leading blocks of `path` the event leaves out.
        from: usize,
        /// Where the copies lie.
        tier: Tier,
        /// Cache group.
        group: Group,
        /// Whether the event says what the blocks contain.
        content: bool,
    },
    /// [`Change::Remove`] of one block, named by its path.
    Remove {
        /// Who removes.
        worker: WorkerId,
        /// Contents from the root to the block.
        path: Vec<u8>,
        /// Where the copy lay.
        tier: Tier,
        /// Cache group.
        group: Group,
    },
    /// [`Change::Clear`].
    Clear(WorkerId, Option<Tier>),
    /// [`Index::remove`].
    Forget(WorkerId),
    /// [`Index::lookup`] of a path of contents, in every form that a query has.
    Lookup {
        /// The (tenant, model) asked for.
        space: SpaceId,
        /// Contents from the root.
        path: Vec<u8>,
    },
}

/// Where an index and the reference differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step after which they differ.
    pub step: usize,
    /// What the index says, what the reference says, and about what.
    pub message: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}", self.step, self.message)
    }
}

/// Runs a history over `index` and over the reference and compares every answer, and at the end
/// what is left after every worker was forgotten (nothing).
///
/// # Errors
///
/// The first difference.
pub fn run(index: &impl Index, options: MemoryOptions, steps: &[Step]) -> Result<(), Difference> {
    let mut pair = Pair::new(index, options);
    for (at, step) in steps.iter().enumerate() {
        pair.step_at(at, step)?;
    }
    pair.end(steps.len())
}

/// Like [`run`], but every few steps the history goes on with the index that `rebuild` makes of the
/// one before: stored and loaded again, or whatever else may change nothing.
///
/// # Errors
///
/// The first difference; what `rebuild` says if it fails.
pub fn run_rebuilding<I: Index>(
    mut index: I,
    every: usize,
    mut rebuild: impl FnMut(I) -> Result<I, String>,
    options: MemoryOptions,
    steps: &[Step],
) -> Result<(), Difference> {
    let (mut reference, mut homes) = (Reference::new(options), Vec::new());
    let every = every.max(1);
    for (n, some) in steps.chunks(every).enumerate() {
        let mut pair = Pair { index: &index, reference, homes };
        for (i, step) in some.iter().enumerate() {
            pair.step_at(n * every + i, step)?;
        }
        Pair { reference, homes, .. } = pair;
        index = rebuild(index).map_err(|message| Difference { step: n * every, message })?;
    }
    Pair { index: &index, reference, homes }.end(steps.len())
}

struct Pair<'a, I> {
    index: &'a I,
    reference: Reference,
    homes: Vec<(WorkerId, Home)>,
}

const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);

/// How often a backend is asked for sizes until it has swept what is gone.
const SWEPT: usize = 1 << 20;

impl<'a, I: Index> Pair<'a, I> {
    fn new(index: &'a I, options: MemoryOptions) -> Pair<'a, I> {
        Pair { index, reference: Reference::new(options), homes: Vec::new() }
    }

    fn step_at(&mut self, at: usize, step: &Step) -> Result<(), Difference> {
        let difference = |message| Difference { step: at, message };
        self.step(step).map_err(difference)?;
        // Not after each: to ask for sizes may end what an index does little by little, and the
        // answers must not depend on how far it has come.
        if at % 7 == 6 {
            self.same_stats().map_err(difference)?;
        }
        Ok(())
    }

    /// Nothing is left after every worker was forgotten.
    fn end(mut self, step: usize) -> Result<(), Difference> {
        let end = |message| Difference { step, message };
        self.same_stats().map_err(end)?;
        for worker in (0..8).map(WorkerId) {
            self.step(&Step::Forget(worker)).map_err(end)?;
        }
        let left = self.reference.stats();
        if left != Stats::default() {
            return Err(end(format!("the history has workers beyond 7: {left:?} is left")));
        }
        self.same_stats().map_err(end)
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Assign(worker, home) => {
                let ours = block_on(self.index.assign(*worker, *home)).is_ok();
                let theirs = self.reference.assign(*worker, *home);
                if theirs {
                    self.homes.retain(|(w, _)| w != worker);
                    self.homes.push((*worker, *home));
                }
                same("assign succeeds", ours, theirs)
            }
            Step::Store { worker, path, from, tier, group, content } => {
                let Some(vocabulary) = self.vocabulary(*worker) else { return Ok(()) };
                let names = names(vocabulary, generation(*worker), path);
                let blocks: Vec<Block> = (*from..path.len())
                    .map(|at| Block { name: names[at], digest: content.then(|| digest(path[at])) })
                    .collect();
                let parent = match (*content, *from) {
                    (false, _) => Parent::Unknown,
                    (true, 0) => Parent::Root,
                    (true, at) => Parent::Block(names[at - 1]),
                };
                let store =
                    Store { shape: SHAPE, group: *group, tier: *tier, parent, blocks: &blocks };
                self.apply(*worker, Change::Store(store))
            }
            Step::Remove { worker, path, tier, group } => {
                let Some(vocabulary) = self.vocabulary(*worker) else { return Ok(()) };
                let names = names(vocabulary, generation(*worker), path).split_off(path.len() - 1);
                self.apply(*worker, Change::Remove { group: *group, tier: *tier, names: &names })
            }
            Step::Clear(worker, tier) => {
                if self.vocabulary(*worker).is_none() {
                    return Ok(());
                }
                self.apply(*worker, Change::Clear { tier: *tier })
            }
            Step::Forget(worker) => {
                block_on(self.index.remove(*worker)).map_err(|e| e.to_string())?;
                self.reference.remove(*worker);
                self.homes.retain(|(w, _)| w != worker);
                Ok(())
            }
            Step::Lookup { space, path } => self.lookup(*space, path),
        }
    }

    fn vocabulary(&self, worker: WorkerId) -> Option<VocabularyId> {
        self.homes.iter().find(|(w, _)| *w == worker).map(|(_, home)| home.vocabulary)
    }

    fn apply(&mut self, worker: WorkerId, change: Change<'_>) -> Result<(), String> {
        let ours: Option<Applied> = block_on(self.index.apply(worker, &[change])).ok();
        same("applied", ours, self.reference.apply(worker, &[change]))
    }

    fn same_stats(&self) -> Result<(), String> {
        for worker in (0..8).map(WorkerId) {
            let ours = block_on(self.index.evicted(worker)).map_err(|e| e.to_string())?;
            same("evicted", ours, self.reference.evicted(worker))?;
        }
        let mut ours = block_on(self.index.stats()).map_err(|e| e.to_string())?;
        same("entries", ours.entries, self.reference.stats().entries)?;
        for _ in 0..SWEPT {
            if ours.unswept == 0 {
                break;
            }
            ours = block_on(self.index.stats()).map_err(|e| e.to_string())?;
        }
        same("unswept", ours.unswept, 0)?;
        same("stats", counts(ours), self.reference.stats())
    }

    fn lookup(&self, space: SpaceId, path: &[u8]) -> Result<(), String> {
        let some = [WorkerId(1), WorkerId(3)];
        for candidates in [None, Some(&some[..])] {
            for spans in [false, true] {
                for content in [true, false] {
                    let query = Query { space, shape: SHAPE, candidates, spans };
                    let mut matches = Matches::default();
                    let mut blocks = Path::new(path, content);
                    block_on(self.index.lookup(&query, &mut blocks, &mut matches))
                        .map_err(|e| e.to_string())?;
                    let theirs = self.reference.lookup(&query, &mut blocks).sorted();
                    let about = format!("{query:?} path {path:?} by content {content}");
                    well_formed(&about, &matches)?;
                    same(&about, matches.sorted(), theirs)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the classes divide the members among them.
fn well_formed(about: &str, matches: &Matches) -> Result<(), String> {
    let mut next = 0;
    for class in &matches.classes {
        if class.from != next || class.to <= class.from {
            return Err(format!("{about}: {class:?} follows member {next}"));
        }
        next = class.to;
    }
    same(about, matches.members.len(), next as usize)
}

fn same<T: PartialEq + fmt::Debug>(about: &str, ours: T, theirs: T) -> Result<(), String> {
    match ours == theirs {
        true => Ok(()),
        false => Err(format!("{about}: index {ours:?}, reference {theirs:?}")),
    }
}

/// What a contract can say of sizes: how many bytes they take is a backend's own affair.
fn counts(stats: Stats) -> Stats {
    Stats { evicted: 0, bytes: 0, reserved: 0, ..stats }
}

struct Path<'a> {
    path: &'a [u8],
    digests: Vec<Digest>,
    /// As far as they were asked for, by vocabulary and generation.
    names: Vec<((VocabularyId, u64), Vec<Name>)>,
}

impl Path<'_> {
    fn new(path: &[u8], content: bool) -> Path<'_> {
        let digests = path.iter().filter(|_| content).map(|&b| digest(b)).collect();
        Path { path, digests, names: Vec::new() }
    }

    fn name_of(&mut self, vocabulary: VocabularyId, generation: u64, block: usize) -> Name {
        let of = (vocabulary, generation);
        let at = self.names.iter().position(|(known, _)| *known == of).unwrap_or_else(|| {
            self.names.push((of, names(vocabulary, generation, self.path)));
            self.names.len() - 1
        });
        self.names[at].1[block]
    }
}

impl BlockSource for Path<'_> {
    fn len(&self) -> usize {
        self.path.len()
    }

    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        // No more than asked for, so that an index cannot rely on it.
        if self.digests.is_empty() { &[] } else { &self.digests[from..from + least] }
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        Some(self.name_of(vocabulary, 0, block))
    }

    fn second_name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        Some(self.name_of(vocabulary, 1, block))
    }
}

fn digest(content: u8) -> Digest {
    Digest(u64::from(content) + 1)
}

/// Worker 2 is of a generation that calls the same blocks otherwise.
fn generation(worker: WorkerId) -> u64 {
    u64::from(worker.0 == 2)
}

/// Chained names of a path's blocks, as an engine of this vocabulary and generation would make them.
fn names(vocabulary: VocabularyId, generation: u64, path: &[u8]) -> Vec<Name> {
    let seed = 0xcbf2_9ce4_8422_2325 ^ u64::from(vocabulary.0) ^ (generation << 32);
    let chained = path.iter().scan(seed, |h, &b| {
        *h = (*h ^ (u64::from(b) + 1)).wrapping_mul(0x0100_0000_01b3);
        Some(Name(*h))
    });
    let mut names: Vec<Name> = chained.collect();
    // Blocks of paths that begin with content 0 have one name: different blocks, one name.
    if path.first() == Some(&0) {
        let first = names[0];
        names.fill(first);
    }
    names
}

/// A random history; equal for equal seeds.
pub fn history(seed: u64, steps: usize) -> Vec<Step> {
    let mut random = Random(seed);
    let mut history: Vec<Step> = (0..4)
        .map(|w| {
            let home = Home { space: SpaceId(w / 3), vocabulary: VocabularyId(w / 2) };
            Step::Assign(WorkerId(w), home)
        })
        .collect();
    for _ in 0..steps {
        let worker = WorkerId(random.below(4) as u32);
        let path: Vec<u8> = (0..=random.below(5)).map(|_| random.below(3) as u8).collect();
        let tier = [Tier::Gpu, Tier::Gpu, Tier::Cpu, Tier::Remote, Tier::Unknown]
            [random.below(5) as usize];
        let group = Group(u32::from(random.below(4) == 0));
        history.push(match random.below(20) {
            0..=8 => {
                let from = random.below(path.len() as u64) as usize * random.below(2) as usize;
                let content = random.below(5) > 0;
                Step::Store { worker, path, from, tier, group, content }
            }
            9..=13 => Step::Remove { worker, path, tier, group },
            14 if random.below(3) == 0 => Step::Clear(worker, Some(tier)),
            14 if random.below(3) == 0 => Step::Clear(worker, None),
            15 if random.below(3) == 0 => Step::Forget(worker),
            15 | 16 => {
                let vocabulary = VocabularyId(random.below(4) as u32);
                Step::Assign(worker, Home { space: SpaceId(worker.0 / 3), vocabulary })
            }
            _ => Step::Lookup { space: SpaceId(random.below(2) as u32), path },
        });
    }
    history
}

/// SplitMix64: enough for histories, and no dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Waits for a future on this thread, so that the contract needs no runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
