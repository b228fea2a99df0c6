//! Dynamo's router: `ConcurrentRadixTreeCompressed` with one event thread, its production default,
//! and its decoder of vLLM's payloads. Nothing counts as applied before the event thread has
//! emptied its queue.

use std::ops::Range;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use dynamo_kv_router::indexer::WorkerTask;
use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
    KvCacheStoreData, KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
    WorkerWithDpRank,
};
use dynamo_kv_router::zmq_wire::{ZmqEventNormalizer, decode_event_batch};
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, SyncIndexer, compute_block_hash_for_seq};

use crate::clock::{cpu_of, pin};
use crate::peer::{Peer, Ranker, Seeds};
use crate::query::Query;
use crate::workload::{BLOCK, Kind, Stream};

/// The tree and its event thread.
pub struct Crtc {
    tree: Arc<ConcurrentRadixTreeCompressed>,
    queue: flume::Sender<WorkerTask>,
    thread: Option<JoinHandle<()>>,
}

impl Crtc {
    fn start() -> Crtc {
        let tree = Arc::new(ConcurrentRadixTreeCompressed::new());
        let (queue, tasks) = flume::unbounded();
        let shared = tree.clone();
        let thread = std::thread::spawn(move || {
            pin(0);
            shared.worker(tasks, None).expect("the event thread ends when told");
        });
        Crtc { tree, queue, thread: Some(thread) }
    }

    fn send(&self, task: WorkerTask) {
        assert!(self.queue.send(task).is_ok(), "the event thread runs");
    }

    fn flush(&self) {
        let (done, wait) = tokio::sync::oneshot::channel();
        self.send(WorkerTask::Flush(done));
        wait.blocking_recv().expect("the event thread answers");
    }

    fn thread_cpu(&self) -> f64 {
        let thread = self.thread.as_ref().expect("the thread is there until the drop");
        cpu_of(thread.as_pthread_t())
    }

    /// Queues events and waits until they are applied; CPU seconds of the event thread. What
    /// sending costs is left out, in the tree's favour.
    fn apply_all(&self, events: Vec<RouterEvent>, started: impl FnOnce()) -> f64 {
        started();
        let start = self.thread_cpu();
        events.into_iter().for_each(|event| self.send(WorkerTask::Event(event)));
        self.flush();
        self.thread_cpu() - start
    }
}

impl Drop for Crtc {
    fn drop(&mut self) {
        self.send(WorkerTask::Terminate);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the event thread ends well");
        }
    }
}

impl Peer for Crtc {
    const NAME: &'static str = "Dynamo";
    type Writer = ();
    type Events = Vec<RouterEvent>;
    type Prompt = Vec<LocalBlockHash>;
    type Answer = OverlapScores;

    fn new(_: usize, _: Seeds) -> Crtc {
        Crtc::start()
    }

    fn writer(&self) {}

    fn events(&self, stream: &Stream, range: Range<usize>) -> Vec<RouterEvent> {
        let first = range.start as u64;
        let event = |(at, event): (usize, &crate::workload::Event)| {
            let named = event.start as usize..event.start as usize + event.len as usize;
            let data = match event.kind {
                Kind::Stored => KvCacheEventData::Stored(KvCacheStoreData {
                    parent_hash: event.parent.map(ExternalSequenceBlockHash),
                    start_position: None,
                    blocks: stream.stored[named]
                        .iter()
                        .map(|block| KvCacheStoredBlockData {
                            block_hash: ExternalSequenceBlockHash(block.name),
                            tokens_hash: LocalBlockHash(block.content),
                            mm_extra_info: None,
                        })
                        .collect(),
                }),
                Kind::Removed => KvCacheEventData::Removed(KvCacheRemoveData {
                    block_hashes: stream.removed[named]
                        .iter()
                        .map(|&name| ExternalSequenceBlockHash(name))
                        .collect(),
                }),
            };
            let event_id = first + at as u64;
            RouterEvent::new(u64::from(event.worker), KvCacheEvent { event_id, data, dp_rank: 0 })
        };
        stream.events[range].iter().enumerate().map(event).collect()
    }

    fn apply(&self, (): &mut (), events: Vec<RouterEvent>, started: impl FnOnce()) -> f64 {
        self.apply_all(events, started)
    }

    fn prompt(&self, query: &Query) -> Vec<LocalBlockHash> {
        query.contents.iter().map(|&content| LocalBlockHash(content)).collect()
    }

    fn touch(&self, prompt: &Vec<LocalBlockHash>) -> u64 {
        prompt.iter().fold(0, |sum, content| sum ^ content.0)
    }

    fn lookup(&self, prompt: &Vec<LocalBlockHash>, answer: &mut OverlapScores) {
        *answer = self.tree.find_matches(prompt, false);
    }

    fn leading(&self, answer: &OverlapScores, leading: &mut [u32]) {
        for (worker, &depth) in &answer.scores {
            leading[worker.worker_id as usize] = depth;
        }
    }

    fn entries(&self) -> Option<usize> {
        None
    }
}

impl Ranker for Crtc {
    const NAME: &'static str = "Dynamo";
    type Answer = OverlapScores;

    fn rank(&self, tokens: &[u32], answer: &mut OverlapScores) {
        let prompt = compute_block_hash_for_seq(tokens, BLOCK as u32, BlockHashOptions::default());
        self.lookup(&prompt, answer);
    }

    fn check(&self, tokens: &[u32], leading: &mut [u32]) {
        let mut answer = OverlapScores::default();
        self.rank(tokens, &mut answer);
        self.leading(&answer, leading);
    }
}

/// The listeners of a fleet, one for each worker, in front of a tree.
pub struct Listeners {
    /// The tree.
    pub tree: Crtc,
    listeners: Vec<ZmqEventNormalizer>,
    next: Vec<u64>,
}

impl Listeners {
    /// A tree and listeners of so many workers.
    pub fn new(workers: usize) -> Listeners {
        let listener = || ZmqEventNormalizer::new(BLOCK as u32);
        Listeners {
            tree: Crtc::start(),
            listeners: (0..workers).map(|_| listener()).collect(),
            next: vec![0; workers],
        }
    }

    /// Decodes and normalises a payload; the events, in the tree's type, go to `events`.
    pub fn decode(&mut self, worker: usize, payload: &[u8], events: &mut Vec<RouterEvent>) {
        let batch = decode_event_batch(payload).expect("the payload is a batch");
        let from = WorkerWithDpRank::new(worker as u64, 0);
        for event in batch.events {
            let id = self.next[worker];
            self.next[worker] += 1;
            let event = self.listeners[worker].normalize(event, id, from);
            let event = event.expect("blocks of main attention on a GPU count");
            events.push(event.into_router_event().expect("the worker is local"));
        }
    }

    /// Applies decoded events; CPU seconds of the event thread.
    pub fn apply(&self, events: Vec<RouterEvent>) -> f64 {
        self.tree.apply_all(events, || ())
    }
}
