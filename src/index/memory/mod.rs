//! The embedded index: one tree per (space, shape), one name table per (space, vocabulary), behind
//! one lock.
//!
//! Invariant of the whole: a block that some worker holds, or that has a held block below it, has
//! exactly one node; a copy is counted in exactly one place, a node's or an unplaced block's
//! holders; and `held` lists, for each worker, exactly the places where it has a copy.

mod lookup;
mod table;
mod tree;

use std::collections::{HashMap, HashSet};
use std::future::{Future, ready};

use parking_lot::RwLock;

use self::table::{Link, Table};
use self::tree::{Holder, NodeId, Tree};
use super::{Applied, BlockSource, Change, Home, Index, Matches, Parent, Query, Stats, Store};
use crate::block::{Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::error::{Error, ErrorKind};

/// Limits of a [`MemoryIndex`].
///
/// # Defaults
///
/// `unplaced_per_worker`: 65,536, four times the blocks of a mid-size engine, so that an engine
/// whose first events were missed can be known by name only without being cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// How many unplaced blocks one worker may hold; further ones are refused and counted.
    pub unplaced_per_worker: usize,
}

impl Default for MemoryOptions {
    fn default() -> MemoryOptions {
        MemoryOptions { unplaced_per_worker: 65_536 }
    }
}

/// An [`Index`] in this process's memory.
///
/// Its methods are plain functions; the trait's futures wrap them and are always ready.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    options: MemoryOptions,
    workers: HashMap<WorkerId, Worker>,
    roots: HashMap<(SpaceId, Shape), NodeId>,
    tree: Tree,
    tables: HashMap<(SpaceId, VocabularyId), Table>,
}

#[derive(Debug)]
struct Worker {
    home: Home,
    held: HashSet<Place>,
    unplaced: usize,
}

/// Where a copy is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Node(NodeId),
    Unplaced(Name),
}

impl MemoryIndex {
    /// An empty index with these limits.
    pub fn new(options: MemoryOptions) -> MemoryIndex {
        MemoryIndex { state: RwLock::new(State { options, ..State::default() }) }
    }

    /// See [`Index::assign`].
    ///
    /// # Errors
    ///
    /// A worker that shares its old vocabulary with others, or that holds blocks in another space,
    /// cannot move.
    pub fn assign(&self, worker: WorkerId, home: Home) -> Result<(), Error> {
        self.state.write().assign(worker, home)
    }

    /// See [`Index::apply`].
    ///
    /// # Errors
    ///
    /// The worker has no home; nothing was applied.
    pub fn apply(&self, worker: WorkerId, changes: &[Change<'_>]) -> Result<Applied, Error> {
        self.state.write().apply(worker, changes)
    }

    /// See [`Index::lookup`].
    pub fn lookup(&self, query: &Query<'_>, blocks: &mut impl BlockSource, matches: &mut Matches) {
        self.state.read().lookup(query, blocks, matches);
    }

    /// See [`Index::remove`].
    pub fn remove(&self, worker: WorkerId) {
        let mut state = self.state.write();
        state.clear(worker, None);
        state.workers.remove(&worker);
    }

    /// See [`Index::stats`].
    pub fn stats(&self) -> Stats {
        self.state.read().stats()
    }
}

impl Index for MemoryIndex {
    fn assign(
        &self,
        worker: WorkerId,
        home: Home,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(MemoryIndex::assign(self, worker, home))
    }

