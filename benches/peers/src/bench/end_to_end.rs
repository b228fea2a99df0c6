//! From a prompt's tokens to ranked workers, each index with its own hashing.

use std::hint::black_box;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Options, feed, progress};
use crate::chain_index::Chains;
use crate::check::{self, Wrong};
use crate::clock::{Samples, median, pin, ticks};
use crate::dynamo::Crtc;
use crate::ours::Scouted;
use crate::peer::{Peer, Ranker, Seeds};
use crate::query::{Query, next_turns, of_depth};
use crate::rng::Rng;
use crate::row::Row;
use crate::wire;
use crate::workload::{Fleet, Stream};

/// The rows of this part.
pub const ROWS: [&str; 2] = ["tokens-next-turn", "tokens-miss-2048"];

/// Measures the rows that are wanted.
pub fn rows(options: &Options, fleet: &Fleet, stream: &Stream) -> Vec<Row> {
    if !options.wants_any(&ROWS) {
        return Vec::new();
    }
    progress("tokens to ranked workers: load");
    let all = 0..stream.events.len();
    let chains = Chains::new(fleet.workers, Seeds::Shared);
    feed(&chains, &mut chains.writer(), stream, all.clone());
    let crtc = Crtc::new(fleet.workers, Seeds::Shared);
    feed(&crtc, &mut (), stream, all.clone());
    let mut scouted = Scouted::new(fleet.workers);
    for step in stream.steps(all) {
        let worker = stream.events[step.start].worker as usize;
        let events = &stream.events[step];
        let applied = scouted.receive(worker, &wire::payload(stream, events));
        let named: u32 = events.iter().map(|event| event.len).sum();
        assert_eq!(applied, u64::from(named), "every copy is applied");
    }

    progress("tokens to ranked workers: oracle");
    let mut rng = Rng::new(23);
    let turns = next_turns(stream, 300, &mut rng);
    let miss = of_depth(stream, 2048, 0, 64, &mut rng);
    let checked: Vec<Query> = turns.iter().take(100).chain(miss.iter().take(2)).cloned().collect();
    let wrong = [
        check::ranker(&scouted, stream, &checked),
        check::ranker(&chains, stream, &checked),
        check::ranker(&crtc, stream, &checked),
    ];
    let doubts = scouted.doubts();

    progress("tokens to ranked workers");
    pin(1);
    let mut rows = Vec::new();
    for (name, queries) in ROWS.into_iter().zip([&turns, &miss]) {
        if options.wants(name) {
            let row = row(name, options, queries, &scouted, &chains, &crtc, &wrong);
            rows.push(
                row.fail_if(wrong.iter().any(|w| !w.is_exact()), "an index gives wrong scores")
                    .fail_if(doubts > 0, "workers are not trusted or have no known contract")
                    .fail_if(
                        scouted.entries() != stream.entries,
                        "the index has not the entries that the engines hold",
                    ),
            );
        }
    }
    rows
}

fn row(
    name: &str,
    options: &Options,
    queries: &[Query],
    scouted: &Scouted,
    chains: &Chains,
    crtc: &Crtc,
    wrong: &[Wrong],
) -> Row {
    if queries.is_empty() {
        return Row::failed(name, "the workload has no such prompt");
    }
    let prompts: Vec<Vec<u32>> = queries.iter().map(Query::tokens).collect();
    let mut figures = [const { Vec::new() }; 3];
    let mut requests = [const { Vec::new() }; 3];
    for _ in 0..options.reps {
        let rep = [
            time(scouted, &prompts, options.budget()),
            time(chains, &prompts, options.budget()),
            time(crtc, &prompts, options.budget()),
        ];
        for (at, (p50, n)) in rep.into_iter().enumerate() {
            figures[at].push(p50);
            requests[at].push(n);
        }
    }
    let medians = figures.each_ref().map(|list| median(list));
    let best = if medians[1] <= medians[2] { 1 } else { 2 };
    let names = [<Scouted as Ranker>::NAME, <Chains as Ranker>::NAME, <Crtc as Ranker>::NAME];
    let peers: Value = (0..3)
        .map(|at| {
            json!({
                "index": names[at], "p50": figures[at], "requests": requests[at],
                "oracle": wrong[at].json(),
            })
        })
        .collect();
    let tokens = prompts.iter().map(Vec::len).sum::<usize>() / prompts.len();
    let detail = json!({"prompts": prompts.len(), "mean_tokens": tokens, "peers": peers});
    Row::new(name, medians[0], medians[best], names[best], detail)
}

/// One repetition: p50 in nanoseconds, and how many requests there were.
fn time<R: Ranker>(ranker: &R, prompts: &[Vec<u32>], budget: u128) -> (f64, usize) {
    let mut samples = Samples::with_capacity(1 << 16);
    let mut answer = R::Answer::default();
    let start = Instant::now();
    'enough: loop {
        for tokens in prompts {
            black_box(tokens.iter().fold(0, |sum, token| sum ^ token));
            let before = ticks();
            ranker.rank(black_box(tokens), &mut answer);
            black_box(&answer);
            samples.push(before, ticks());
            if samples.len() >= 1 << 16
                || (samples.len() >= 64 && start.elapsed().as_millis() > budget)
            {
                break 'enough;
            }
        }
    }
    (samples.quantile(0.5), samples.len())
}
