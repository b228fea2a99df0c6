//! Nodes of all trees, in one arena.
//!
//! Invariant: a node is live from `root`/`child` until `free_if_unused`; a live node's parent is
//! live and lists it among its children.

use std::collections::HashMap;

use crate::block::{Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeId(u32);

/// A worker's copies of one block in one group and tier; `copies` is never 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) worker: WorkerId,
    pub(super) group: Group,
    pub(super) tier: Tier,
    pub(super) copies: u32,
}

/// Adds a holder's copies to those of the same worker, group and tier.
pub(super) fn add_copies(holders: &mut Vec<Holder>, new: Holder) {
    let same = |h: &&mut Holder| (h.worker, h.group, h.tier) == (new.worker, new.group, new.tier);
    match holders.iter_mut().find(same) {
        Some(holder) => holder.copies = holder.copies.saturating_add(new.copies),
        None => holders.push(new),
    }
}

#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
}

#[derive(Debug)]
struct Node {
    space: SpaceId,
    shape: Shape,
    /// `None` in a root, which stands for the empty prefix.
    parent: Option<NodeId>,
    digest: Digest,
    children: HashMap<Digest, NodeId>,
    holders: Vec<Holder>,
    names: Vec<(VocabularyId, Name)>,
    live: bool,
}

/// What a freed node leaves to its owner to undo.
pub(super) struct Freed {
    pub(super) space: SpaceId,
    pub(super) shape: Shape,
    pub(super) parent: Option<NodeId>,
    pub(super) names: Vec<(VocabularyId, Name)>,
}

impl Tree {
    pub(super) fn root(&mut self, space: SpaceId, shape: Shape) -> NodeId {
        self.insert(space, shape, None, Digest(0))
    }

    /// The child with this content, made if there is none.
    pub(super) fn child(&mut self, parent: NodeId, digest: Digest) -> NodeId {
        if let Some(child) = self.find(parent, digest) {
            return child;
        }
        let Node { space, shape, .. } = *self.node(parent);
        let child = self.insert(space, shape, Some(parent), digest);
        self.node_mut(parent).children.insert(digest, child);
        child
    }

    fn insert(
        &mut self,
        space: SpaceId,
        shape: Shape,
        parent: Option<NodeId>,
        digest: Digest,
    ) -> NodeId {
        let node = Node {
            space,
            shape,
            parent,
            digest,
            children: HashMap::new(),
            holders: Vec::new(),
            names: Vec::new(),
            live: true,
        };
        match self.free.pop() {
            Some(id) => {
                *self.node_mut(id) = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId((self.nodes.len() - 1) as u32)
            }
        }
    }

    /// Frees a node without holders and children; `None` if it is in use or freed already.
    pub(super) fn free_if_unused(&mut self, id: NodeId) -> Option<Freed> {
        let node = self.node_mut(id);
        if !node.live || !node.holders.is_empty() || !node.children.is_empty() {
            return None;
        }
        node.live = false;
        let names = std::mem::take(&mut node.names);
        let Node { space, shape, parent, digest, .. } = *node;
        if let Some(parent) = parent {
            self.node_mut(parent).children.remove(&digest);
        }
        self.free.push(id);
        Some(Freed { space, shape, parent, names })
    }

    pub(super) fn hold(&mut self, id: NodeId, holder: Holder) {
        add_copies(&mut self.node_mut(id).holders, holder);
    }

    /// Takes one copy of the first holder that fits; returns how many of its copies are left.
    pub(super) fn drop_copy(&mut self, id: NodeId, fits: impl Fn(&Holder) -> bool) -> Option<u32> {
        let holders = &mut self.node_mut(id).holders;
        let at = holders.iter().position(fits)?;
        holders[at].copies -= 1;
        let left = holders[at].copies;
        if left == 0 {
            holders.swap_remove(at);
        }
        Some(left)
    }

    pub(super) fn retain(&mut self, id: NodeId, keep: impl Fn(&Holder) -> bool) {
        self.node_mut(id).holders.retain(keep);
    }

    pub(super) fn bind(&mut self, id: NodeId, vocabulary: VocabularyId, name: Name) {
        self.node_mut(id).names.push((vocabulary, name));
    }

    pub(super) fn unbind(&mut self, id: NodeId, vocabulary: VocabularyId, name: Name) {
        self.node_mut(id).names.retain(|&bound| bound != (vocabulary, name));
    }

    pub(super) fn find(&self, parent: NodeId, digest: Digest) -> Option<NodeId> {
        self.node(parent).children.get(&digest).copied()
    }

    pub(super) fn holders(&self, id: NodeId) -> &[Holder] {
        &self.node(id).holders
    }

    pub(super) fn holds(&self, id: NodeId, worker: WorkerId) -> bool {
        self.node(id).holders.iter().any(|h| h.worker == worker)
    }

    pub(super) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.node(id).parent
    }

    pub(super) fn shape(&self, id: NodeId) -> Shape {
        self.node(id).shape
    }

    pub(super) fn digest(&self, id: NodeId) -> Digest {
        self.node(id).digest
    }

    /// (1, entries) of each block, roots left out.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (u64, u64)> {
        let blocks = self.nodes.iter().filter(|n| n.live && n.parent.is_some());
        blocks.map(|n| (1, n.holders.len() as u64))
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }
}
