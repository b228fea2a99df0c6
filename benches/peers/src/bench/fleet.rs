//! The index alone, at 64 and 256 workers: ingest, lookups, and lookups beside a writer.

use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::{Options, feed, progress};
use crate::chain_index::Chains;
use crate::check;
use crate::clock::{Blocking, Samples, median, pin, ticks};
use crate::ours::Ours;
use crate::peer::{Peer, Seeds};
use crate::query::{Query, next_turns, of_depth};
use crate::rng::Rng;
use crate::row::Row;
use crate::workload::{Fleet, Stream, simulate};

/// Blocks stored or evicted once the pools are full.
const CHURN: usize = 1_200_000;

/// The 64-worker fleet that ingest and lookups are measured on.
pub fn of_64(options: &Options) -> Fleet {
    options.fleet(64, CHURN)
}

/// An index and its writer.
struct Loaded<P: Peer> {
    peer: P,
    writer: P::Writer,
}

impl<P: Peer> Loaded<P> {
    fn empty(workers: usize) -> Loaded<P> {
        let peer = P::new(workers, Seeds::Shared);
        Loaded { writer: peer.writer(), peer }
    }

    fn feed(&mut self, stream: &Stream, range: Range<usize>) -> f64 {
        feed(&self.peer, &mut self.writer, stream, range)
    }

    /// One repetition on an empty index: fill, churn, and churn beside a reader.
    fn write(&mut self, stream: &Stream, ranges: [&Range<usize>; 3], turns: &[Query]) -> Written {
        let [fill, churn, rest] = ranges;
        pin(1);
        let rate = |range: &Range<usize>, seconds| stream.blocks_in(range.clone()) as f64 / seconds;
        Written {
            fill: rate(fill, self.feed(stream, fill.clone())),
            churn: rate(churn, self.feed(stream, churn.clone())),
            beside: beside(self, stream, rest.clone(), turns),
        }
    }
}

/// What one repetition of writing gave, in blocks in a CPU second.
struct Written {
    fill: f64,
    churn: f64,
    beside: Beside,
}

