//! kv-index's `ChainIndex`, as its own gateway uses it: one shard, a map for each worker's lane,
//! scores through the callback.

use std::ops::Range;

use kv_index::{
    ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock,
    compute_request_content_hashes,
};

use crate::clock::thread_cpu;
use crate::peer::{Peer, Ranker, Seeds};
use crate::query::Query;
use crate::workload::{BLOCK, Kind, Stream};

/// The index.
pub struct Chains {
    index: ChainIndex,
    workers: Vec<u32>,
}

/// Events whose blocks and names lie in two arrays.
pub struct Events {
    blocks: Vec<StoredBlock>,
    names: Vec<SequenceHash>,
    changes: Vec<Change>,
}

enum Change {
    Store { worker: u32, parent: Option<SequenceHash>, blocks: Range<usize> },
    Remove { worker: u32, names: Range<usize> },
}

impl Peer for Chains {
    const NAME: &'static str = "ChainIndex";
    type Writer = Vec<ChainBlockMap>;
    type Events = Events;
    type Prompt = Vec<ContentHash>;
    type Answer = Vec<(u32, u32)>;

    fn new(workers: usize, _: Seeds) -> Chains {
        let index = ChainIndex::with_max_workers(workers);
        let intern = |n| index.intern_worker(&format!("engine-{n}"));
        let workers = (0..workers).map(|n| intern(n).expect("there is room for it")).collect();
        Chains { index, workers }
    }

    fn writer(&self) -> Vec<ChainBlockMap> {
        self.workers.iter().map(|_| ChainBlockMap::new()).collect()
    }

    fn events(&self, stream: &Stream, range: Range<usize>) -> Events {
        let mut events = Events { blocks: vec![], names: vec![], changes: vec![] };
        for event in &stream.events[range] {
            let worker = self.workers[event.worker as usize];
            let named = event.start as usize..event.start as usize + event.len as usize;
            events.changes.push(match event.kind {
                Kind::Stored => {
                    let start = events.blocks.len();
                    events.blocks.extend(stream.stored[named].iter().map(|block| StoredBlock {
                        seq_hash: SequenceHash(block.name),
                        content_hash: ContentHash(block.content),
                    }));
                    let parent = event.parent.map(SequenceHash);
                    Change::Store { worker, parent, blocks: start..events.blocks.len() }
                }
                Kind::Removed => {
                    let start = events.names.len();
                    events.names.extend(stream.removed[named].iter().map(|&n| SequenceHash(n)));
                    Change::Remove { worker, names: start..events.names.len() }
                }
            });
        }
        events
    }

    fn apply(&self, maps: &mut Vec<ChainBlockMap>, events: Events, started: impl FnOnce()) -> f64 {
        let mut failed = 0;
        started();
        let start = thread_cpu();
        for change in &events.changes {
            match change {
                Change::Store { worker, parent, blocks } => {
                    let blocks = &events.blocks[blocks.clone()];
                    let map = &mut maps[*worker as usize];
                    let stored = self.index.apply_stored(*worker, blocks, *parent, map);
                    failed += usize::from(stored.is_err());
                }
                Change::Remove { worker, names } => {
                    let names = &events.names[names.clone()];
                    self.index.apply_removed(*worker, names, &mut maps[*worker as usize]);
                }
            }
        }
        let seconds = thread_cpu() - start;
        assert_eq!(failed, 0, "stores refused");
        seconds
    }

    fn prompt(&self, query: &Query) -> Vec<ContentHash> {
        query.contents.iter().map(|&content| ContentHash(content)).collect()
    }

    fn touch(&self, prompt: &Vec<ContentHash>) -> u64 {
        prompt.iter().fold(0, |sum, content| sum ^ content.0)
    }

    fn lookup(&self, prompt: &Vec<ContentHash>, answer: &mut Vec<(u32, u32)>) {
        answer.clear();
        let report = |worker, score| answer.push((worker, score));
        self.index.score_into(prompt, |content| content.0, false, report);
    }

    fn leading(&self, answer: &Vec<(u32, u32)>, leading: &mut [u32]) {
        for &(worker, score) in answer {
            let at = self.workers.iter().position(|id| *id == worker);
            leading[at.expect("only interned workers score")] = score;
        }
    }

    fn entries(&self) -> Option<usize> {
        Some(self.index.current_size())
    }
}

impl Ranker for Chains {
    const NAME: &'static str = "ChainIndex";
    type Answer = Vec<(u32, u32)>;

    fn rank(&self, tokens: &[u32], answer: &mut Vec<(u32, u32)>) {
        self.lookup(&compute_request_content_hashes(tokens, BLOCK), answer);
    }

    fn check(&self, tokens: &[u32], leading: &mut [u32]) {
        let mut answer = Vec::new();
        self.rank(tokens, &mut answer);
        self.leading(&answer, leading);
    }
}
