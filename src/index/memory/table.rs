//! What names mean within one (space, vocabulary).
//!
//! Invariant: `waiting` lists exactly the unplaced blocks that have a link, under the link's parent.

use std::collections::HashMap;

use super::tree::{Holder, NodeId, add_copies};
use crate::block::{Digest, Name, Shape};

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) placed: HashMap<Name, Vec<NodeId>>,
    pub(super) unplaced: HashMap<Name, Unplaced>,
    waiting: HashMap<(Shape, Name), Vec<Name>>,
}

/// A block that is held but not placed.
#[derive(Debug, Default)]
pub(super) struct Unplaced {
    pub(super) holders: Vec<Holder>,
    /// Where the block goes once its parent is placed; `None` for a block known by name only.
    pub(super) link: Option<Link>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) shape: Shape,
    pub(super) parent: Name,
    pub(super) digest: Digest,
}

impl Table {
    pub(super) fn nodes(&self, name: Name) -> &[NodeId] {
        self.placed.get(&name).map_or(&[], Vec::as_slice)
    }

    /// Whether the binding is new.
    pub(super) fn bind(&mut self, name: Name, node: NodeId) -> bool {
        let nodes = self.placed.entry(name).or_default();
        let new = !nodes.contains(&node);
        if new {
            nodes.push(node);
        }
        new
    }

    pub(super) fn unbind(&mut self, name: Name, node: NodeId) {
        if let Some(nodes) = self.placed.get_mut(&name) {
            nodes.retain(|&n| n != node);
            if nodes.is_empty() {
                self.placed.remove(&name);
            }
        }
    }

    pub(super) fn hold(&mut self, name: Name, link: Option<Link>, holder: Holder) {
        let block = self.unplaced.entry(name).or_default();
        if let (None, Some(link)) = (block.link, link) {
            block.link = Some(link);
            self.waiting.entry((link.shape, link.parent)).or_default().push(name);
        }
        add_copies(&mut block.holders, holder);
    }

    pub(super) fn forget_unplaced(&mut self, name: Name) -> Option<Unplaced> {
        let block = self.unplaced.remove(&name)?;
        if let Some(link) = block.link {
            let key = (link.shape, link.parent);
            if let Some(names) = self.waiting.get_mut(&key) {
                names.retain(|&n| n != name);
                if names.is_empty() {
                    self.waiting.remove(&key);
                }
            }
        }
        Some(block)
    }

    /// The orphans below a block, as they are now.
    pub(super) fn waiting_for(&self, shape: Shape, parent: Name) -> Vec<Name> {
        self.waiting.get(&(shape, parent)).cloned().unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.placed.is_empty() && self.unplaced.is_empty()
    }
}
