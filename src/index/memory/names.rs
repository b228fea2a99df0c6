//! What names mean: for each (space, vocabulary) a table from names to blocks, and the way back.
//!
//! Invariants: a name is bound to a block exactly as long as the block is placed. The way back: the
//! names of a run's own vocabulary lie beside its contents, those of others in `more`, and what
//! fits neither (a second name of a block in one vocabulary, the name 0) in `also`. The way there:
//! the first block bound to a name is in the vocabulary's table, later ones in `dups`, in order. What
//! a store binds is not crowded, so that lists in `dups` stay short and may be walked.
//!
//! Everything but the tables is behind one lock that is held for one block at a time.

use std::collections::HashMap;
use std::sync::Arc;

use super::arena::{Cell, Kind};
use super::orphan::Orphans;
use super::run::{ALSO, MORE, Run, RunId, SEGMENT, VOCABULARY};
use super::sync::Ordering;
use super::table::{Place, Table};
use super::write::{Pen, Shared};
use crate::block::{Name, SpaceId, VocabularyId};
use crate::index::MOST_MEANINGS;

/// How many blocks a name may mean beside the first one bound, which is in the table.
const LATER: usize = MOST_MEANINGS - 1;

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
    pub(super) vocabularies: HashMap<VocId, Vocabulary>,
    pub(super) keys: HashMap<(SpaceId, VocabularyId), VocId>,
    /// By run and segment; ascending by vocabulary.
    pub(super) more: HashMap<(RunId, u32), More>,
    pub(super) also: HashMap<(RunId, u32), Vec<(VocId, Name)>>,
    pub(super) dups: HashMap<(VocId, Name), Vec<Place>>,
    /// Every unplaced block, in no order, so that a sweep can visit a few at a time.
    pub(super) orphans: Vec<(VocId, Name)>,
    last: u32,
}

impl Names {
    /// Whether a name of a vocabulary is bound to a block of a run of `len` blocks.
    pub(super) fn is(&self, run: Run<'_>, at: u32, len: u32, voc: VocId, name: Name) -> bool {
        let own = run.get(VOCABULARY) == voc.0;
        if own && name.0 != 0 && run.name(at, len).load(Ordering::Relaxed) == name.0 {
            return true;
        }
        (!own && run.get(MORE) > 0 && self.further(run, at, voc) == name.0 && name.0 != 0)
            || (run.get(ALSO) > 0
                && self.also.get(&(run.id, at)).is_some_and(|a| a.contains(&(voc, name))))
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
        let first = match run.get(VOCABULARY) == voc.0 {
            true => run.name(at, run.len()).load(Ordering::Relaxed),
            false => self.further(run, at, voc),
        };
        let also = self.also.get(&(run.id, at)).into_iter().flatten();
        let also = also.filter(|a| a.0 == voc).map(|a| a.1);
        [Name(first)].into_iter().filter(|n| n.0 != 0).chain(also).collect()
    }

    /// Bytes of what is not in cells, unplaced blocks left out.
    pub(super) fn bytes(&self) -> usize {
        let more: usize = self.more.values().map(|m| 48 + m.capacity() * 8).sum();
        let also: usize = self.also.values().map(|a| 48 + a.capacity() * 16).sum();
        let dups: usize = self.dups.values().map(|d| 48 + d.capacity() * 8).sum();
        let tables: usize = self.vocabularies.values().map(|v| v.table.directory_bytes()).sum();
        more + also + dups + tables
    }

    /// Bytes of unplaced blocks.
    pub(super) fn orphan_bytes(&self) -> usize {
        let list = self.orphans.capacity() * size_of::<(VocId, Name)>();
        list + self.vocabularies.values().map(|v| v.orphans.bytes()).sum::<usize>()
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
        let orphans = Orphans::default();
        let new = Vocabulary { key, table: table.clone(), orphans, workers: 0 };
        names.vocabularies.insert(id, new);
        names.keys.insert(key, id);
        (id, table)
    }

