//! What names mean: for each (space, vocabulary) a table from names to blocks, and the way back.
//!
//! Invariants: a name is bound to a block exactly as long as the block is placed. The way back: the
//! names of a run's own vocabulary lie beside its contents, those of others in `more`, and what
//! fits neither (a second name of a block in one vocabulary, the name 0) in `also`. The way there:
//! the first block bound to a name is in the vocabulary's table, later ones in `dups`, in order. What
//! a store binds is not crowded, so that lists in `dups` stay short and may be walked; nor is the
//! block full of names, so that those in `also` are few.
//!
//! A vocabulary that nobody speaks is in `keys` no more, so that nothing asks what its names mean, and
//! in the queue `leaving` until the last of them was forgotten (`forget_names`).
//!
//! Everything but the tables is behind one lock that is held for one block at a time.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::arena::{Cell, Kind};
use super::map::Map;
use super::orphan::Orphans;
use super::run::{ALSO, MORE, Run, RunId, SEGMENT, VOCABULARY};
use super::store::STRETCH;
use super::sync::{Ordering, guard};
use super::table::{Place, Table};
use super::write::{Pen, Shared};
use crate::block::{Name, SpaceId, VocabularyId};
use crate::index::{MOST_MEANINGS, MOST_NAMES};

/// How many blocks a name may mean beside the first one bound, which is in the table.
const LATER: usize = MOST_MEANINGS - 1;
/// Names that a store of one stretch binds at most, about: what maps have to have room for.
const SOON: usize = STRETCH;

/// Number of a (space, vocabulary) in use; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct VocId(pub(super) u32);

#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) key: (SpaceId, VocabularyId),
    pub(super) table: Arc<Table>,
    pub(super) orphans: Orphans,
    /// Workers that are at home here.
    pub(super) workers: u32,
}

type More = Vec<(VocId, Cell)>;

#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) vocabularies: Map<VocId, Vocabulary>,
    /// Those that somebody speaks.
    pub(super) keys: Map<(SpaceId, VocabularyId), VocId>,
    /// By run and segment; ascending by vocabulary.
    pub(super) more: Map<(RunId, u32), More>,
    /// By run and block; ascending by vocabulary.
    pub(super) also: Map<(RunId, u32), Vec<(VocId, Name)>>,
    pub(super) dups: Map<(VocId, Name), Vec<Place>>,
    /// Bytes of the lists in `more`, `also` and `dups`.
    lists: usize,
    /// Bytes of unplaced blocks, all vocabularies.
    pub(super) unplaced: Arc<AtomicUsize>,
    last: u32,
}

/// The bytes of a list, in which something was changed, are counted again.
fn recount<T, R>(lists: &mut usize, list: &mut Vec<T>, change: impl FnOnce(&mut Vec<T>) -> R) -> R {
    *lists -= list.capacity() * size_of::<T>();
    let result = change(list);
    *lists += list.capacity() * size_of::<T>();
    result
}

/// The entries of one vocabulary in a list of `also`.
fn of_vocabulary(also: &[(VocId, Name)], voc: VocId) -> &[(VocId, Name)] {
    let from = also.partition_point(|a| a.0 < voc);
    let len = also[from..].partition_point(|a| a.0 == voc);
    &also[from..from + len]
}

impl Names {
    /// Whether a name of a vocabulary is bound to a block of a run of `len` blocks.
    pub(super) fn is(&self, run: Run<'_>, at: u32, len: u32, voc: VocId, name: Name) -> bool {
        let own = run.get(VOCABULARY) == voc.0;
        if own && name.0 != 0 && run.name(at, len).load(Ordering::Relaxed) == name.0 {
            return true;
        }
        (!own && run.get(MORE) > 0 && self.further(run, at, voc) == name.0 && name.0 != 0)
            || (run.get(ALSO) > 0 && self.in_also(run, at, voc).iter().any(|a| a.1 == name))
    }

    fn further(&self, run: Run<'_>, at: u32, voc: VocId) -> u64 {
        let Some(more) = self.more.get(&(run.id, at / SEGMENT as u32)) else { return 0 };
        match more.binary_search_by_key(&voc, |m| m.0) {
            Ok(i) => run.arena.words(more[i].1).load(at as usize % SEGMENT),
            Err(_) => 0,
        }
    }

    /// Every name of a block in a vocabulary.
    fn of(&self, run: Run<'_>, at: u32, voc: VocId) -> Vec<Name> {
        let first = self.first(run, at, voc);
        let also = self.in_also(run, at, voc).iter().map(|a| a.1);
        [Name(first)].into_iter().filter(|n| n.0 != 0).chain(also).collect()
    }

