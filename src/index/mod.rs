//! The index: which worker holds which blocks, in which tier and cache group, how many times.
//!
//! An index knows blocks, workers and tiers, nothing of engines and nothing of tokens. Content
//! reaches it as [`Digest`]s, engine hashes as [`Name`]s; what it needs of a prompt it asks through
//! [`BlockSource`]. [`Index`] is the contract that every backend keeps;
//! `conformance` (feature) runs it as a test.
//!
//! # The model
//!
//! Every (space, [`Shape`]) is a tree: a child is found by the digest of its content, so a path
//! from the root is a prompt prefix. A block is **placed** when its path is known. A name means a
//! block within one (space, vocabulary); several placed blocks may carry the same 64-bit name, and
//! a removal then hits the one that the worker holds. At most [`MOST_MEANINGS`] may: a store that
//! would make a name mean one more is refused from that block on. So is one that would give a block
//! more than [`MOST_NAMES`] names of one vocabulary.
//!
//! - The names of a (space, vocabulary) are known as long as some worker has it as its [`Home`]. When
//!   the last one leaves, by [`remove`](Index::remove) or [`assign`](Index::assign), they are gone, also from
//!   blocks that others keep: a vocabulary that is used again begins without names. To clear a
//!   worker's blocks is not leaving.
//! - A *placed* block stays in the tree as long as some worker holds it or something below it.
//! - A block whose parent is not placed (an orphan), or that is known by name only, is
//!   **unplaced**. It can be removed and it can be matched by name, but it never matches by
//!   content. An orphan is placed as soon as its parent is; a name-only block as soon as some worker
//!   of its vocabulary stores the same name with its content.
//! - Residency counts physical copies per (worker, group, tier): a block that was stored twice is
//!   resident until it was removed twice. A store in one group more than the [`MOST_GROUPS`] of which
//!   its worker holds blocks is refused as a whole.
//!
//! # Clients
//!
//! What one client has applied, its own later calls see. Where several clients share what a backend
//! keeps, each sees the others' changes once they are made there, not at once: what its lookups say of
//! a worker is true of some moment between its last look and now. Between clients, further, the order
//! in which a name was bound to several blocks is that of arrival; a batch may be seen in part while
//! it is applied; and [`Stats`] miss what other clients have changed since they last asked for them.

mod holdings;
pub(crate) mod image;
mod memory;
#[cfg(feature = "redis")]
pub mod redis;
mod residency;

use std::future::Future;
use std::ops::Range;

pub use holdings::Holding;
pub use image::Image;
pub(crate) use memory::Held;
pub use memory::{MemoryIndex, MemoryOptions};
pub use residency::Residencies;

use crate::block::{Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::error::Error;

/// How many placed blocks of one (space, vocabulary) a [`Store`] may make a name mean. Honest names
/// collide once in 2^32 blocks or so; who makes many collide must not make others look through all
/// of them. Names that move with their worker ([`Index::assign`]) are not refused, nor is the one
/// unplaced block of a name when it is placed.
pub const MOST_MEANINGS: usize = 16;

/// Of how many cache groups one worker may hold blocks at a time. Engines have one, hybrid models a
/// handful, one for each kind of layer; who names many more must not make each of its changes look
/// through them, nor use up what there is for all workers. A group that holds nothing does not count.
pub const MOST_GROUPS: usize = 64;

/// How many names of one (space, vocabulary) a [`Store`] may give one placed block. Engines have one
/// for each content; one that hides extra keys calls a shared beginning by a name for each of them.
/// Who makes up ever new ones must not take memory for them. See [`Index::evicted`] for blocks that
/// come to have more in another way: names that move with their worker, orphans that are placed.
pub const MOST_NAMES: usize = 64;

/// One block of a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// What the engine calls the block.
    pub name: Name,
    /// Its content, or `None` when only the name is known.
    pub digest: Option<Digest>,
}

/// What comes before the first block of a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// Nothing: the block starts a prompt.
    Root,
    /// The block with this name.
    Block(Name),
    /// The event does not say; blocks with a content cannot be placed.
    Unknown,
}

/// Blocks of one chain that became resident, each after its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store<'a> {
    /// How the prompt was cut.
    pub shape: Shape,
    /// Cache group.
    pub group: Group,
    /// Where the copies lie.
    pub tier: Tier,
    /// What comes before `blocks[0]`.
    pub parent: Parent,
    /// The blocks, in prompt order.
    pub blocks: &'a [Block],
}

/// One change of one worker's residency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// One more copy of each block.
    Store(Store<'a>),
    /// One copy less of each block.
    Remove {
        /// Cache group.
        group: Group,
        /// Where the copies lay.
        tier: Tier,
        /// The blocks.
        names: &'a [Name],
    },
    /// All copies of the worker are gone.
    Clear {
        /// In this tier only, or in all.
        tier: Option<Tier>,
    },
}

