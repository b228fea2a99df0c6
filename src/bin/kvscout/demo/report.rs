//! The result, as a table for people and as JSON for programs.

use std::fmt::Write as _;
use std::time::Duration;

use kvscout::ingest::Trust;
use kvscout::ingest::verify::{Contract, Status};
use kvscout::scout::WorkerStatus;
use serde_json::{Value, json};

use super::trial::{Tally, Trial};
use super::{Setting, page};

/// The head of the table, in two lines.
const HEAD: [[&str; 8]; 2] = [
    ["", "cached", "% requests", "busiest", "first token", "predicted", "differed", "scoring"],
    ["policy", "tokens", "each engine", "engine", "(modelled)", "= actual", "at once", "p50 / p99"],
];

/// What is known at the end.
pub(super) struct Report<'a> {
    pub(super) setting: &'a Setting,
    /// How many requests each policy served; fewer than asked for where time ran out.
    pub(super) served: u64,
    pub(super) elapsed: Duration,
    pub(super) contract: Option<String>,
    exact: bool,
    pub(super) rows: Vec<(&'static str, &'a Tally)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(setting: &'a Setting, trials: &'a [Trial], elapsed: Duration) -> Report<'a> {
        let status: Vec<WorkerStatus> =
            trials.iter().flat_map(|trial| trial.fleet().status()).collect();
        Report {
            setting,
            served: trials.iter().map(|trial| trial.tally().requests).min().unwrap_or(0),
            elapsed,
            contract: contract(&status),
            exact: status.iter().all(|worker| worker.trust == Trust::Exact),
            rows: trials.iter().map(|trial| (trial.policy.as_str(), trial.tally())).collect(),
        }
    }

    /// Whether the index said of every request what the engine said.
    pub(super) fn is_sound(&self) -> bool {
        self.exact && self.rows.iter().all(|(_, tally)| tally.as_predicted == tally.requests)
    }

    /// The result with charts, as HTML.
    pub(super) fn page(&self) -> String {
        page::page(self)
    }

    pub(super) fn text(&self) -> String {
        let Setting { engines, blocks, seed, trace, .. } = self.setting;
        let contract = self.contract.as_deref().unwrap_or("none");
        let of = match trace {
            Some(path) => format!("the trace {path}"),
            None => {
                format!("users and agents (seed {seed}), whose conversations share system prompts,")
            }
        };
        let mut text = format!(
            "{} requests of {of} went\nthrough each policy to {engines} simulated vLLM engines \
             (block pools of {blocks} x 16 tokens); their KV events\nwent over ZeroMQ to kvscout. \
             Contract detected: {contract}. Took {:.1} s.\n\n",
            self.served,
            self.elapsed.as_secs_f64(),
        );
        let shares = *engines <= 4;
        let [above, mut below] = HEAD;
        below[2] = if shares { "each engine" } else { "an engine" };
        line(&mut text, above);
        line(&mut text, below);
        for (policy, tally) in &self.rows {
            line(
                &mut text,
                [
                    policy,
                    &percent(tally.cached_tokens, tally.prompt_tokens),
                    &spread_of(tally, shares),
                    &format!("{:.2}x", imbalance(tally)),
                    &format!("{} ms", mean(&tally.first_token)),
                    &format!("{}/{}", tally.as_predicted, tally.requests),
                    &percent(tally.differed_at_once, tally.requests),
                    &format!(
                        "{} / {} us",
                        quantile(&tally.scoring, 50).as_micros(),
                        quantile(&tally.scoring, 99).as_micros()
                    ),
                ],
            );
        }
        text.push_str(
            "\nCached tokens need no prefill: more is better. Busiest engine: its prefill work over the \
             mean, 1.00x\nis best. First token: mean wait in virtual time, at 8,000 tokens of prefill a \
             second. Predicted =\nactual: kvscout, asked once it had applied the engines' last batches, \
             said what the engine found\ncached; at once: how often it was wrong when asked right \
             after those batches were sent.\n",
        );
        if self.served < self.setting.requests as u64 {
            let asked = self.setting.requests;
            let _ = writeln!(text, "Time ran out; {asked} requests were asked for.");
        }
        if !self.exact {
            text.push_str(
                "Some engine's state is not exact: messages were lost or not understood.\n",
            );
        }
        text.push_str(
            "Next, with your own engines: kvscout serve --source pod-1=tcp://HOST:5557\n",
        );
        text
    }

    pub(super) fn json(&self) -> Value {
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let policies: Vec<Value> = self
            .rows
            .iter()
            .map(|(policy, tally)| {
                json!({
                    "policy": policy,
                    "requests": tally.requests,
                    "prompt_tokens": tally.prompt_tokens,
                    "cached_tokens": tally.cached_tokens,
                    "cached_rate": ratio(tally.cached_tokens, tally.prompt_tokens),
                    "requests_per_engine":
                        tally.engines.iter().map(|e| e.requests).collect::<Vec<_>>(),
                    "computed_tokens_per_engine":
                        tally.engines.iter().map(|e| e.computed_tokens).collect::<Vec<_>>(),
                    "busiest_engine": imbalance(tally),
                    "modelled_first_token_ms": mean(&tally.first_token),
                    "predicted_equals_actual": tally.as_predicted,
                    "differed_at_once": tally.differed_at_once,
                    "scoring_us": {
                        "p50": micros(quantile(&tally.scoring, 50)),
                        "p99": micros(quantile(&tally.scoring, 99)),
                    },
                })
            })
            .collect();
        json!({
            "seed": self.setting.seed,
            "trace": self.setting.trace,
            "engines": self.setting.engines,
            "blocks_per_engine": self.setting.blocks,
            "requests": self.served,
            "requests_asked_for": self.setting.requests,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "contract": self.contract,
            "exact": self.exact,
            "policies": policies,
        })
    }
}

