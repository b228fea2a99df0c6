//! Prompts that are asked about.

use crate::rng::Rng;
use crate::workload::{Session, Stream, content, tokens};

/// A prompt.
#[derive(Clone, Debug)]
pub struct Query {
    /// Digests of its blocks.
    pub contents: Vec<u64>,
    /// Names of its blocks, under the fleet's shared seed; random where nobody holds them.
    pub names: Vec<u64>,
    texts: Vec<u64>,
}

impl Query {
    /// The first `depth` blocks of a session and new ones up to `len`.
    fn new(session: &Session, depth: usize, len: usize, rng: &mut Rng) -> Query {
        let mut query = Query { contents: vec![], names: vec![], texts: vec![] };
        for block in &session.blocks[..depth] {
            query.contents.push(block.content);
            query.names.push(block.name);
            query.texts.push(block.text);
        }
        for _ in depth..len {
            let text = rng.bits();
            query.contents.push(content(text));
            query.names.push(rng.bits());
            query.texts.push(text);
        }
        query
    }

    /// Its tokens.
    pub fn tokens(&self) -> Vec<u32> {
        self.texts.iter().flat_map(|&text| tokens(text)).collect()
    }

    /// What its first blocks are made from.
    pub fn text(&self, block: usize) -> u64 {
        self.texts[block]
    }
}

/// The next turns of sessions that go on: what a router is really asked.
pub fn next_turns(stream: &Stream, count: usize, rng: &mut Rng) -> Vec<Query> {
    (0..count)
        .map(|_| {
            let session = &stream.sessions[stream.active[rng.below(stream.active.len())]];
            let depth = session.blocks.len().min(2048);
            Query::new(session, depth, depth + rng.log_uniform(8, 64), rng)
        })
        .collect()
}

/// Up to `count` prompts of `len` blocks of which some worker holds at least the first `depth`.
pub fn of_depth(
    stream: &Stream,
    len: usize,
    depth: usize,
    count: usize,
    rng: &mut Rng,
) -> Vec<Query> {
    let mut order: Vec<usize> = (0..stream.sessions.len()).collect();
    rng.shuffle(&mut order);
    let sessions = order.iter().map(|&number| &stream.sessions[number]);
    let resident = |session: &&Session| {
        let Some(blocks) = session.blocks.get(..depth) else { return false };
        let names: Vec<u64> = blocks.iter().map(|block| block.name).collect();
        // Cheap first: whoever holds the last block very likely holds those before it.
        names.last().is_none_or(|last| {
            (0..stream.held.len()).any(|worker| {
                stream.held[worker].contains_key(last)
                    && stream.depth_on(worker, &names) as usize == depth
            })
        })
    };
    sessions.filter(resident).take(count).map(|s| Query::new(s, depth, len, rng)).collect()
}