/// What [`Index::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Copies added.
    pub stored: u64,
    /// Copies taken away by [`Change::Remove`].
    pub removed: u64,
    /// Names in a [`Change::Remove`] of which the worker held no copy.
    pub unknown_removals: u64,
    /// Stores of blocks with a content below a block of which the worker held no copy in any group and
    /// tier, and that are not said to start a prompt. An engine stores a block while it holds the one before.
    pub unknown_parents: u64,
    /// Copies added to unplaced blocks.
    pub unplaced: u64,
    /// Copies not added because the worker's share of unplaced blocks was full, because a name meant
    /// [`MOST_MEANINGS`] other blocks or a block had [`MOST_NAMES`] other names, because the worker held
    /// blocks of [`MOST_GROUPS`] other groups, or because no memory was left and nothing could be
    /// evicted; and copies given up because a backend cannot say more exactly who holds what of a
    /// stretch of blocks, or for more holders.
    pub refused: u64,
}

impl Applied {
    /// Adds what another call did.
    pub fn add(&mut self, other: &Applied) {
        self.stored += other.stored;
        self.removed += other.removed;
        self.unknown_removals += other.unknown_removals;
        self.unknown_parents += other.unknown_parents;
        self.unplaced += other.unplaced;
        self.refused += other.refused;
    }
}

/// Where a worker's blocks belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The worker's (tenant, model).
    pub space: SpaceId,
    /// The contract of its names.
    pub vocabulary: VocabularyId,
}

/// A prompt's blocks, produced one after the other while a lookup walks.
///
/// An index asks for the first block first and for further ones as it comes to them, a few at a time;
/// it stops asking as soon as no worker can match. Implementations compute lazily, and keep what they
/// computed: an index may ask for the same blocks again.
pub trait BlockSource {
    /// How many full blocks the prompt has.
    fn len(&self) -> usize;

    /// Whether the prompt has no full block.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The contents of the blocks from number `from` on: at least `least` of them, which exist, or
    /// more if they are at hand. Nothing when the prompt is known by names only.
    fn digests(&mut self, from: usize, least: usize) -> &[Digest];

    /// What an engine of this vocabulary would call the block; `None` when that cannot be computed.
    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name>;

    /// What else an engine of this vocabulary may call it, where two generations of engines call plain text alike
    /// and this block not. A block that is held under either name is held.
    fn second_name(&mut self, _vocabulary: VocabularyId, _block: usize) -> Option<Name> {
        None
    }
}

/// What a lookup is about.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The (tenant, model) asked for.
    pub space: SpaceId,
    /// How the prompt was cut.
    pub shape: Shape,
    /// Only these workers, ascending; `None` means every worker of the space.
    pub candidates: Option<&'a [WorkerId]>,
    /// Whether [`Matches::spans`] is wanted (workers with sliding-window groups exist). It costs
    /// walking on where nobody holds a leading block any more.
    pub spans: bool,
}

/// How far one worker holds a prompt in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// The worker.
    pub worker: WorkerId,
    /// The cache group.
    pub group: Group,
    /// `leading[t]` is the number of leading blocks that are each resident in one of the tiers
    /// `Tier::KNOWN[..=t]`.
    pub leading: [u32; 4],
    /// Of the `leading[3]` blocks, how many have `Tier::KNOWN[t]` as their fastest tier.
    pub fastest: [u32; 4],
}

/// A maximal stretch of a prompt's blocks that a worker holds in one group on [`Tier::Gpu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The worker.
    pub worker: WorkerId,
    /// The cache group.
    pub group: Group,
    /// First block of the stretch.
    pub start: u32,
    /// One past its last block.
    pub end: u32,
}

/// Workers that hold a prompt equally far in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The cache group.
    pub group: Group,
    /// See [`Match::leading`].
    pub leading: [u32; 4],
    /// See [`Match::fastest`].
    pub fastest: [u32; 4],
    /// Where in [`Matches::members`] the workers begin.
    pub from: u32,
    /// One past the last of them.
    pub to: u32,
}

impl Class {
    /// Where in [`Matches::members`] the workers are.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        self.from as usize..self.to as usize
    }
}

/// The answer of a lookup, owned by the caller and reused. It also owns the memory that a lookup
/// works in, so that one with an answer of the usual size allocates nothing.
///
/// Most workers that hold a popular prompt hold equally much of it, so the answer says that once for
/// all of them; [`iter`](Matches::iter) takes it apart.
#[derive(Debug, Default)]
pub struct Matches {
    /// In no order. Each (worker, group) that holds a leading block is a member of exactly one class,
    /// the others of none; two classes may say the same, none is empty.
    pub classes: Vec<Class>,
    /// The members of all classes, one class after the other.
    pub members: Vec<WorkerId>,
    /// In no order; empty unless [`Query::spans`] was set.
    pub spans: Vec<Span>,
    /// What a lookup works in.
    pub(crate) scratch: memory::Scratch,
}