fn written_rows(figures: &[Vec<Written>; 2]) -> Vec<Row> {
    type Column = (&'static str, fn(&Written) -> f64);
    let columns: [Column; 5] = [
        ("ingest-fill", |w| w.fill),
        ("ingest-churn", |w| w.churn),
        ("mixed-writer", |w| w.beside.written),
        ("mixed-reader", |w| w.beside.looked_up),
        ("mixed-reader-p99", |w| w.beside.p99),
    ];
    let lookups: Vec<usize> = figures.iter().flatten().map(|w| w.beside.samples).collect();
    let few = lookups.iter().any(|&n| n < 1000);
    let row = |(name, column): Column| {
        let [ours, rival] = [0, 1].map(|at| figures[at].iter().map(column).collect::<Vec<_>>());
        let detail = json!({"ours": ours, "rival": rival, "lookups_beside": lookups});
        let row = Row::new(name, median(&ours), median(&rival), Chains::NAME, detail);
        let mixed = name.starts_with("mixed");
        row.fail_if(mixed && few, "fewer than 1000 lookups beside the writer")
    };
    columns.into_iter().map(row).collect()
}

/// The rows of the 64-worker fleet.
pub fn rows_64(options: &Options, fleet: &Fleet, stream: &Stream) -> Vec<Row> {
    let ingest = ["ingest-fill", "ingest-churn"];
    let mixed = ["mixed-writer", "mixed-reader", "mixed-reader-p99"];
    let lookups = ["lookup-1024", "next-turn-64"];
    let wanted = [&ingest[..], &mixed, &lookups, &["oracle-64"]].concat();
    if !options.wants_any(&wanted) {
        return Vec::new();
    }
    // A third of the churn is timed alone, the rest beside a reader.
    let churn_end = stream.fill_end + (stream.events.len() - stream.fill_end) / 3;
    let (fill, churn) = (0..stream.fill_end, stream.fill_end..churn_end);
    let rest = churn_end..stream.events.len();
    let mut rng = Rng::new(5);
    let turns = next_turns(stream, 2000, &mut rng);
    let timed = options.wants_any(&ingest) || options.wants_any(&mixed);
    let reps = if timed { options.reps } else { 1 };
    let mut ours = Loaded::<Ours>::empty(fleet.workers);
    let mut theirs = Loaded::<Chains>::empty(fleet.workers);
    let mut figures: [Vec<Written>; 2] = Default::default();
    for rep in 0..reps {
        progress(&format!("64 workers: ingest, then a writer and a reader, {} of {reps}", rep + 1));
        ours = Loaded::empty(fleet.workers);
        theirs = Loaded::empty(fleet.workers);
        let ranges = [&fill, &churn, &rest];
        figures[0].push(ours.write(stream, ranges, &turns));
        figures[1].push(theirs.write(stream, ranges, &turns));
    }
    let mut rows = written_rows(&figures);

    progress("64 workers: oracle");
    let resident = of_depth(stream, 1024, 1024, 400, &mut rng);
    let mut checked: Vec<Query> = turns.iter().step_by(7).cloned().collect();
    checked.extend(resident.iter().step_by(3).cloned());
    let sound = oracle("oracle-64", &ours.peer, &theirs.peer, stream, &checked);
    let is_sound = sound.ok();
    rows.push(sound);

    progress("64 workers: lookups");
    pin(1);
    for (name, queries) in [("lookup-1024", &resident), ("next-turn-64", &turns)] {
        if options.wants(name) {
            rows.push(lookups_row(name, options, &ours.peer, &theirs.peer, queries));
        }
    }
    rows.into_iter().map(|row| row.fail_if(!is_sound, "an index gives wrong scores")).collect()
}

/// The rows of the 256-worker fleet.
pub fn rows_256(options: &Options) -> Vec<Row> {
    if !options.wants_any(&["next-turn-256", "oracle-256"]) {
        return Vec::new();
    }
    progress("256 workers: load");
    let fleet = options.fleet(256, CHURN);
    let stream = simulate(&fleet);
    let all = 0..stream.events.len();
    let mut ours = Loaded::<Ours>::empty(fleet.workers);
    ours.feed(&stream, all.clone());
    let mut theirs = Loaded::<Chains>::empty(fleet.workers);
    theirs.feed(&stream, all);
    let turns = next_turns(&stream, 4000, &mut Rng::new(5));
    let checked: Vec<Query> = turns.iter().step_by(20).cloned().collect();
    let sound = oracle("oracle-256", &ours.peer, &theirs.peer, &stream, &checked);
    progress("256 workers: lookups");
    pin(1);
    let row = lookups_row("next-turn-256", options, &ours.peer, &theirs.peer, &turns);
    vec![row.fail_if(!sound.ok(), "an index gives wrong scores"), sound]
}

/// Compares both indexes with the truth, and with the number of entries they must have.
fn oracle(name: &str, ours: &Ours, theirs: &Chains, stream: &Stream, queries: &[Query]) -> Row {
    let wrong = check::index(ours, stream, queries);
    let rival = check::index(theirs, stream, queries);
    let entries = [ours.entries(), theirs.entries()];
    let detail = json!({
        "entries": entries, "held": stream.entries, "ours": wrong.json(), "rival": rival.json(),
    });
    Row::new(name, wrong.figure(), rival.figure(), Chains::NAME, detail)
        .fail_if(!rival.is_exact(), "the rival gives wrong scores")
        .fail_if(
            entries.iter().flatten().any(|&entries| entries != stream.entries),
            "an index has not the entries that the engines hold",
        )
}

/// One repetition of lookups one by one: p50 and p99 in nanoseconds, and how many there were.
fn time_lookups<P: Peer>(peer: &P, prompts: &[P::Prompt], budget: u128) -> (f64, f64, usize) {
    let mut samples = Samples::with_capacity(1 << 18);
    let mut answer = P::Answer::default();
    let start = Instant::now();
    'enough: loop {
        for prompt in prompts {
            black_box(peer.touch(prompt));
            let before = ticks();
            peer.lookup(black_box(prompt), &mut answer);
            black_box(&answer);
            samples.push(before, ticks());
            if samples.len().is_multiple_of(64)
                && (samples.len() >= 1 << 18 || start.elapsed().as_millis() > budget)
            {
                break 'enough;
            }
        }
        assert!(!prompts.is_empty(), "there are prompts to look up");
    }
    (samples.quantile(0.5), samples.quantile(0.99), samples.len())
}