    /// The first name of a block in a vocabulary, 0 for none.
    fn first(&self, run: Run<'_>, at: u32, voc: VocId) -> u64 {
        match run.get(VOCABULARY) == voc.0 {
            true => run.name(at, run.len()).load(Ordering::Relaxed),
            false => self.further(run, at, voc),
        }
    }

    fn in_also(&self, run: Run<'_>, at: u32, voc: VocId) -> &[(VocId, Name)] {
        self.also.get(&(run.id, at)).map_or(&[], |also| of_vocabulary(also, voc))
    }

    /// Bytes of what is not in cells, directories and unplaced blocks left out.
    fn bytes(&self) -> usize {
        // An `Arc` counts its owners in two words before the table, which is aligned.
        let counts = 16usize.next_multiple_of(align_of::<Table>());
        let tables = self.vocabularies.len() * (size_of::<Table>() + counts);
        let maps = self.more.bytes() + self.also.bytes() + self.dups.bytes();
        maps + self.vocabularies.bytes() + self.keys.bytes() + tables + self.lists
    }

    /// Bytes that the maps take more, all at once, if a stretch of names comes.
    fn soon(&self) -> usize {
        self.more.soon(SOON / SEGMENT + 1) + self.also.soon(SOON) + self.dups.soon(SOON)
    }
}

