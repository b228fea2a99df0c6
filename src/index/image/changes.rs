//! An image of one worker as changes, for an index in which others are.

use std::collections::HashMap;

use super::Image;
use super::parts::{Lane, Parts};
use crate::block::{BlockSize, Digest, Name, Shape};
use crate::error::Error;
use crate::index::{Block, Change, Parent, Store};

/// A run with a name for each of its blocks.
struct Stretch {
    shape: Shape,
    parent: Parent,
    blocks: Vec<Block>,
}

impl Stretch {
    /// One more copy of some of its blocks, which follow each other.
    fn store(&self, lane: Lane, lo: u32, hi: u32) -> Change<'_> {
        let (lo, hi) = (lo as usize, hi as usize);
        let before = lo.checked_sub(1).map(|at| Parent::Block(self.blocks[at].name));
        let (parent, blocks) = (before.unwrap_or(self.parent), &self.blocks[lo..hi]);
        Change::Store(Store {
            shape: self.shape,
            group: lane.group,
            tier: lane.tier,
            parent,
            blocks,
        })
    }
}

impl Image {
    /// Hands the changes to `each` that give a worker, which holds nothing, what the only worker of the image
    /// holds. Whether they can be had: blocks that go by no name cannot be stored.
    ///
    /// They lead to the same state, except where one name means several blocks.
    ///
    /// # Errors
    ///
    /// The image is no image, or the first error of `each`.
    pub(crate) fn changes(
        &self,
        mut each: impl FnMut(Change<'_>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let parts = Parts::read(self)?;
        let Some(&scaffold) = parts.lanes.first() else { return Ok(true) };
        let Some(stretches) = stretches(&parts) else { return Ok(false) };
        let lane = |n: u32| parts.lanes.get(n as usize).copied();
        let runs = parts.trees.iter().flat_map(|tree| &tree.runs);
        for (stretch, run) in stretches.iter().zip(runs) {
            // All of it first: what lies behind a hole hangs below blocks that are not held.
            each(stretch.store(scaffold, 0, run.len()))?;
            for &(of, lo, hi) in &run.holders {
                lane(of).map_or(Ok(()), |lane| each(stretch.store(lane, lo, hi)))?;
            }
        }
        for &[run, at, of, more] in &parts.copies {
            let stretch = (run as usize).checked_sub(1).and_then(|n| stretches.get(n));
            let stretch = stretch.filter(|stretch| (at as usize) < stretch.blocks.len());
            if let (Some(stretch), Some(lane)) = (stretch, lane(of)) {
                (0..more).try_for_each(|_| each(stretch.store(lane, at, at + 1)))?;
            }
        }
        for block in &parts.unplaced {
            let plain = Shape::plain(BlockSize::DEFAULT);
            let (shape, parent, digest) = match block.link {
                Some((shape, parent, digest)) => {
                    (shape, Parent::Block(Name(parent)), Some(Digest(digest)))
                }
                None => (plain, Parent::Unknown, None),
            };
            let blocks = &[Block { name: Name(block.name), digest }];
            for &(of, copies) in &block.holders {
                let Some(Lane { group, tier, .. }) = lane(of) else { continue };
                let store = Store { shape, group, tier, parent, blocks };
                (0..copies).try_for_each(|_| each(Change::Store(store)))?;
            }
        }
        // Ends first, as engines do it.
        for stretch in stretches.iter().rev() {
            let names: Vec<Name> = stretch.blocks.iter().rev().map(|block| block.name).collect();
            let Lane { group, tier, .. } = scaffold;
            each(Change::Remove { group, tier, names: &names })?;
        }
        Ok(true)
    }
}

/// The runs of an image by their order, if all of their blocks have names.
fn stretches(parts: &Parts<'_>) -> Option<Vec<Stretch>> {
    let mut further: HashMap<(u32, u32), u64> = HashMap::new();
    for name in &parts.names {
        for &place in &name.places {
            further.entry(place).or_insert(name.name);
        }
    }
    let mut stretches: Vec<Stretch> = Vec::new();
    for tree in &parts.trees {
        for run in &tree.runs {
            let number = stretches.len() as u32 + 1;
            let beside = |at: usize| {
                let mut names = run.columns.iter().map(|column| u64::from_le_bytes(column.1[at]));
                names.find(|&name| name != 0)
            };
            let block = |(at, content): (usize, &[u8; 8])| {
                let name = beside(at).or_else(|| further.get(&(number, at as u32)).copied())?;
                let digest = Some(Digest(u64::from_le_bytes(*content)));
                Some(Block { name: Name(name), digest })
            };
            let blocks = run.contents.iter().enumerate().map(block).collect::<Option<_>>()?;
            let parent = match (run.parent as usize).checked_sub(1) {
                None => Parent::Root,
                Some(above) => {
                    let before = (run.offset as usize).checked_sub(1)?;
                    Parent::Block(stretches.get(above)?.blocks.get(before)?.name)
                }
            };
            stretches.push(Stretch { shape: tree.shape, parent, blocks });
        }
    }
    Some(stretches)
}
