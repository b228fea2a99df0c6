//! Scores against the truth: after churn, with holes in the middle of chains, after some of the
//! holes were filled, under one hash seed and under a seed for each worker.

use serde_json::json;

use super::{Options, feed, progress};
use crate::chain_index::Chains;
use crate::check::{self, Wrong};
use crate::ours::{Ours, Scouted};
use crate::peer::{Peer, Seeds};
use crate::query::{Query, next_turns, of_depth};
use crate::rng::Rng;
use crate::row::Row;
use crate::wire;
use crate::workload::{Block, Event, Fleet, Kind, Stream, simulate};

/// The rows of this part.
pub const ROWS: [&str; 5] =
    ["wrong-churn", "wrong-holes", "wrong-healed", "wrong-shared-seed", "wrong-seed-per-worker"];

/// (blocks of the prompt, of which some worker holds at least).
const DEPTHS: [(usize, usize); 8] = [
    (64, 0),
    (2048, 0),
    (64, 64),
    (256, 256),
    (1024, 256),
    (1024, 1024),
    (2048, 512),
    (2048, 1536),
];

/// Measures the rows that are wanted.
pub fn rows(options: &Options) -> Vec<Row> {
    if !options.wants_any(&ROWS) {
        return Vec::new();
    }
    progress("exactness");
    let churn = if options.quick { 50_000 } else { 400_000 };
    let pool = if options.quick { 2048 } else { 8192 };
    let fleet = Fleet { workers: 32, pool, system_prompts: 16, share: true, churn, seed: 3 };
    let mut rows = Vec::new();
    if options.wants_any(&ROWS[..3]) {
        rows.extend(damage(&fleet));
    }
    for (name, seeds) in [(ROWS[3], Seeds::Shared), (ROWS[4], Seeds::PerWorker)] {
        if options.wants(name) {
            rows.push(vocabulary(&fleet, name, seeds));
        }
    }
    rows
}

fn damage(fleet: &Fleet) -> Vec<Row> {
    let mut stream = simulate(fleet);
    let mut rng = Rng::new(17);
    let mut queries = next_turns(&stream, 400, &mut rng);
    for (len, depth) in DEPTHS {
        queries.extend(of_depth(&stream, len, depth, 60, &mut rng));
    }
    let (ours, theirs) =
        (Ours::new(fleet.workers, Seeds::Shared), Chains::new(fleet.workers, Seeds::Shared));
    let (mut our_writer, mut their_writer) = (ours.writer(), theirs.writer());
    let mut holes = Vec::new();
    let mut fed = 0;
    let mut rows = Vec::new();
    for name in &ROWS[..3] {
        match *name {
            "wrong-holes" => holes = punch(&mut stream, &queries, &mut rng),
            "wrong-healed" => heal(&mut stream, &queries, &holes),
            _ => {}
        }
        let (all, events) = (fed..stream.events.len(), stream.events.len() - fed);
        feed(&ours, &mut our_writer, &stream, all.clone());
        feed(&theirs, &mut their_writer, &stream, all.clone());
        fed = all.end;
        let wrong = check::index(&ours, &stream, &queries);
        let rival = check::index(&theirs, &stream, &queries);
        let row = row(name, wrong, rival, events);
        rows.push(row.fail_if(events == 0, "no event to be tested by"));
    }
    rows
}

fn row(name: &str, ours: Wrong, rival: Wrong, events: usize) -> Row {
    let detail = json!({"events": events, "ours": ours.json(), "rival": rival.json()});
    Row::new(name, ours.figure(), rival.figure(), Chains::NAME, detail)
}

/// A block in the middle of what a worker holds of a prompt.
struct Hole {
    query: usize,
    worker: usize,
    block: usize,
}

/// Evicts single blocks from the middle of chains.
fn punch(stream: &mut Stream, queries: &[Query], rng: &mut Rng) -> Vec<Hole> {
    let mut holes = Vec::new();
    for (query, names) in queries.iter().map(|query| &query.names).enumerate().step_by(3) {
        let worker = rng.below(stream.held.len());
        let depth = stream.depth_on(worker, names) as usize;
        if depth < 8 {
            continue;
        }
        let block = 1 + rng.below(depth - 2);
        stream.held[worker].remove(&names[block]);
        stream.entries -= 1;
        let start = stream.removed.len() as u64;
        stream.removed.push(names[block]);
        let (worker_id, kind) = (worker as u16, Kind::Removed);
        stream.events.push(Event { worker: worker_id, kind, len: 1, start, parent: None });
        holes.push(Hole { query, worker, block });
    }
    holes
}

/// Stores every second one of the missing blocks again, under its old parent.
fn heal(stream: &mut Stream, queries: &[Query], holes: &[Hole]) {
    for hole in holes.iter().step_by(2) {
        let (query, held) = (&queries[hole.query], &mut stream.held[hole.worker]);
        let (name, parent) = (query.names[hole.block], query.names[hole.block - 1]);
        if held.contains_key(&name) || !held.contains_key(&parent) {
            continue;
        }
        held.insert(name, 0);
        stream.entries += 1;
        let start = stream.stored.len() as u64;
        let (content, text) = (query.contents[hole.block], query.text(hole.block));
        stream.stored.push(Block { name, content, text });
        let (worker, kind, parent) = (hole.worker as u16, Kind::Stored, Some(parent));
        stream.events.push(Event { worker, kind, len: 1, start, parent });
    }
}

/// The same contents under one seed or many, through the index and through the whole path.
fn vocabulary(fleet: &Fleet, name: &str, seeds: Seeds) -> Row {
    let mut stream = simulate(fleet);
    if seeds == Seeds::PerWorker {
        stream.rename_per_worker();
    }
    let queries = next_turns(&stream, 400, &mut Rng::new(17));
    let all = 0..stream.events.len();
    let ours = Ours::new(fleet.workers, seeds);
    feed(&ours, &mut ours.writer(), &stream, all.clone());
    let theirs = Chains::new(fleet.workers, seeds);
    feed(&theirs, &mut theirs.writer(), &stream, all.clone());
    let mut scouted = Scouted::new(fleet.workers);
    for step in stream.steps(all.clone()) {
        let worker = stream.events[step.start].worker as usize;
        scouted.receive(worker, &wire::payload(&stream, &stream.events[step]));
    }
    let wrong = check::index(&ours, &stream, &queries);
    let wrong = wrong.and(check::ranker(&scouted, &stream, &queries));
    row(name, wrong, check::index(&theirs, &stream, &queries), all.len())
}