/// The one contract of all engines that have sent anything.
fn contract(status: &[WorkerStatus]) -> Option<String> {
    let heard = status.iter().filter(|worker| worker.as_of.is_some());
    let mut contracts: Vec<Option<String>> = heard
        .map(|worker| match &worker.contract {
            Status::Verified(Contract::Vllm(contract)) => {
                Some(format!("vllm {}", contract.algorithm().as_str()))
            }
            _ => None,
        })
        .collect();
    contracts.dedup();
    match &mut contracts[..] {
        [one] => one.take(),
        _ => None,
    }
}

fn line(text: &mut String, cells: [&str; 8]) {
    let [policy, cached, spread, busiest, first, predicted, differed, scoring] = cells;
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{policy:<16} {cached:>7} {spread:>13} {busiest:>8} {first:>12} {predicted:>10} \
         {differed:>9} {scoring:>13}"
    );
}

/// Each engine's share of the requests, or the smallest and the largest.
fn spread_of(tally: &Tally, all: bool) -> String {
    let shares =
        tally.engines.iter().map(|e| (100.0 * ratio(e.requests, tally.requests)).round() as u64);
    if all {
        return shares.map(|share| share.to_string()).collect::<Vec<_>>().join(" ");
    }
    let (least, most) = (shares.clone().min(), shares.max());
    format!("{} to {}", least.unwrap_or(0), most.unwrap_or(0))
}

/// The prefill work of the busiest engine over the mean.
pub(super) fn imbalance(tally: &Tally) -> f64 {
    let work = || tally.engines.iter().map(|engine| engine.computed_tokens);
    let most = work().max().unwrap_or(0) * tally.engines.len() as u64;
    ratio(most, work().sum())
}

pub(super) fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * ratio(part, whole))
}

pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

pub(super) fn mean(times: &[u64]) -> u64 {
    times.iter().sum::<u64>() / (times.len() as u64).max(1)
}

/// The time below which so many in a hundred are.
pub(super) fn quantile<T: Copy + Default + Ord>(times: &[T], percent: usize) -> T {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = times.len() * percent / 100;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
