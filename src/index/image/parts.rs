//! An image taken apart, and put together again.
//!
//! Invariant: [`Parts::read`] looks only at what the layout says; whether the parts agree with each other is
//! seen by whoever makes an index of them. Numbers are those of the image: runs count from 1.

use super::{Image, Reader};
use crate::block::{BlockSize, Group, Shape, Tier, WorkerId};
use crate::error::Error;

/// Numbers of 64 bits, as they lie in an image.
pub(super) type Words<'a> = &'a [[u8; 8]];

/// What an image has, but for its totals, which follow from the rest.
#[derive(Debug, Default)]
pub(super) struct Parts<'a> {
    /// Space and number of each.
    pub(super) vocabularies: Vec<(u32, u32)>,
    /// Each with its vocabulary.
    pub(super) workers: Vec<(WorkerId, u32)>,
    pub(super) lanes: Vec<Lane>,
    pub(super) trees: Vec<Tree<'a>>,
    /// Run, block, lane, copies above one.
    pub(super) copies: Vec<[u32; 4]>,
    pub(super) names: Vec<Further>,
    pub(super) unplaced: Vec<Unplaced>,
    pub(super) losers: Vec<WorkerId>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) worker: u32,
    pub(super) group: Group,
    pub(super) tier: Tier,
}

#[derive(Debug)]
pub(super) struct Tree<'a> {
    pub(super) space: u32,
    pub(super) shape: Shape,
    pub(super) runs: Vec<Run<'a>>,
}

#[derive(Debug)]
pub(super) struct Run<'a> {
    /// 0 where it starts prompts.
    pub(super) parent: u32,
    pub(super) offset: u32,
    pub(super) contents: Words<'a>,
    /// Vocabulary, and a name for each block, 0 for none.
    pub(super) columns: Vec<(u32, Words<'a>)>,
    /// Lane, from, to.
    pub(super) holders: Vec<(u32, u32, u32)>,
}

impl Run<'_> {
    pub(super) fn len(&self) -> u32 {
        self.contents.len() as u32
    }
}

/// A name that stands beside no block: the second one of it, or one that means several.
#[derive(Clone, Debug)]
pub(super) struct Further {
    pub(super) vocabulary: u32,
    pub(super) name: u64,
    /// Run and block.
    pub(super) places: Vec<(u32, u32)>,
}

#[derive(Clone, Debug)]
pub(super) struct Unplaced {
    pub(super) vocabulary: u32,
    pub(super) name: u64,
    /// How the prompt was cut, the name of the parent, the content.
    pub(super) link: Option<(Shape, u64, u64)>,
    /// Lane and copies.
    pub(super) holders: Vec<(u32, u32)>,
}