    fn apply(
        &self,
        worker: WorkerId,
        changes: &[Change<'_>],
    ) -> impl Future<Output = Result<Applied, Error>> + Send {
        ready(MemoryIndex::apply(self, worker, changes))
    }

    fn lookup(
        &self,
        query: &Query<'_>,
        blocks: &mut (impl BlockSource + Send),
        matches: &mut Matches,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        MemoryIndex::lookup(self, query, blocks, matches);
        ready(Ok(()))
    }

    fn remove(&self, worker: WorkerId) -> impl Future<Output = Result<(), Error>> + Send {
        MemoryIndex::remove(self, worker);
        ready(Ok(()))
    }

    fn stats(&self) -> impl Future<Output = Result<Stats, Error>> + Send {
        ready(Ok(MemoryIndex::stats(self)))
    }
}

impl State {
    fn assign(&mut self, id: WorkerId, home: Home) -> Result<(), Error> {
        let Some(worker) = self.workers.get(&id) else {
            self.workers.insert(id, Worker { home, held: HashSet::new(), unplaced: 0 });
            return Ok(());
        };
        let old = worker.home;
        if old == home {
            return Ok(());
        }
        if !worker.held.is_empty() {
            if old.space != home.space {
                return Err(Error::invalid(format!(
                    "worker {} holds blocks in space {} and cannot move to space {}: remove it first",
                    id.0, old.space.0, home.space.0
                )));
            }
            if self.workers.iter().any(|(&other, w)| other != id && w.home == old) {
                return Err(Error::invalid(format!(
                    "worker {} shares vocabulary {} with other workers and cannot leave it with its \
                     blocks: remove it first",
                    id.0, old.vocabulary.0
                )));
            }
            self.move_names(id, old, home);
        }
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.home = home;
        }
        Ok(())
    }

    /// Moves everything the names of `old` mean to `new`, and settles what can be placed there.
    fn move_names(&mut self, id: WorkerId, old: Home, new: Home) {
        let Some(table) = self.tables.remove(&(old.space, old.vocabulary)) else { return };
        let Table { placed, unplaced, .. } = table;
        for (name, nodes) in placed {
            for node in nodes {
                self.tree.unbind(node, old.vocabulary, name);
                self.bind(new, name, node);
            }
        }
        for (name, block) in unplaced {
            // Each holder is this worker: it was alone in the old vocabulary.
            self.let_go(id, Place::Unplaced(name));
            for holder in block.holders {
                self.hold_unplaced(new, name, block.link, holder);
            }
            self.settle(new, name);
        }
    }