fn lookups_row(
    name: &str,
    options: &Options,
    ours: &Ours,
    theirs: &Chains,
    queries: &[Query],
) -> Row {
    if queries.is_empty() {
        return Row::failed(name, "the workload has no such prompt");
    }
    let our_prompts: Vec<_> = queries.iter().map(|query| ours.prompt(query)).collect();
    let their_prompts: Vec<_> = queries.iter().map(|query| theirs.prompt(query)).collect();
    let budget = options.budget();
    let mut figures: [Vec<(f64, f64, usize)>; 2] = Default::default();
    for _ in 0..options.reps {
        figures[0].push(time_lookups(ours, &our_prompts, budget));
        figures[1].push(time_lookups(theirs, &their_prompts, budget));
    }
    let p50 = |at: usize| median(&figures[at].iter().map(|f| f.0).collect::<Vec<_>>());
    let detail = |at: usize| -> Value {
        let list = figures[at].iter();
        list.map(|(p50, p99, n)| json!({"p50": p50, "p99": p99, "lookups": n})).collect()
    };
    let blocks = queries.iter().map(|q| q.names.len()).sum::<usize>() as f64 / queries.len() as f64;
    let detail = json!({
        "prompts": queries.len(), "mean_blocks": blocks, "ours": detail(0), "rival": detail(1),
    });
    Row::new(name, p50(0), p50(1), Chains::NAME, detail)
}

/// One repetition of a writer and a reader.
struct Beside {
    /// Blocks applied in a second of the writer.
    written: f64,
    /// Lookups in a second of the reader.
    looked_up: f64,
    /// Of the reader's lookups, in nanoseconds.
    p99: f64,
    samples: usize,
}

/// A writer that applies a stretch flat out on one CPU, and a reader on another that asks for next
/// turns as long as that takes. Waiting for each other counts.
fn beside<P: Peer>(
    loaded: &mut Loaded<P>,
    stream: &Stream,
    range: Range<usize>,
    turns: &[Query],
) -> Beside {
    let Loaded { peer, writer } = loaded;
    let peer = &*peer;
    let prompts: Vec<_> = turns.iter().map(|query| peer.prompt(query)).collect();
    let blocks = stream.blocks_in(range.clone()) as f64;
    let events = peer.events(stream, range);
    let (go, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            pin(0);
            let mut clock = None;
            peer.apply(writer, events, || {
                clock = Some(Blocking::start());
                go.store(true, Ordering::Release);
            });
            let seconds = clock.expect("the writer has started").seconds();
            done.store(true, Ordering::Release);
            seconds
        });
        pin(1);
        let mut samples = Samples::with_capacity(1 << 20);
        let mut answer = P::Answer::default();
        while !go.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let clock = Blocking::start();
        let mut turns = prompts.iter().cycle();
        while !done.load(Ordering::Acquire) {
            let prompt = turns.next().expect("a cycle has no end");
            black_box(peer.touch(prompt));
            let before = ticks();
            peer.lookup(black_box(prompt), &mut answer);
            black_box(&answer);
            samples.push(before, ticks());
        }
        let seconds = clock.seconds();
        let written = blocks / writing.join().expect("the writer ends well");
        Beside {
            written,
            looked_up: samples.len() as f64 / seconds,
            p99: samples.quantile(0.99),
            samples: samples.len(),
        }
    })
}
