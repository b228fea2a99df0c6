//! What batches changed, on its way to the store.

use std::collections::{BTreeMap, VecDeque};
use std::mem::size_of;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::block::WorkerId;
use crate::scout::{Mirror, Moved};

/// Steps of workers that the store does not have yet; the [`Mirror`] of the scout whose [`Writer`](super::Writer)
/// takes them out.
///
/// It is bounded: where too much waits, the worker with most of it loses its oldest steps. Its part of the store
/// is then built anew, since each step goes on top of exactly the one before.
#[derive(Debug)]
pub struct Outbox {
    most: usize,
    queues: Mutex<Queues>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    workers: BTreeMap<WorkerId, Queue>,
    bytes: usize,
    dropped: u64,
}

#[derive(Debug, Default)]
struct Queue {
    steps: VecDeque<Step>,
    bytes: usize,
    /// Steps that ever came.
    came: u64,
}

/// A step, and which one of its worker it is.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) number: u64,
    pub(super) moved: Moved,
}

fn weight(moved: &Moved) -> usize {
    size_of::<Step>() + moved.changes.bytes()
}

impl Outbox {
    /// An empty one that takes at most so many bytes.
    pub fn new(most_bytes: usize) -> Outbox {
        Outbox { most: most_bytes, queues: Mutex::default(), woken: Notify::new() }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.queues.lock().bytes
    }

    /// Steps that wait.
    pub fn len(&self) -> usize {
        self.queues.lock().workers.values().map(|queue| queue.steps.len()).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Steps that were dropped because too much waited.
    pub fn dropped(&self) -> u64 {
        self.queues.lock().dropped
    }

    pub(super) fn take(&self, worker: WorkerId) -> Option<Step> {
        let mut queues = self.queues.lock();
        let queue = queues.workers.get_mut(&worker)?;
        let step = queue.steps.pop_front()?;
        let bytes = weight(&step.moved);
        queue.bytes -= bytes;
        queues.bytes -= bytes;
        Some(step)
    }

    /// Puts the step back that was taken last.
    pub(super) fn put_back(&self, step: Step) {
        let mut queues = self.queues.lock();
        let bytes = weight(&step.moved);
        let queue = queues.workers.entry(step.moved.worker).or_default();
        queue.steps.push_front(step);
        queue.bytes += bytes;
        queues.bytes += bytes;
    }

    /// Lets `read` look at what waits for a worker.
    pub(super) fn look<T>(
        &self,
        worker: WorkerId,
        read: impl FnOnce(&VecDeque<Step>) -> T,
    ) -> Option<T> {
        self.queues.lock().workers.get(&worker).map(|queue| read(&queue.steps))
    }

    /// How many steps of a worker ever came.
    pub(super) fn came(&self, worker: WorkerId) -> u64 {
        self.queues.lock().workers.get(&worker).map_or(0, |queue| queue.came)
    }

    /// Drops a worker's leading steps as long as `is_old`.
    pub(super) fn trim(&self, worker: WorkerId, mut is_old: impl FnMut(&Step) -> bool) {
        let mut queues = self.queues.lock();
        let Some(queue) = queues.workers.get_mut(&worker) else { return };
        let mut freed = 0;
        while queue.steps.front().is_some_and(&mut is_old) {
            freed += queue.steps.pop_front().map_or(0, |step| weight(&step.moved));
        }
        queue.bytes -= freed;
        queues.bytes -= freed;
    }

    pub(super) fn forget(&self, worker: WorkerId) {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.workers.remove(&worker) {
            queues.bytes -= queue.bytes;
        }
    }

    /// Workers of which something waits.
    pub(super) fn pending(&self) -> Vec<WorkerId> {
        let queues = self.queues.lock();
        let some = queues.workers.iter().filter(|(_, queue)| !queue.steps.is_empty());
        some.map(|(&worker, _)| worker).collect()
    }

    /// Waits until something comes.
    pub(super) async fn wait(&self) {
        self.woken.notified().await;
    }
}

impl Mirror for Outbox {
    fn moved(&self, moved: Moved) {
        let bytes = weight(&moved);
        let mut queues = self.queues.lock();
        let queue = queues.workers.entry(moved.worker).or_default();
        queue.came += 1;
        let number = queue.came;
        queue.steps.push_back(Step { number, moved });
        queue.bytes += bytes;
        queues.bytes += bytes;
        while queues.bytes > self.most {
            let most = queues.workers.values_mut().max_by_key(|queue| queue.bytes);
            let Some(queue) = most else { break };
            let Some(step) = queue.steps.pop_front() else { break };
            let freed = weight(&step.moved);
            queue.bytes -= freed;
            queues.bytes -= freed;
            queues.dropped += 1;
        }
        drop(queues);
        self.woken.notify_one();
    }
}
