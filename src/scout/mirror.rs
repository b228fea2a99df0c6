//! What batches change, told to somebody who keeps the same elsewhere.
//!
//! A stream records what it does to the index and hands it over between two batches, under its lock:
//! so each worker's changes come in their order, and none is missing from what is told.

use std::fmt;

use super::stream::Shared;
use crate::block::{Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::error::Error;
use crate::index::{Applied, Block, Change, Home, Parent, Store};
use crate::ingest::snapshot::Watermark;

/// Keeps elsewhere what a scout's workers hold; see [`Options::mirror`](super::Options::mirror).
pub trait Mirror: fmt::Debug + Send + Sync {
    /// Something of a worker has changed. Called under the lock of its stream, in order for each worker: the
    /// next batch waits until this returns, and the scout must not be called from here.
    fn moved(&self, moved: Moved);
}

/// A step of one worker's stream.
#[derive(Clone, Debug)]
pub struct Moved {
    /// The worker.
    pub worker: WorkerId,
    /// Where its blocks belong.
    pub home: Home,
    /// Which life of its publisher it is, as this scout counts.
    pub incarnation: u64,
    /// The last batch applied before this step.
    pub before: Option<Watermark>,
    /// The last batch applied with it.
    pub after: Option<Watermark>,
    /// What it changed, in order.
    pub changes: Changes,
    /// What these did here.
    pub applied: Applied,
    /// Whether the changes say everything. If not, the worker was begun anew, or its names moved: whoever
    /// keeps the same takes it from a [`snapshot`](super::Scout::snapshot).
    pub is_whole: bool,
    /// The worker was unregistered.
    pub is_gone: bool,
}

/// A list of changes that owns its blocks and names.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    blocks: Vec<Block>,
    names: Vec<Name>,
    changes: Vec<Outline>,
}

/// A change; its blocks or names are the next ones of their list.
#[derive(Clone, Copy, Debug)]
enum Outline {
    Store { shape: Shape, group: Group, tier: Tier, parent: Parent, blocks: usize },
    Remove { group: Group, tier: Tier, names: usize },
    Clear { tier: Option<Tier> },
}

impl Changes {
    /// Adds a change at the end.
    pub fn push(&mut self, change: &Change<'_>) {
        self.changes.push(match *change {
            Change::Store(Store { shape, group, tier, parent, blocks }) => {
                self.blocks.extend_from_slice(blocks);
                Outline::Store { shape, group, tier, parent, blocks: blocks.len() }
            }
            Change::Remove { group, tier, names } => {
                self.names.extend_from_slice(names);
                Outline::Remove { group, tier, names: names.len() }
            }
            Change::Clear { tier } => Outline::Clear { tier },
        });
    }

    /// The changes, in order.
    pub fn list(&self) -> Vec<Change<'_>> {
        let (mut blocks, mut names) = (&self.blocks[..], &self.names[..]);
        let change = |outline: &Outline| match *outline {
            Outline::Store { shape, group, tier, parent, blocks: n } => {
                let (these, rest) = blocks.split_at(n);
                blocks = rest;
                Change::Store(Store { shape, group, tier, parent, blocks: these })
            }
            Outline::Remove { group, tier, names: n } => {
                let (these, rest) = names.split_at(n);
                names = rest;
                Change::Remove { group, tier, names: these }
            }
            Outline::Clear { tier } => Change::Clear { tier },
        };
        self.changes.iter().map(change).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many blocks they store.
    pub fn stored(&self) -> usize {
        self.blocks.len()
    }

    /// The memory that they take.
    pub fn bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Block>()
            + self.names.capacity() * size_of::<Name>()
            + self.changes.capacity() * size_of::<Outline>()
    }
}

/// What a stream has to tell.
#[derive(Debug, Default)]
pub(super) struct Record {
    changes: Changes,
    applied: Applied,
    /// Something happened that the changes do not say.
    broken: bool,
    /// The last batch that was told of.
    told: Option<Watermark>,
}

impl Record {
    /// The record of a stream whose state up to a batch is known.
    pub(super) fn since(told: Option<Watermark>) -> Record {
        Record { told, ..Record::default() }
    }

    /// Changes the index, and notes it if anybody wants to know.
    pub(super) fn apply(
        &mut self,
        shared: &Shared,
        worker: WorkerId,
        changes: &[Change<'_>],
    ) -> Result<Applied, Error> {
        let applied = shared.index.apply(worker, changes);
        if shared.mirror.is_some() {
            changes.iter().for_each(|change| self.changes.push(change));
            match &applied {
                Ok(applied) => self.applied.add(applied),
                Err(_) => self.broken = true,
            }
        }
        applied
    }

    /// What is held changes in another way.
    pub(super) fn breaks(&mut self) {
        self.broken = true;
    }

    /// What is to be told, if anything; who it is about is the caller's to fill in.
    pub(super) fn next(&mut self, now: Option<Watermark>, is_gone: bool) -> Option<Moved> {
        if self.changes.is_empty() && !self.broken && !is_gone && self.told == now {
            return None;
        }
        let Record { changes, applied, broken, told } = std::mem::replace(self, Record::since(now));
        Some(Moved {
            worker: WorkerId(0),
            home: Home { space: SpaceId(0), vocabulary: VocabularyId(0) },
            incarnation: 0,
            before: told,
            after: now,
            changes,
            applied,
            is_whole: !broken,
            is_gone,
        })
    }
}
