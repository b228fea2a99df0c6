//! Looking ahead: while a name of a batch is applied, the buckets of the next ones are on their way.
//!
//! Only buckets are asked for. The blocks that names mean follow each other in runs, so their
//! records and segments are mostly those of the name before.
//!
//! Invariant: nothing is changed here, and nothing that is read here decides anything.

use super::table::Table;
use super::write::Shared;
use crate::block::Name;
use crate::index::{Change, Parent, Store};

/// How many names ahead of the one that is applied: so many reads of memory overlap.
const FAR: usize = 12;
/// Of the blocks of a store, those whose buckets are asked for here; the store does the rest.
const STORED: usize = 8;

/// The names of a batch that come next.
#[derive(Debug)]
pub(super) struct Ahead<'c> {
    /// The next name of the first of `changes`, if there are any.
    name: usize,
    changes: &'c [Change<'c>],
}

impl<'c> Ahead<'c> {
    /// Asks for the first names of a batch.
    pub(super) fn new(changes: &'c [Change<'c>], shared: &Shared, table: &Table) -> Ahead<'c> {
        let mut ahead = Ahead { name: 0, changes };
        ahead.advance(FAR, shared, table);
        ahead
    }

    /// How far a store moves the names on.
    pub(super) fn names_of(store: &Store<'_>) -> usize {
        usize::from(matches!(store.parent, Parent::Block(_))) + store.blocks.len().min(STORED)
    }

    fn next(&mut self) -> Option<Name> {
        while let [change, rest @ ..] = self.changes {
            let at = self.name;
            self.name += 1;
            let next = match change {
                Change::Remove { names, .. } => names.get(at).copied(),
                Change::Store(Store { parent, blocks, .. }) => match (parent, at) {
                    (Parent::Block(name), 0) => Some(*name),
                    (Parent::Block(_), at) => blocks.get(at - 1).map(|b| b.name),
                    (_, at) => blocks.get(at).map(|b| b.name),
                }
                .filter(|_| at < STORED),
                Change::Clear { .. } => None,
            };
            if next.is_some() {
                return next;
            }
            (self.changes, self.name) = (rest, 0);
        }
        None
    }

    /// So many names were applied: as many more are asked for.
    #[inline]
    pub(super) fn advance(&mut self, names: usize, shared: &Shared, table: &Table) {
        for _ in 0..names {
            let Some(name) = self.next() else { return };
            table.touch_home(&shared.arena, shared.hash(name.0));
        }
    }
}