impl Matches {
    /// Forgets the answer, keeps the memory.
    pub fn clear(&mut self) {
        self.classes.clear();
        self.members.clear();
        self.spans.clear();
    }

    /// The workers of one of the classes; none for a class of another answer.
    #[inline]
    pub fn members(&self, class: &Class) -> &[WorkerId] {
        self.members.get(class.range()).unwrap_or_default()
    }

    /// Worker by worker, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Match> + '_ {
        self.classes.iter().flat_map(|class| {
            let &Class { group, leading, fastest, .. } = class;
            let of = move |&worker| Match { worker, group, leading, fastest };
            self.members(class).iter().map(of)
        })
    }

    /// Adds one worker in one group: to the last class, if that says the same.
    pub fn push(&mut self, found: Match) {
        Matches::push_to(&mut self.classes, &mut self.members, found);
    }

    fn push_to(classes: &mut Vec<Class>, members: &mut Vec<WorkerId>, found: Match) {
        let Match { worker, group, leading, fastest } = found;
        let at = members.len() as u32;
        members.push(worker);
        match classes.last_mut() {
            Some(last) if (last.group, last.leading, last.fastest) == (group, leading, fastest) => {
                last.to = at + 1;
            }
            _ => classes.push(Class { group, leading, fastest, from: at, to: at + 1 }),
        }
    }

    /// The answer in one order, for comparisons: matches by worker and group, spans by worker, group
    /// and start.
    pub fn sorted(&self) -> (Vec<Match>, Vec<Span>) {
        let (mut matches, mut spans): (Vec<_>, _) = (self.iter().collect(), self.spans.clone());
        matches.sort_unstable_by_key(|m| (m.worker, m.group));
        spans.sort_unstable();
        (matches, spans)
    }
}

/// Sizes of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Placed blocks. While `unswept` is not 0, those that only the gone held may be among them.
    pub blocks: u64,
    /// Unplaced blocks, likewise.
    pub unplaced: u64,
    /// (block, worker, group, tier) entries.
    pub entries: u64,
    /// What is still to be swept, which no answer shows: entries of workers, groups and tiers that were
    /// cleared or forgotten, which `entries` does not count, names of vocabularies that are no worker's
    /// home any more, and those vocabularies.
    pub unswept: u64,
    /// Entries given up so far because the memory was full; they are not in `entries` any more.
    /// [`Index::evicted`] says whose.
    pub evicted: u64,
    /// Bytes in use for all of this; 0 where a backend cannot say.
    pub bytes: u64,
    /// Bytes asked of the system, in use or kept for later; 0 where a backend cannot say.
    pub reserved: u64,
}

/// The contract of a backend.
///
/// Calls for one worker are made in order, by one caller at a time; calls for different workers and
/// lookups run beside them. `apply` is **not** idempotent, since a second copy counts: the caller
/// makes each batch apply once.
pub trait Index: Send + Sync {
    /// Gives a worker its home, before its first [`Change`].
    ///
    /// Called again with another vocabulary, the worker's names move there with everything they
    /// mean; the space of a worker that holds blocks never changes. A name that moves to a block with
    /// [`MOST_NAMES`] others is forgotten, and with it the worker's copies of that block, which
    /// [`evicted`](Index::evicted) says.
    fn assign(
        &self,
        worker: WorkerId,
        home: Home,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Applies changes in order.
    ///
    /// # Errors
    ///
    /// A worker without a home is an error of kind
    /// [`UnknownWorker`](crate::ErrorKind::UnknownWorker); nothing was applied.
    fn apply(
        &self,
        worker: WorkerId,
        changes: &[Change<'_>],
    ) -> impl Future<Output = Result<Applied, Error>> + Send;

    /// Writes into `matches` how far each worker holds the prompt.
    ///
    /// An unknown space or shape gives an empty answer.
    fn lookup(
        &self,
        query: &Query<'_>,
        blocks: &mut (impl BlockSource + Send),
        matches: &mut Matches,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Forgets a worker: its copies and its home. Forgetting an unknown worker does nothing.
    fn remove(&self, worker: WorkerId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether the index gave up copies of a worker that the worker did not remove, since it has a
    /// home or was last cleared in all tiers, whichever is later: what lookups say of it is less than
    /// its changes amount to. `false` for an unknown worker. Copies go where memory is full, and where
    /// a block that comes to have more names than [`MOST_NAMES`] by other ways than a store: with an
    /// orphan that is placed, which is given up, or with names that move.
    ///
    /// Where memory is another program's affair (a server that evicts or expires keys), this says what
    /// the backend did itself. True before the first of them is missing: an answer was whole if this is false after the
    /// lookup, and the worker was not cleared in between.
    fn evicted(&self, worker: WorkerId) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Sizes, for metrics. A backend that sweeps little by little does some of it here, so that who
    /// asks again and again while nothing changes finds [`Stats::unswept`] to be 0 in the end.
    fn stats(&self) -> impl Future<Output = Result<Stats, Error>> + Send;
}
