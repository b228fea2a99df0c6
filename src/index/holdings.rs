//! What an image says that workers hold, by name.

use super::Image;
use super::image::Reader;
use crate::block::{BlockSize, Digest, Group, Name, Shape, Tier, WorkerId};
use crate::error::Error;

/// Blocks of one chain, one after the other, that a worker holds in one group and tier.
#[derive(Clone, Copy, Debug)]
pub struct Holding<'a> {
    /// The worker.
    pub worker: WorkerId,
    /// The cache group.
    pub group: Group,
    /// Where the copies lie.
    pub tier: Tier,
    /// How the prompt was cut.
    pub shape: Shape,
    /// How many blocks of the prompt come before the first one.
    pub at: u32,
    /// The block before the first one, where that has a name; `None` also at the beginning of a prompt.
    pub parent: Option<Name>,
    /// What the worker's engine calls the blocks, in prompt order.
    pub names: &'a [Name],
    /// The contents of the same blocks.
    pub contents: &'a [Digest],
}

/// A run of blocks: where it begins, its contents, and its names by vocabulary.
struct Run<'a> {
    parent: Option<(usize, u32)>,
    at: u32,
    contents: &'a [u8],
    columns: Vec<(u32, &'a [u8])>,
}

impl Run<'_> {
    fn content(&self, at: u32) -> Option<Digest> {
        let word = *self.contents.as_chunks::<8>().0.get(at as usize)?;
        Some(Digest(u64::from_le_bytes(word)))
    }

    /// The name of a block, if it has one of its own.
    fn name(&self, vocabulary: u32, at: usize) -> Option<Name> {
        let (_, column) = self.columns.iter().find(|(of, _)| *of == vocabulary)?;
        let word = *column.as_chunks::<8>().0.get(at)?;
        Some(Name(u64::from_le_bytes(word))).filter(|name| name.0 != 0)
    }
}

/// A worker's blocks of one group in one tier.
struct Lane {
    worker: WorkerId,
    vocabulary: u32,
    group: Group,
    tier: Tier,
}

impl Image {
    /// Hands every stretch of blocks that a worker holds to `each`; those of a chain in prompt order.
    ///
    /// Left out are blocks that have no name of their own (a name that means several blocks, the name 0) and
    /// those that are known by name only, whose place in a prompt nobody knows. Further copies of a block
    /// count once.
    ///
    /// # Errors
    ///
    /// The image is no image.
    pub fn holdings(&self, mut each: impl FnMut(Holding<'_>)) -> Result<(), Error> {
        let mut from = Reader::new(self.as_bytes());
        let from = &mut from;
        // The totals.
        from.take(24)?;
        let vocabularies = from.count(8)?;
        from.take(vocabularies * 8)?;
        let mut workers = Vec::new();
        for _ in 0..from.count(8)? {
            workers.push((WorkerId(from.u32()?), from.u32()?));
        }
        let mut lanes = Vec::new();
        for _ in 0..from.count(9)? {
            let (worker, group) = (from.u32()? as usize, Group(from.u32()?));
            let tier = Tier::KNOWN.get(usize::from(from.u8()?)).copied().unwrap_or(Tier::Unknown);
            let &(worker, vocabulary) =
                workers.get(worker).ok_or_else(|| from.wrong("a lane is nobody's"))?;
            lanes.push(Lane { worker, vocabulary, group, tier });
        }
        let (mut runs, mut blocks) = (Vec::new(), (Vec::new(), Vec::new()));
        for _ in 0..from.count(16)? {
            // The space says nothing here.
            from.take(4)?;
            let size = BlockSize::new(from.u32()?);
            let size = size.ok_or_else(|| from.wrong("blocks of a tree have no tokens"))?;
            let shape = Shape { size, lookahead: from.u32()? };
            for _ in 0..from.count(24)? {
                let (run, len) = read_run(from, &runs)?;
                runs.push(run);
                let mut held = |lane: u32, lo: u32, hi: u32| {
                    let lane = lanes.get(lane as usize)?;
                    let hi = hi.min(len);
                    tell(&runs, lane, shape, lo..hi, &mut blocks, &mut each);
                    Some(())
                };
                read_holders(from, &mut held)?;
            }
        }
        Ok(())
    }
}

fn read_run<'a>(from: &mut Reader<'a>, before: &[Run<'_>]) -> Result<(Run<'a>, u32), Error> {
    let (parent, at, len) = (from.u32()? as usize, from.u32()?, from.u32()?);
    let parent = match parent {
        0 => None,
        n if n <= before.len() && at > 0 => Some((n - 1, at - 1)),
        _ => return Err(from.wrong("a run comes before its parent")),
    };
    let at = parent.map_or(0, |(run, at): (usize, u32)| before[run].at.saturating_add(at + 1));
    let contents = from.take((len as usize).saturating_mul(8))?;
    let mut columns = Vec::new();
    for _ in 0..from.count((len as usize).saturating_mul(8).saturating_add(4))? {
        let vocabulary = from.u32()?;
        columns.push((vocabulary, from.take(len as usize * 8)?));
    }
    Ok((Run { parent, at, contents, columns }, len))
}

/// Reads who holds what of a run.
fn read_holders(
    from: &mut Reader<'_>,
    held: &mut impl FnMut(u32, u32, u32) -> Option<()>,
) -> Result<(), Error> {
    let nobody = "a holder is nobody";
    for _ in 0..from.count(8)? {
        let end = from.u32()?;
        for _ in 0..from.count(4)? {
            let lane = from.u32()?;
            held(lane, 0, end).ok_or_else(|| from.wrong(nobody))?;
        }
    }
    for _ in 0..from.count(12)? {
        let (lane, lo, hi) = (from.u32()?, from.u32()?, from.u32()?);
        held(lane, lo, hi).ok_or_else(|| from.wrong(nobody))?;
    }
    Ok(())
}

/// Hands blocks of the last run to `each`, as far as they have names.
fn tell(
    runs: &[Run<'_>],
    lane: &Lane,
    shape: Shape,
    blocks: std::ops::Range<u32>,
    (names, contents): &mut (Vec<Name>, Vec<Digest>),
    each: &mut impl FnMut(Holding<'_>),
) {
    let Some(run) = runs.last() else { return };
    let &Lane { worker, vocabulary, group, tier } = lane;
    let before = |at: u32| match at {
        0 => run.parent.and_then(|(run, at)| runs[run].name(vocabulary, at as usize)),
        at => run.name(vocabulary, at as usize - 1),
    };
    let mut from = blocks.start;
    names.clear();
    contents.clear();
    for at in blocks.start..=blocks.end {
        let name = (at < blocks.end).then(|| run.name(vocabulary, at as usize)).flatten();
        if let Some((name, content)) = name.zip(run.content(at)) {
            names.push(name);
            contents.push(content);
            continue;
        }
        if !names.is_empty() {
            let (parent, at) = (before(from), run.at.saturating_add(from));
            each(Holding { worker, group, tier, shape, at, parent, names, contents });
        }
        names.clear();
        contents.clear();
        from = at + 1;
    }
}