    fn apply(&mut self, id: WorkerId, changes: &[Change<'_>]) -> Result<Applied, Error> {
        let Some(home) = self.workers.get(&id).map(|w| w.home) else {
            return Err(Error::new(
                ErrorKind::UnknownWorker,
                format!("worker {} has no home: assign one before its first change", id.0),
            ));
        };
        let mut applied = Applied::default();
        for change in changes {
            match change {
                Change::Store(store) => self.store(id, home, store, &mut applied),
                Change::Remove { group, tier, names } => {
                    for &name in *names {
                        match self.remove_copy(id, home, *group, *tier, name) {
                            true => applied.removed += 1,
                            false => applied.unknown_removals += 1,
                        }
                    }
                }
                Change::Clear { tier } => self.clear(id, *tier),
            }
        }
        Ok(applied)
    }

    fn store(&mut self, id: WorkerId, home: Home, store: &Store<'_>, applied: &mut Applied) {
        let holder = Holder { worker: id, group: store.group, tier: store.tier, copies: 1 };
        let mut above = match store.parent {
            Parent::Root => Above::Node(self.root(home.space, store.shape)),
            Parent::Block(name) => match self.parent_node(id, home, store.shape, name) {
                Some(node) => Above::Node(node),
                None => Above::Name(name),
            },
            Parent::Unknown => Above::Nothing,
        };
        for block in store.blocks {
            let place = match (block.digest, above) {
                (Some(digest), Above::Node(parent)) => {
                    let node = self.tree.child(parent, digest);
                    self.hold_node(node, holder);
                    self.bind(home, block.name, node);
                    applied.stored += 1;
                    Some(node)
                }
                (digest, above) => {
                    let link = match (digest, above) {
                        (Some(digest), Above::Name(parent)) => {
                            Some(Link { shape: store.shape, parent, digest })
                        }
                        _ => None,
                    };
                    self.store_by_name(id, home, block.name, link, holder, applied)
                }
            };
            above = match place {
                Some(node) => Above::Node(node),
                None => Above::Name(block.name),
            };
        }
        if let Above::Node(node) = above {
            // A root made for a store without blocks, or a parent that nobody holds any more.
            self.prune(node);
        }
    }

    /// Counts a copy of a block of which only the name can be used; returns its node if it is
    /// placed.
    fn store_by_name(
        &mut self,
        id: WorkerId,
        home: Home,
        name: Name,
        link: Option<Link>,
        holder: Holder,
        applied: &mut Applied,
    ) -> Option<NodeId> {
        if let Some(node) = self.named_node(id, home, name, link) {
            self.hold_node(node, holder);
            applied.stored += 1;
            return Some(node);
        }
        let full = match self.workers.get(&id) {
            Some(worker) => {
                !worker.held.contains(&Place::Unplaced(name))
                    && worker.unplaced >= self.options.unplaced_per_worker
            }
            None => true,
        };
        if full {
            applied.refused += 1;
            return None;
        }
        self.hold_unplaced(home, name, link, holder);
        applied.stored += 1;
        applied.unplaced += 1;
        None
    }

    fn remove_copy(
        &mut self,
        id: WorkerId,
        home: Home,
        group: Group,
        tier: Tier,
        name: Name,
    ) -> bool {
        let Some(table) = self.tables.get_mut(&(home.space, home.vocabulary)) else { return false };
        let is_copy = |h: &Holder| h.worker == id && h.group == group && h.tier == tier;
        for &node in table.nodes(name) {
            if let Some(left) = self.tree.drop_copy(node, is_copy) {
                if left == 0 && !self.tree.holds(node, id) {
                    self.let_go(id, Place::Node(node));
                }
                self.prune(node);
                return true;
            }
        }
        let Some(block) = table.unplaced.get_mut(&name) else { return false };
        let Some(at) = block.holders.iter().position(is_copy) else { return false };
        block.holders[at].copies -= 1;
        if block.holders[at].copies == 0 {
            block.holders.swap_remove(at);
            if !block.holders.iter().any(|h| h.worker == id) {
                if block.holders.is_empty() {
                    table.forget_unplaced(name);
                }
                self.let_go(id, Place::Unplaced(name));
            }
        }
        true
    }

    fn clear(&mut self, id: WorkerId, tier: Option<Tier>) {
        let Some(worker) = self.workers.get(&id) else { return };
        let home = worker.home;
        let gone = |h: &Holder| h.worker == id && tier.is_none_or(|t| h.tier == t);
        let places: Vec<Place> = worker.held.iter().copied().collect();
        for place in places {
            match place {
                Place::Node(node) => {
                    self.tree.retain(node, |h| !gone(h));
                    if !self.tree.holds(node, id) {
                        self.let_go(id, place);
                    }
                    self.prune(node);
                }
                Place::Unplaced(name) => {
                    let Some(table) = self.tables.get_mut(&(home.space, home.vocabulary)) else {
                        continue;
                    };
                    let Some(block) = table.unplaced.get_mut(&name) else { continue };
                    block.holders.retain(|h| !gone(h));
                    if !block.holders.iter().any(|h| h.worker == id) {
                        if block.holders.is_empty() {
                            table.forget_unplaced(name);
                        }
                        self.let_go(id, place);
                    }
                }
            }
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for (blocks, entries) in self.tree.sizes() {
            stats.blocks += blocks;
            stats.entries += entries;
        }
        for table in self.tables.values() {
            stats.unplaced += table.unplaced.len() as u64;
            stats.entries += table.unplaced.values().map(|b| b.holders.len() as u64).sum::<u64>();
        }
        stats
    }

    fn root(&mut self, space: SpaceId, shape: Shape) -> NodeId {
        *self.roots.entry((space, shape)).or_insert_with(|| self.tree.root(space, shape))
    }

    /// The placed block that a parent's name means to this worker.
    fn parent_node(&self, id: WorkerId, home: Home, shape: Shape, name: Name) -> Option<NodeId> {
        let table = self.tables.get(&(home.space, home.vocabulary))?;
        let fitting = || table.nodes(name).iter().filter(|&&n| self.tree.shape(n) == shape);
        fitting().find(|&&n| self.tree.holds(n, id)).or_else(|| fitting().next()).copied()
    }

    /// The placed block that a name means to this worker; with a link, only one of that content.
    fn named_node(
        &self,
        id: WorkerId,
        home: Home,
        name: Name,
        link: Option<Link>,
    ) -> Option<NodeId> {
        let table = self.tables.get(&(home.space, home.vocabulary))?;
        let fitting = || table.nodes(name).iter().filter(|&&n| self.fits(n, link));
        fitting().find(|&&n| self.tree.holds(n, id)).or_else(|| fitting().next()).copied()
    }

    /// Whether a node can be the block that a link describes.
    fn fits(&self, node: NodeId, link: Option<Link>) -> bool {
        link.is_none_or(|l| self.tree.digest(node) == l.digest && self.tree.shape(node) == l.shape)
    }

    /// Makes a name mean a node, and settles what waited for it: copies counted by that name only,
    /// and orphans below it, and orphans below those.
    fn bind(&mut self, home: Home, name: Name, node: NodeId) {
        let mut bindings = vec![(name, node)];
        while let Some((name, node)) = bindings.pop() {
            let table = self.tables.entry((home.space, home.vocabulary)).or_default();
            if table.bind(name, node) {
                self.tree.bind(node, home.vocabulary, name);
            }
            if table.unplaced.is_empty() {
                continue;
            }
            self.merge(home, name, node);
            let shape = self.tree.shape(node);
            let Some(table) = self.tables.get(&(home.space, home.vocabulary)) else { continue };
            for orphan in table.waiting_for(shape, name) {
                if let Some(link) = table.unplaced.get(&orphan).and_then(|block| block.link) {
                    bindings.push((orphan, self.tree.child(node, link.digest)));
                }
            }
            // An orphan that another binding of this loop settled first leaves its node unused.
            self.prune(node);
        }
    }

    /// Moves the copies that were counted by name only to the node that the name now means.
    fn merge(&mut self, home: Home, name: Name, node: NodeId) {
        let Some(table) = self.tables.get_mut(&(home.space, home.vocabulary)) else { return };
        let Some(link) = table.unplaced.get(&name).map(|block| block.link) else { return };
        if !self.fits(node, link) {
            return;
        }
        let table = self.tables.entry((home.space, home.vocabulary)).or_default();
        for holder in table.forget_unplaced(name).into_iter().flat_map(|block| block.holders) {
            self.let_go(holder.worker, Place::Unplaced(name));
            self.hold_node(node, holder);
        }
    }

    /// Places an unplaced block if its name or its parent's name already means a node.
    fn settle(&mut self, home: Home, name: Name) {
        let Some(table) = self.tables.get(&(home.space, home.vocabulary)) else { return };
        let Some(link) = table.unplaced.get(&name).map(|block| block.link) else { return };
        if let Some(&node) = table.nodes(name).iter().find(|&&n| self.fits(n, link)) {
            self.merge(home, name, node);
        } else if let Some(link) = link
            && let Some(&parent) =
                table.nodes(link.parent).iter().find(|&&n| self.tree.shape(n) == link.shape)
        {
            let node = self.tree.child(parent, link.digest);
            self.bind(home, name, node);
        }
    }

    fn hold_node(&mut self, node: NodeId, holder: Holder) {
        self.tree.hold(node, holder);
        if let Some(worker) = self.workers.get_mut(&holder.worker) {
            worker.held.insert(Place::Node(node));
        }
    }

    fn hold_unplaced(&mut self, home: Home, name: Name, link: Option<Link>, holder: Holder) {
        self.tables.entry((home.space, home.vocabulary)).or_default().hold(name, link, holder);
        if let Some(worker) = self.workers.get_mut(&holder.worker)
            && worker.held.insert(Place::Unplaced(name))
        {
            worker.unplaced += 1;
        }
    }

    fn let_go(&mut self, id: WorkerId, place: Place) {
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.held.remove(&place)
            && matches!(place, Place::Unplaced(_))
        {
            worker.unplaced -= 1;
        }
    }

    /// Frees a node that nobody holds and that has nothing below it, then its parent likewise.
    fn prune(&mut self, node: NodeId) {
        let mut next = Some(node);
        while let Some(node) = next {
            let Some(freed) = self.tree.free_if_unused(node) else { return };
            for &(vocabulary, name) in &freed.names {
                if let Some(table) = self.tables.get_mut(&(freed.space, vocabulary)) {
                    table.unbind(name, node);
                    if table.is_empty() {
                        self.tables.remove(&(freed.space, vocabulary));
                    }
                }
            }
            if freed.parent.is_none() {
                self.roots.remove(&(freed.space, freed.shape));
            }
            next = freed.parent;
        }
    }
}

/// What is known of the block before the next one of a store.
#[derive(Clone, Copy)]
enum Above {
    Node(NodeId),
    Name(Name),
    Nothing,
}