impl<'a> Parts<'a> {
    /// Takes an image apart.
    pub(super) fn read(image: &'a Image) -> Result<Parts<'a>, Error> {
        let mut from = Reader::new(image.as_bytes());
        let from = &mut from;
        // The totals.
        from.take(24)?;
        let mut parts = Parts::default();
        for _ in 0..from.count(8)? {
            parts.vocabularies.push((from.u32()?, from.u32()?));
        }
        for _ in 0..from.count(8)? {
            parts.workers.push((WorkerId(from.u32()?), from.u32()?));
        }
        for _ in 0..from.count(9)? {
            let (worker, group) = (from.u32()?, Group(from.u32()?));
            let tier = Tier::KNOWN.get(usize::from(from.u8()?)).copied().unwrap_or(Tier::Unknown);
            parts.lanes.push(Lane { worker, group, tier });
        }
        let mut before = 0;
        for _ in 0..from.count(16)? {
            let (space, shape) = (from.u32()?, read_shape(from)?);
            let mut runs = Vec::new();
            for _ in 0..from.count(24)? {
                runs.push(read_run(from, before)?);
                before += 1;
            }
            parts.trees.push(Tree { space, shape, runs });
        }
        for _ in 0..from.count(16)? {
            parts.copies.push([from.u32()?, from.u32()?, from.u32()?, from.u32()?]);
        }
        for _ in 0..from.count(16)? {
            let (vocabulary, name) = (from.u32()?, from.u64()?);
            parts.names.push(Further { vocabulary, name, places: read_pairs(from)? });
        }
        for _ in 0..from.count(17)? {
            let (vocabulary, name) = (from.u32()?, from.u64()?);
            let link = match from.u8()? {
                0 => None,
                _ => Some((read_shape(from)?, from.u64()?, from.u64()?)),
            };
            let holders = read_pairs(from)?;
            parts.unplaced.push(Unplaced { vocabulary, name, link, holders });
        }
        for _ in 0..if from.is_empty() { 0 } else { from.count(4)? } {
            parts.losers.push(WorkerId(from.u32()?));
        }
        Ok(parts)
    }

    /// Puts an image together.
    pub(super) fn write(&self) -> Image {
        let runs = || self.trees.iter().flat_map(|tree| &tree.runs);
        let held = |run: &Run<'_>| run.holders.iter().map(|h| u64::from(h.2 - h.1)).sum::<u64>();
        let blocks: u64 = runs().map(|run| u64::from(run.len())).sum();
        let unplaced: usize = self.unplaced.iter().map(|block| block.holders.len()).sum();
        let entries: u64 = runs().map(held).sum::<u64>() + unplaced as u64;
        let mut out = Out(Vec::with_capacity(1024 + blocks as usize * 17 + runs().count() * 64));
        [blocks, entries, self.unplaced.len() as u64].into_iter().for_each(|n| out.word(n));
        out.list(&self.vocabularies, |out, &(space, number)| out.numbers([space, number]));
        out.list(&self.workers, |out, &(worker, voc)| out.numbers([worker.0, voc]));
        out.list(&self.lanes, |out, lane| {
            out.numbers([lane.worker, lane.group.0]);
            out.0.push(lane.tier.rank().unwrap_or(Tier::KNOWN.len()) as u8);
        });
        out.list(&self.trees, |out, tree| {
            out.numbers([tree.space, tree.shape.size.get(), tree.shape.lookahead]);
            out.list(&tree.runs, write_run);
        });
        out.list(&self.copies, |out, copies| out.numbers(*copies));
        out.list(&self.names, |out, further| {
            out.number(further.vocabulary);
            out.word(further.name);
            out.list(&further.places, |out, &(run, at)| out.numbers([run, at]));
        });
        out.list(&self.unplaced, |out, block| {
            out.number(block.vocabulary);
            out.word(block.name);
            out.0.push(u8::from(block.link.is_some()));
            if let Some((shape, parent, digest)) = block.link {
                out.numbers([shape.size.get(), shape.lookahead]);
                [parent, digest].into_iter().for_each(|n| out.word(n));
            }
            out.list(&block.holders, |out, &(lane, copies)| out.numbers([lane, copies]));
        });
        if !self.losers.is_empty() {
            out.list(&self.losers, |out, worker| out.number(worker.0));
        }
        Image::from_bytes(out.0)
    }
}

fn read_shape(from: &mut Reader<'_>) -> Result<Shape, Error> {
    let size = BlockSize::new(from.u32()?).ok_or_else(|| from.wrong("blocks have no tokens"))?;
    Ok(Shape { size, lookahead: from.u32()? })
}

fn read_pairs(from: &mut Reader<'_>) -> Result<Vec<(u32, u32)>, Error> {
    (0..from.count(8)?).map(|_| Ok((from.u32()?, from.u32()?))).collect()
}

/// Reads a run that has so many others before it.
fn read_run<'a>(from: &mut Reader<'a>, before: u32) -> Result<Run<'a>, Error> {
    let (parent, offset, len) = (from.u32()?, from.u32()?, from.u32()? as usize);
    if parent > before || (parent > 0 && offset == 0) {
        return Err(from.wrong("a run comes before its parent"));
    }
    let contents = from.take(len.saturating_mul(8))?.as_chunks().0;
    let mut columns = Vec::new();
    for _ in 0..from.count(len.saturating_mul(8).saturating_add(4))? {
        columns.push((from.u32()?, from.take(len * 8)?.as_chunks().0));
    }
    let mut holders = Vec::new();
    for _ in 0..from.count(8)? {
        let end = from.u32()?;
        for _ in 0..from.count(4)? {
            holders.push((from.u32()?, 0, end));
        }
    }
    for _ in 0..from.count(12)? {
        holders.push((from.u32()?, from.u32()?, from.u32()?));
    }
    if holders.iter().any(|&(_, lo, hi)| lo > hi || hi as usize > len) {
        return Err(from.wrong("a holder has blocks that are not there"));
    }
    Ok(Run { parent, offset, contents, columns, holders })
}

/// Bytes that are being written.
struct Out(Vec<u8>);

impl Out {
    fn number(&mut self, n: u32) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn numbers<const N: usize>(&mut self, all: [u32; N]) {
        all.into_iter().for_each(|n| self.number(n));
    }

    fn word(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn list<T>(&mut self, all: &[T], mut each: impl FnMut(&mut Out, &T)) {
        self.number(all.len() as u32);
        all.iter().for_each(|one| each(self, one));
    }
}

fn write_run(out: &mut Out, run: &Run<'_>) {
    out.numbers([run.parent, run.offset, run.len()]);
    out.0.extend_from_slice(run.contents.as_flattened());
    out.list(&run.columns, |out, (vocabulary, names)| {
        out.number(*vocabulary);
        out.0.extend_from_slice(names.as_flattened());
    });
    // All as what lies behind holes: it says the same.
    out.number(0);
    out.list(&run.holders, |out, &(lane, lo, hi)| out.numbers([lane, lo, hi]));
}
