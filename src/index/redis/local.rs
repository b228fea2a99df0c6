//! What a client remembers of the store: facts that cannot change while the store lives, and the
//! table of who is who as of a generation.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::chain::{ChainKey, Key, Tag};
use super::join::Way;
use super::names::Names;
use super::place::{Place, Spot};
use super::recent::Recent;
use crate::block::{Group, Name, SpaceId, Tier, VocabularyId, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::index::Home;

/// What was read when the store was opened.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) chain: ChainKey,
    pub(super) birth: Vec<u8>,
    /// Groups of the names of a vocabulary.
    pub(super) groups: u32,
}

/// The cluster's secret, which nothing prints.
#[derive(Clone, Copy)]
pub(super) struct Kept(pub(super) [u8; 32]);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a secret")
    }
}

/// A slot's (worker, group, tier), by the worker's number in the store.
pub(super) type Owner = (u32, Group, Tier);

/// Who is who in a space, as of a generation.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) generation: i64,
    pub(super) slots: HashMap<u32, Owner>,
    pub(super) workers: HashMap<u32, Record>,
}

/// A worker's record in the table of its space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The vocabulary's number.
    pub(super) vocabulary: u32,
    /// What this process calls the worker.
    pub(super) id: WorkerId,
    /// Who must live for the worker to count; empty if nobody.
    pub(super) owner: String,
}

/// A worker's home with the numbers that the store gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) home: Home,
    pub(super) space: u32,
    pub(super) vocabulary: u32,
    pub(super) worker: u32,
}

/// Sizes that changed and are not yet added to the space's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) blocks: i64,
    pub(super) entries: i64,
}

/// The block that a worker stored last. Whoever stored it first may not have bound its name yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) vocabulary: u32,
    pub(super) name: Name,
    pub(super) spot: Spot,
    /// Whether the name meant nothing else when the block was stored.
    pub(super) alone: bool,
    /// When that was; `None` if this client has taken anything away from the worker since, or knows that it lost what it held.
    pub(super) stored: Option<Instant>,
}

impl Last {
    /// Whether the worker holds this block, as far as this client can know: it stored it a moment ago.
    pub(super) fn is_held(&self, place: &Place) -> bool {
        self.spot.place == *place && self.stored.is_some_and(|stored| stored.elapsed() < HELD)
    }
}

/// A retired slot that still stands in runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dead {
    pub(super) space: u32,
    pub(super) slot: u32,
    pub(super) worker: u32,
}

/// A client's memory. Never held across a call to the store.
#[derive(Debug, Default)]
pub(super) struct Local {
    pub(super) opened: Option<Arc<Opened>>,
    /// The secret, once it is known; it outlives the store.
    pub(super) secret: Option<Kept>,
    /// How often the store was found to be another one.
    pub(super) lives: u64,
    pub(super) texts: Texts,
    pub(super) spaces: HashMap<SpaceId, u32>,
    /// By space's number.
    pub(super) vocabularies: HashMap<(u32, VocabularyId), u32>,
    pub(super) workers: HashMap<WorkerId, u32>,
    pub(super) members: HashMap<WorkerId, Member>,
    pub(super) slots: HashMap<(u32, Owner), u32>,
    pub(super) tables: HashMap<u32, Arc<Table>>,
    pub(super) deltas: HashMap<u32, Delta>,
    pub(super) dead: Vec<Dead>,
    pub(super) names: Names,
    pub(super) ends: Ends,
    /// By worker: the block that it stored last.
    pub(super) last: HashMap<u32, Last>,
    /// Lists whose end was put off lately, by space and slot, and since when they are noted.
    pub(super) fresh: HashSet<(u32, u32)>,
    pub(super) fresh_since: Option<Instant>,
    /// By space: when its birth was last found to be that of the store.
    pub(super) born: HashMap<u32, Instant>,
    /// When this client last made sure that the store is the one it knows.
    pub(super) looked: Option<Instant>,
    /// The server keeps slots apart, though it is asked as one that has them all.
    pub(super) slots_apart: bool,
    /// Owners of workers: whether they lived when this client asked.
    pub(super) owners: HashMap<String, (bool, Instant)>,
}

/// For so long a space's birth need not be compared again. A store that was emptied shows at once, as its table is
/// gone, too; this is for the loss of the space's key alone.
const BORN: Duration = Duration::from_secs(1);

/// For so long a block that a worker stored need not be looked for: what a server throws away is not what it was just given.
const HELD: Duration = Duration::from_secs(1);

impl Local {
    /// Forgets what holds for one life of the store only. What was bound by the process stays.
    pub(super) fn reopen(&mut self) {
        let texts = std::mem::take(&mut self.texts);
        *self = Local { texts, secret: self.secret, lives: self.lives + 1, ..Local::default() };
    }

    /// Whether numbers that were looked up when there had been so many lives are still the store's.
    pub(super) fn same_life(&self, lives: u64) -> Result<(), Error> {
        if self.lives == lives { Ok(()) } else { Err(lost_meanwhile()) }
    }