impl Pen<'_> {
    /// The number of a (space, vocabulary), made if it has none.
    pub(super) fn vocabulary(&mut self, key: (SpaceId, VocabularyId)) -> (VocId, Arc<Table>) {
        let mut names = self.shared.names.write();
        if let Some(&id) = names.keys.get(&key) {
            return (id, names.vocabularies[&id].table.clone());
        }
        names.last += 1;
        let id = VocId(names.last);
        let table = Arc::new(Table::new(&self.shared.arena, &mut self.w.book));
        let orphans = Orphans::new(&names.unplaced);
        let new = Vocabulary { key, table: table.clone(), orphans, workers: 0 };
        names.vocabularies.insert(id, new);
        names.keys.insert(key, id);
        self.weigh_names(&names);
        (id, table)
    }

    /// Brings what is known of the bytes of names up to date.
    fn weigh_names(&mut self, names: &Names) {
        (self.w.naming, self.w.naming_soon) = (names.bytes(), names.soon());
    }

    /// A vocabulary loses its names if nobody speaks it any more; those on blocks that others keep go
    /// little by little.
    pub(super) fn leave_vocabulary(&mut self, id: VocId) {
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get(&id) else { return };
        if voc.workers > 0 {
            return;
        }
        let (key, named) = (voc.key, voc.table.len() > 0);
        names.keys.remove(&key);
        drop(names);
        match named {
            true => self.w.leaving.push_back(id),
            false => self.retire_vocabulary(id),
        }
    }

    /// Forgets a vocabulary that nobody speaks and in which nothing is named.
    fn retire_vocabulary(&mut self, id: VocId) {
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get(&id) else { return };
        if voc.workers == 0 && voc.table.len() == 0 && voc.orphans.is_empty() {
            voc.table.dismantle(&self.shared.arena, &mut self.w.book);
            names.vocabularies.remove(&id);
            self.weigh_names(&names);
        }
    }

    /// Takes names of vocabularies that nobody speaks from so many blocks; whether any are left.
    pub(super) fn forget_names(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            let Some(&id) = self.w.leaving.front() else { return false };
            let table = self.shared.names.read().vocabularies.get(&id).map(|v| v.table.clone());
            // Its last names may have gone with their blocks.
            let next = table
                .as_ref()
                .map_or(Err(()), |t| t.first_at(&self.shared.arena, self.w.leaving_at));
            match (next, table) {
                (Ok(Some(place)), Some(table)) => {
                    let run = self.run(RunId(place.run));
                    let names = self.shared.names.read().of(run, place.at, id);
                    debug_assert!(!names.is_empty(), "what is in a table bears its name");
                    self.w.leaving_at += u64::from(names.is_empty());
                    for name in names {
                        self.unname(id, &table, name, place);
                    }
                }
                (Ok(_), _) => self.w.leaving_at += 1,
                (Err(()), _) => {
                    self.retire_vocabulary(id);
                    self.w.leaving.pop_front();
                    self.w.leaving_at = 0;
                }
            }
        }
        !self.w.leaving.is_empty()
    }

    /// Whether a place has this name; for tables that are asked by the writer.
    #[inline]
    pub(super) fn is_named(&self, place: Place, voc: VocId, name: Name) -> bool {
        let run = self.run(RunId(place.run));
        let len = run.len();
        if run.get(VOCABULARY) == voc.0
            && name.0 != 0
            && run.name(place.at, len).load(Ordering::Relaxed) == name.0
        {
            return true;
        }
        (run.get(MORE) > 0 || run.get(ALSO) > 0)
            && self.shared.names.read().is(run, place.at, len, voc, name)
    }

    /// The blocks that a name means, in the order of their binding.
    pub(super) fn places(&mut self, voc: VocId, table: &Table, name: Name, into: &mut Vec<Place>) {
        loop {
            into.clear();
            let hash = self.shared.hash(name.0);
            let found = table.seek(&self.shared.arena, hash, |p| self.is_named(p, voc, name));
            into.extend(found);
            if self.w.dups > 0 {
                let names = self.shared.names.read();
                into.extend(names.dups.get(&(voc, name)).into_iter().flatten());
            }
            let before = self.w.trims;
            for place in into.iter() {
                self.refresh(RunId(place.run));
                if self.w.trims != before {
                    break;
                }
            }
            if self.w.trims == before {
                return;
            }
        }
    }

    /// Whether a name means as many blocks as one may.
    #[inline]
    pub(super) fn is_crowded(&mut self, voc: VocId, table: &Table, name: Name) -> bool {
        self.w.dups >= LATER as u64 && self.means_most(voc, table, name)
    }

    #[cold]
    fn means_most(&mut self, voc: VocId, table: &Table, name: Name) -> bool {
        let later = self.shared.names.read().dups.get(&(voc, name)).map_or(0, Vec::len);
        if later < LATER || !self.w.slots.has_dead() {
            return later >= LATER;
        }
        // Some may be held by the dead only.
        let mut places = std::mem::take(&mut self.w.places);
        self.places(voc, table, name, &mut places);
        let most = places.len() >= MOST_MEANINGS;
        self.w.places = places;
        most
    }

    /// Whether a block has as many names in a vocabulary as it may.
    #[inline]
    pub(super) fn is_full(&self, place: Place, voc: VocId) -> bool {
        let run = self.run(RunId(place.run));
        run.get(ALSO) > 0 && self.has_most_names(run, place.at, voc)
    }

    #[cold]
    fn has_most_names(&self, run: Run<'_>, at: u32, voc: VocId) -> bool {
        let names = self.shared.names.read();
        let also = names.in_also(run, at, voc).len();
        also + usize::from(names.first(run, at, voc) != 0) >= MOST_NAMES
    }

    /// Makes a name mean a block; `false` if it does already.
    pub(super) fn bind(
        &mut self,
        voc: VocId,
        table: &Table,
        id: RunId,
        at: u32,
        name: Name,
    ) -> bool {
        let run = self.run(id);
        let own = run.get(VOCABULARY) == voc.0;
        if own && name.0 != 0 {
            let word = run.name(at, run.len());
            match word.load(Ordering::Relaxed) {
                0 => {
                    word.store(name.0, Ordering::Relaxed);
                    self.link(voc, table, name, id, at);
                    return true;
                }
                there if there == name.0 => return false,
                _ => {}
            }
        }
        if !self.bind_further(voc, id, at, name, own) {
            return false;
        }
        self.link(voc, table, name, id, at);
        true
    }

    fn bind_further(&mut self, voc: VocId, id: RunId, at: u32, name: Name, own: bool) -> bool {
        let run = self.run(id);
        let shared = self.shared;
        let mut guarded = shared.names.write();
        let names = &mut *guarded;
        if !own && name.0 != 0 {
            let column = VocId(run.get(VOCABULARY));
            if run.get(MORE) == 0 && !names.vocabularies.contains_key(&column) {
                // Whose column it was is gone with all its names.
                guard::open(run.guard());
                run.set(VOCABULARY, voc.0);
                run.name(at, run.len()).store(name.0, Ordering::Relaxed);
                guard::close(run.guard());
                return true;
            }
            let more = names.more.or_insert_with((id, at / SEGMENT as u32), || {
                run.set(MORE, run.get(MORE) + 1);
                Vec::new()
            });
            let i = more.binary_search_by_key(&voc, |m| m.0).unwrap_or_else(|i| {
                let cell = self.w.book.take(run.arena, Kind::list(SEGMENT / 2));
                let words = run.arena.words(cell);
                (0..SEGMENT).for_each(|i| words.store(i, 0));
                recount(&mut names.lists, more, |more| more.insert(i, (voc, cell)));
                i
            });
            let word = run.arena.words(more[i].1).word(at as usize % SEGMENT);
            let there = word.load(Ordering::Relaxed);
            if there == 0 {
                word.store(name.0, Ordering::Relaxed);
            }
            if there == 0 || there == name.0 {
                self.weigh_names(names);
                return there == 0;
            }
        }
        let also = names.also.or_insert_with((id, at), || {
            run.set(ALSO, run.get(ALSO) + 1);
            Vec::new()
        });
        let new = of_vocabulary(also, voc).iter().all(|a| a.1 != name);
        if new {
            let at = also.partition_point(|a| a.0 <= voc);
            recount(&mut names.lists, also, |also| also.insert(at, (voc, name)));
            self.weigh_names(names);
        }
        new
    }

    /// The way from a name to a block that has it already.
    #[inline]
    pub(super) fn link(&mut self, voc: VocId, table: &Table, name: Name, id: RunId, at: u32) {
        let place = Place { run: id.0, at };
        let shared = self.shared;
        let hash = shared.hash(name.0);
        let is = |there: Place| {
            let run = Run::at(&shared.arena, RunId(there.run));
            shared.names.read().is(run, there.at, run.len(), voc, name)
        };
        let rehash = rehash(shared, voc);
        if table.insert(&shared.arena, &mut self.w.book, hash, place, is, &rehash).is_some() {
            self.w.dups += 1;
            let mut guarded = shared.names.write();
            let names = &mut *guarded;
            let dups = names.dups.or_insert_with((voc, name), Vec::new);
            recount(&mut names.lists, dups, |dups| dups.push(place));
            self.weigh_names(names);
        }
    }

    /// Takes the way from a name to a block away.
    fn unlink(&mut self, voc: VocId, table: &Table, name: Name, id: RunId, at: u32) {
        let place = Place { run: id.0, at };
        let hash = self.shared.hash(name.0);
        if self.w.dups > 0 {
            let mut guarded = self.shared.names.write();
            let names = &mut *guarded;
            if let Some(dups) = names.dups.get_mut(&(voc, name)) {
                let i = dups.iter().position(|&p| p == place).unwrap_or(0);
                let next = dups.remove(i);
                if dups.is_empty() {
                    names.lists -= dups.capacity() * size_of::<Place>();
                    names.dups.remove(&(voc, name));
                }
                self.weigh_names(names);
                drop(guarded);
                self.w.dups -= 1;
                if next != place {
                    // The first one goes: the next in line takes its place in the table.
                    table.remove(&self.shared.arena, hash, place);
                    let (arena, book) = (&self.shared.arena, &mut self.w.book);
                    let rehash = rehash(self.shared, voc);
                    table.insert(arena, book, hash, next, |_| false, &rehash);
                }
                return;
            }
        }
        let there = table.remove(&self.shared.arena, hash, place);
        debug_assert!(there, "every bound name is in its table");
    }

    /// Takes the names of a block away that is about to go, all vocabularies.
    pub(super) fn unbind(&mut self, id: RunId, at: u32, hint: Option<(VocId, &Table)>) {
        let run = self.run(id);
        let word = run.name(at, run.len());
        let name = word.load(Ordering::Relaxed);
        if name != 0 {
            word.store(0, Ordering::Relaxed);
            let own = VocId(run.get(VOCABULARY));
            match hint {
                Some((voc, table)) if voc == own => self.unlink(own, table, Name(name), id, at),
                _ => self.unlink_any(own, Name(name), id, at),
            }
        }
        if run.get(MORE) > 0 {
            let key = (id, at / SEGMENT as u32);
            let more: More = self.shared.names.read().more.get(&key).cloned().unwrap_or_default();
            for &(voc, cell) in &more {
                let word = run.arena.words(cell).word(at as usize % SEGMENT);
                let name = word.load(Ordering::Relaxed);
                if name != 0 {
                    word.store(0, Ordering::Relaxed);
                    self.unlink_any(voc, Name(name), id, at);
                }
            }
            if (at as usize).is_multiple_of(SEGMENT) {
                let mut names = self.shared.names.write();
                if let Some(gone) = names.more.remove(&key) {
                    names.lists -= gone.capacity() * size_of::<(VocId, Cell)>();
                    run.set(MORE, run.get(MORE) - 1);
                    for (_, cell) in gone {
                        self.w.book.give(run.arena, Kind::list(SEGMENT / 2), cell);
                    }
                    self.weigh_names(&names);
                }
            }
        }
        if run.get(ALSO) > 0 {
            let mut names = self.shared.names.write();
            if let Some(also) = names.also.remove(&(id, at)) {
                names.lists -= also.capacity() * size_of::<(VocId, Name)>();
                self.weigh_names(&names);
                drop(names);
                run.set(ALSO, run.get(ALSO) - 1);
                for (voc, name) in also {
                    self.unlink_any(voc, name, id, at);
                }
            }
        }
    }

    fn unlink_any(&mut self, voc: VocId, name: Name, id: RunId, at: u32) {
        let table = self.shared.names.read().vocabularies.get(&voc).map(|v| v.table.clone());
        if let Some(table) = table {
            self.unlink(voc, &table, name, id, at);
            if table.len() == 0 {
                self.retire_vocabulary(voc);
            }
        }
    }

    /// Every binding of a vocabulary: names in order, the blocks of each in the order of binding.
    pub(super) fn bindings(&mut self, voc: VocId, table: &Table) -> Vec<(Name, Place)> {
        let names = self.shared.names.read();
        let mut first: Vec<(Name, Place)> = Vec::new();
        for place in table.places(&self.shared.arena) {
            let run = self.run(RunId(place.run));
            for name in names.of(run, place.at, voc) {
                let later = names.dups.get(&(voc, name)).is_some_and(|d| d.contains(&place));
                if !later {
                    first.push((name, place));
                }
            }
        }
        first.sort_by_key(|(name, place)| (*name, place.run, place.at));
        first.dedup();
        let mut all = Vec::new();
        for (name, place) in first {
            let later = names.dups.get(&(voc, name)).into_iter().flatten();
            all.push((name, place));
            all.extend(later.map(|&place| (name, place)));
        }
        all
    }

    /// Takes one name of a block away, both ways.
    pub(super) fn unname(&mut self, voc: VocId, table: &Table, name: Name, place: Place) {
        let run = self.run(RunId(place.run));
        let word = run.name(place.at, run.len());
        if run.get(VOCABULARY) == voc.0 && word.load(Ordering::Relaxed) == name.0 {
            word.store(0, Ordering::Relaxed);
        } else {
            let shared = self.shared;
            let mut guarded = shared.names.write();
            let names = &mut *guarded;
            if !self.take_from_more(names, run, place.at, voc, name)
                && let Some(also) = names.also.get_mut(&(run.id, place.at))
            {
                recount(&mut names.lists, also, |also| {
                    also.retain(|a| *a != (voc, name));
                    if also.len() < also.capacity() / 4 {
                        also.shrink_to(also.len() * 2);
                    }
                });
                if also.is_empty() {
                    names.also.remove(&(run.id, place.at));
                    run.set(ALSO, run.get(ALSO) - 1);
                }
            }
            self.weigh_names(names);
        }
        self.unlink(voc, table, name, run.id, place.at);
    }

    /// Takes a name that a block has in a vocabulary beside its run's own, and the cell if it was the
    /// last one in it; whether it was there.
    fn take_from_more(
        &mut self,
        names: &mut Names,
        run: Run<'_>,
        at: u32,
        voc: VocId,
        name: Name,
    ) -> bool {
        let key = (run.id, at / SEGMENT as u32);
        let Some(more) = names.more.get_mut(&key) else { return false };
        let Ok(i) = more.binary_search_by_key(&voc, |m| m.0) else { return false };
        let cell = more[i].1;
        let words = run.arena.words(cell);
        if name.0 == 0 || words.load(at as usize % SEGMENT) != name.0 {
            return false;
        }
        words.store(at as usize % SEGMENT, 0);
        if (0..SEGMENT).all(|i| words.load(i) == 0) {
            self.w.book.give(run.arena, Kind::list(SEGMENT / 2), cell);
            recount(&mut names.lists, more, |more| {
                more.remove(i);
                if more.len() < more.capacity() / 4 {
                    more.shrink_to(more.len() * 2);
                }
            });
            if more.is_empty() {
                names.more.remove(&key);
                run.set(MORE, run.get(MORE) - 1);
            }
        }
        true
    }
}

/// How a table of names that outgrew its slots' bits finds the hash of an entry.
fn rehash(shared: &Shared, voc: VocId) -> impl Fn(Place, u64) -> u64 + '_ {
    move |place, tag| {
        let run = Run::at(&shared.arena, RunId(place.run));
        let names = shared.names.read().of(run, place.at, voc);
        let mut hashes = names.into_iter().map(|n| shared.hash(n.0));
        hashes.find(|h| (h ^ tag) & 0x1ff_ffff == 0).unwrap_or(tag)
    }
}