    /// Forgets a vocabulary that nobody speaks and in which nothing is named.
    pub(super) fn retire_vocabulary(&mut self, id: VocId) {
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get(&id) else { return };
        if voc.workers == 0 && voc.table.len() == 0 && voc.orphans.is_empty() {
            let key = voc.key;
            voc.table.dismantle(&self.shared.arena, &mut self.w.book);
            names.vocabularies.remove(&id);
            names.keys.remove(&key);
        }
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
        let mut names = self.shared.names.write();
        if !own && name.0 != 0 {
            let entry = names.more.entry((id, at / SEGMENT as u32));
            let more = entry.or_insert_with(|| {
                run.set(MORE, run.get(MORE) + 1);
                Vec::new()
            });
            let i = more.binary_search_by_key(&voc, |m| m.0).unwrap_or_else(|i| {
                let cell = self.w.book.take(run.arena, Kind::list(SEGMENT / 2));
                let words = run.arena.words(cell);
                (0..SEGMENT).for_each(|i| words.store(i, 0));
                more.reserve_exact(1);
                more.insert(i, (voc, cell));
                i
            });
            let word = run.arena.words(more[i].1).word(at as usize % SEGMENT);
            match word.load(Ordering::Relaxed) {
                0 => {
                    word.store(name.0, Ordering::Relaxed);
                    return true;
                }
                there if there == name.0 => return false,
                _ => {}
            }
        }
        let also = names.also.entry((id, at)).or_insert_with(|| {
            run.set(ALSO, run.get(ALSO) + 1);
            Vec::new()
        });
        let new = !also.contains(&(voc, name));
        if new {
            also.push((voc, name));
        }
        new
    }

    /// The way from a name to a block that has it already.
    #[inline]
    pub(super) fn link(&mut self, voc: VocId, table: &Table, name: Name, id: RunId, at: u32) {
        let place = Place { run: id.0, at };
        let shared = self.shared;
        let hash = shared.hash(name.0);
        let Pen { w, .. } = self;
        let is = |there: Place| {
            let run = Run::at(&shared.arena, RunId(there.run));
            shared.names.read().is(run, there.at, run.len(), voc, name)
        };
        let rehash = rehash(shared, voc);
        if table.insert(&shared.arena, &mut w.book, hash, place, is, &rehash).is_some() {
            shared.names.write().dups.entry((voc, name)).or_default().push(place);
            w.dups += 1;
        }
    }

    /// Takes the way from a name to a block away.
    fn unlink(&mut self, voc: VocId, table: &Table, name: Name, id: RunId, at: u32) {
        let place = Place { run: id.0, at };
        let hash = self.shared.hash(name.0);
        if self.w.dups > 0 {
            let mut names = self.shared.names.write();
            if let Some(dups) = names.dups.get_mut(&(voc, name)) {
                let i = dups.iter().position(|&p| p == place).unwrap_or(0);
                let next = dups[i];
                dups.remove(i);
                if dups.is_empty() {
                    names.dups.remove(&(voc, name));
                }
                drop(names);
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
            if (at as usize).is_multiple_of(SEGMENT)
                && self.shared.names.write().more.remove(&key).is_some()
            {
                run.set(MORE, run.get(MORE) - 1);
                for (_, cell) in more {
                    self.w.book.give(run.arena, Kind::list(SEGMENT / 2), cell);
                }
            }
        }
        if run.get(ALSO) > 0 {
            let also = self.shared.names.write().also.remove(&(id, at));
            if let Some(also) = also {
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
            let mut names = self.shared.names.write();
            let key = (run.id, place.at / SEGMENT as u32);
            let cell = names.more.get(&key).and_then(|more| {
                let i = more.binary_search_by_key(&voc, |m| m.0).ok()?;
                Some(run.arena.words(more[i].1).word(place.at as usize % SEGMENT))
            });
            match cell {
                Some(word) if name.0 != 0 && word.load(Ordering::Relaxed) == name.0 => {
                    word.store(0, Ordering::Relaxed);
                }
                _ => {
                    if let Some(also) = names.also.get_mut(&(run.id, place.at)) {
                        also.retain(|a| *a != (voc, name));
                        if also.is_empty() {
                            names.also.remove(&(run.id, place.at));
                            run.set(ALSO, run.get(ALSO) - 1);
                        }
                    }
                }
            }
        }
        self.unlink(voc, table, name, run.id, place.at);
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