    /// Whether what was opened is still the store.
    pub(super) fn same_store(&self, opened: &Opened) -> Result<(), Error> {
        let same = self.opened.as_ref().is_some_and(|now| now.birth == opened.birth);
        if same { Ok(()) } else { Err(lost_meanwhile()) }
    }

    /// Whether the end of a slot's list is to be put off, which is once in each `every`.
    pub(super) fn put_off(&mut self, key: (u32, u32), every: Duration) -> bool {
        if self.fresh_since.is_none_or(|since| since.elapsed() > every) {
            self.fresh.clear();
            self.fresh_since = Some(Instant::now());
        }
        self.fresh.insert(key)
    }

    /// Whether a space's birth was compared just now.
    pub(super) fn is_born(&self, space: u32) -> bool {
        self.born.get(&space).is_some_and(|since| since.elapsed() < BORN)
    }

    /// A worker may hold less than what it stored.
    pub(super) fn took_from(&mut self, worker: u32) {
        if let Some(last) = self.last.get_mut(&worker) {
            last.stored = None;
        }
    }

    pub(super) fn changed(&mut self, space: u32, blocks: i64, entries: i64) {
        let delta = self.deltas.entry(space).or_default();
        delta.blocks += blocks;
        delta.entries += entries;
    }
}

fn lost_meanwhile() -> Error {
    let text = "the store was lost or made anew meanwhile: the same call again goes on there";
    Error::new(ErrorKind::Unavailable, text)
}

/// The last blocks of pieces that this client stored, by vocabulary, segment and key: how the next worker
/// probably gets its copies, which it joins where the whole piece lies in the segment's first run.
#[derive(Debug)]
pub(super) struct Ends(Recent<(u32, Tag, Key), Way>);

impl Default for Ends {
    /// Some 35 bytes each.
    fn default() -> Ends {
        Ends(Recent::new(7 << 11))
    }
}

impl Ends {
    /// How a piece that ends with this block gets its copies. The first one is stored, and noted as one to join: commands
    /// of one connection come in order, so that who is next need not wait for the answer.
    pub(super) fn way(&mut self, vocabulary: u32, tag: Tag, key: Key) -> Way {
        let at = (vocabulary, tag, key);
        let known = self.0.get(&at);
        if known.is_none() {
            self.0.put(at, Way::JoinProven);
        }
        known.unwrap_or(Way::Store)
    }

    /// That was not so: the next one goes this way.
    pub(super) fn part(&mut self, vocabulary: u32, tag: Tag, key: Key, next: Way) {
        self.0.put((vocabulary, tag, key), next);
    }
}

/// What local numbers are called in the store.
#[derive(Debug, Default)]
pub(super) struct Texts {
    spaces: HashMap<SpaceId, String>,
    vocabularies: HashMap<VocabularyId, String>,
    workers: HashMap<WorkerId, String>,
    by_text: HashMap<String, WorkerId>,
    /// How many workers have an id that nobody in this process gave them.
    strangers: u32,
}

/// Workers that others registered and this process has no id for get ids from here on.
pub(super) const STRANGERS: u32 = 1 << 31;

impl Texts {
    pub(super) fn space(&self, id: SpaceId) -> String {
        self.spaces.get(&id).cloned().unwrap_or_else(|| id.0.to_string())
    }

    pub(super) fn vocabulary(&self, id: VocabularyId) -> String {
        self.vocabularies.get(&id).cloned().unwrap_or_else(|| id.0.to_string())
    }

    pub(super) fn worker(&self, id: WorkerId) -> String {
        self.workers.get(&id).cloned().unwrap_or_else(|| id.0.to_string())
    }

    pub(super) fn name_space(&mut self, id: SpaceId, text: &str) {
        self.spaces.insert(id, text.to_owned());
    }

    pub(super) fn name_vocabulary(&mut self, id: VocabularyId, text: &str) {
        self.vocabularies.insert(id, text.to_owned());
    }

    /// Whether the text meant another id until now, or none.
    pub(super) fn name_worker(&mut self, id: WorkerId, text: &str) -> bool {
        self.workers.insert(id, text.to_owned());
        self.by_text.insert(text.to_owned(), id) != Some(id)
    }

    /// The local id of a worker of the store.
    pub(super) fn worker_id(&mut self, text: &str) -> WorkerId {
        if let Some(&id) = self.by_text.get(text) {
            return id;
        }
        if let Ok(number) = text.parse()
            && number < STRANGERS
            && !self.workers.contains_key(&WorkerId(number))
        {
            return WorkerId(number);
        }
        let id = WorkerId(STRANGERS + self.strangers % STRANGERS);
        self.strangers += 1;
        self.name_worker(id, text);
        id
    }

    /// What a worker is called, if it was named or met.
    pub(super) fn known(&self, id: WorkerId) -> Option<&str> {
        self.workers.get(&id).map(String::as_str)
    }
}
