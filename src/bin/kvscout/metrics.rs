//! `/metrics`: what the daemon counts, for Prometheus. `docs/metrics.md` has every name.
//!
//! The number of series is bounded: labels are routes, states and the like, of which there are only so
//! many; [`pods`] has those with a pod in them.

mod outcomes;
mod pods;
mod process;
mod readings;
mod series;
mod totals;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kvscout::score::Unpredictable;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

pub(crate) use self::outcomes::Outcome;
use self::outcomes::Outcomes;
use self::pods::Pods;
use self::process::Process;
use self::readings::{Applied, Readings};
pub(crate) use self::series::{Kind, numbers, numbers_by, seconds, seconds_in_all};
pub(crate) use self::totals::Totals;
use crate::service::{BOUNDS, Service};

/// One HTTP route and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

/// One gRPC method and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    method: &'static str,
    code: &'static str,
}

/// One gRPC method.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// One HTTP route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Taken {
    route: String,
}

/// Who turns a text into tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tokenized {
    by: &'static str,
}

/// A histogram from 100 us to 6 s.
type Waits<L> = Family<L, Histogram, fn() -> Histogram>;

fn waits<L: Clone + Eq + std::hash::Hash>() -> Waits<L> {
    Family::new_with_constructor(|| Histogram::new(exponential_buckets(100e-6, 2.5, 13)))
}

/// What requests count themselves.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Answers by route and status.
    requests: Family<Answered, Counter>,
    /// From a request's head to its answer's.
    request_seconds: Waits<Taken>,
    /// Calls by method and status.
    calls: Family<Called, Counter>,
    /// From a call's message to its answer.
    call_seconds: Waits<Method>,
    /// Time within the index for one question, tokens already read.
    pub(crate) score_seconds: Histogram,
    /// Time for a text or chat, by who turns it into tokens.
    tokenize_seconds: Waits<Tokenized>,
    /// What lookups came to.
    lookups: Lookups,
    /// Receipts by whether they were as expected.
    receipts: Family<Received, Counter>,
    /// Sums of what receipts say.
    expected_tokens: Counter,
    delivered_tokens: Counter,
    /// How far off expectations were, either way.
    error_tokens: Histogram,
    /// Which pods have series of their own.
    pods: Pods,
}

/// What lookups came to, as far as the first worker of each answer, or the one that holds most, says.
#[derive(Clone, Debug)]
pub(crate) struct Lookups {
    pub(crate) all: Counter,
    /// Those where somebody holds a block.
    pub(crate) hits: Counter,
    /// Prompt tokens asked about, and those that the first worker is expected to have cached.
    pub(crate) tokens: Counter,
    pub(crate) expected_tokens: Counter,
    /// Leading blocks of whoever holds most: their sum and how many are how long.
    matched: Counter,
    matched_blocks: Histogram,
    outcomes: Outcomes,
}

/// What is counted of a lookup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    /// Tokens of its prompt.
    pub(crate) tokens: u64,
    /// The most leading blocks that anybody holds.
    pub(crate) most_blocks: u32,
    pub(crate) outcome: Outcome,
    /// The tokens that the first worker is expected to have cached, or why that is not known.
    pub(crate) expected_tokens: Result<u32, Unpredictable>,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups {
            all: Counter::default(),
            hits: Counter::default(),
            tokens: Counter::default(),
            expected_tokens: Counter::default(),
            matched: Counter::default(),
            // None, one, and so on to 16,384 blocks, some 262,144 tokens.
            matched_blocks: Histogram::new(
                [0.0].into_iter().chain(exponential_buckets(1.0, 4.0, 8)),
            ),
            outcomes: Outcomes::default(),
        }
    }
}

/// How a receipt compares with what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Received {
    verdict: &'static str,
}

impl Metrics {
    /// Nothing counted yet; at most so many pods will have series of their own.
    pub(crate) fn new(most_pods: usize) -> Metrics {
        Metrics {
            requests: Family::default(),
            request_seconds: waits(),
            calls: Family::default(),
            call_seconds: waits(),
            // 10 us, where the answers for short prompts are, to 0.33 s.
            score_seconds: Histogram::new(exponential_buckets(10e-6, 2.0, 16)),
            tokenize_seconds: waits(),
            lookups: Lookups::default(),
            receipts: Family::default(),
            expected_tokens: Counter::default(),
            delivered_tokens: Counter::default(),
            error_tokens: Histogram::new(BOUNDS.map(f64::from)),
            pods: Pods::new(most_pods),
        }
    }

    /// Counts an answer by its route's pattern, or `other`, and its status.
    pub(crate) fn count_answer(&self, route: String, status: u16, took: Duration) {
        let taken = Taken { route: route.clone() };
        self.request_seconds.get_or_create(&taken).observe(took.as_secs_f64());
        self.requests.get_or_create(&Answered { route, status }).inc();
    }

    /// Counts a lookup.
    pub(crate) fn count_lookup(&self, lookup: Lookup) {
        let Lookup { most_blocks, expected_tokens, .. } = lookup;
        let Lookups { all, hits, tokens, expected_tokens: expected, .. } = &self.lookups;
        all.inc();
        hits.inc_by(u64::from(most_blocks > 0));
        tokens.inc_by(lookup.tokens);
        expected.inc_by(u64::from(expected_tokens.unwrap_or(0)));
        self.lookups.matched.inc_by(u64::from(most_blocks));
        self.lookups.matched_blocks.observe(f64::from(most_blocks));
        self.lookups.outcomes.count(lookup.outcome, expected_tokens.err());
    }

    /// What lookups came to so far.
    pub(crate) fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// Counts a text that was turned into tokens, or refused, `by` files or an engine.
    pub(crate) fn count_text(&self, by: &'static str, took: Duration) {
        self.tokenize_seconds.get_or_create(&Tokenized { by }).observe(took.as_secs_f64());
    }

    /// Counts a call by its method, as gRPC writes it without the first slash, and its status.
    pub(crate) fn count_call(&self, method: &'static str, code: &'static str) {
        self.calls.get_or_create(&Called { method, code }).inc();
    }

    /// Counts how long the answer to a call took whose message was read.
    pub(crate) fn time_call(&self, method: &'static str, took: Duration) {
        self.call_seconds.get_or_create(&Method { method }).observe(took.as_secs_f64());
    }

    /// Counts a receipt.
    pub(crate) fn count_receipt(&self, verdict: &'static str, expected: u32, delivered: u32) {
        self.receipts.get_or_create(&Received { verdict }).inc();
        self.expected_tokens.inc_by(u64::from(expected));
        self.delivered_tokens.inc_by(u64::from(delivered));
        self.error_tokens.observe(f64::from(expected.abs_diff(delivered)));
    }
}

/// The text that `/metrics` answers with.
#[derive(Debug)]
pub(crate) struct Exposition {
    /// In the order in which they are written: the first sets counters of the last.
    registries: [Registry; 3],
}

impl Exposition {
    /// Everything that `service` counts.
    pub(crate) fn new(service: Arc<Service>) -> Exposition {
        let mut own = Registry::with_prefix("kvscout");
        let mut peer = Registry::with_prefix("kvcache_index");
        let mut process = Registry::with_prefix("process");
        service.metrics().register(&mut own);
        let (help, lag) = ("How old live batches were when they were taken in", service.lag());
        own.register_with_unit("batch_lag", help, Unit::Seconds, lag);
        let applied = service.metrics().register_as_peer(&mut peer);
        own.register_collector(Box::new(Readings { service, applied }));
        process.register_collector(Box::new(Process::new()));
        Exposition { registries: [own, process, peer] }
    }

    /// The current values, in the OpenMetrics text format.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        for registry in &self.registries {
            text::encode_registry(&mut text, registry)?;
        }
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

impl Metrics {
    fn register(&self, to: &mut Registry) {
        let Lookups { all, hits, tokens, expected_tokens, matched, matched_blocks, outcomes } =
            &self.lookups;
        outcomes.register(to);
        to.register("http_requests", "Answers by route and status", self.requests.clone());
        to.register("grpc_requests", "Answers by method and status", self.calls.clone());
        to.register("receipts", "Receipts by verdict", self.receipts.clone());
        for (name, help, counter) in [
            ("lookups", "Lookups", all),
            ("lookup_hits", "Lookups where somebody holds a block", hits),
            ("lookup_tokens", "Tokens of the prompts looked up", tokens),
            (
                "lookup_expected_tokens",
                "Tokens of them that the best worker is expected to have cached",
                expected_tokens,
            ),
            ("lookup_matched_blocks", "Leading blocks that the best worker holds", matched),
            (
                "receipt_expected_tokens",
                "Tokens that receipts say were expected",
                &self.expected_tokens,
            ),
            (
                "receipt_delivered_tokens",
                "Tokens that receipts say were cached",
                &self.delivered_tokens,
            ),
        ] {
            to.register(name, help, counter.clone());
        }
        to.register(
            "matched_blocks",
            "Leading blocks that the best worker holds, by lookup",
            matched_blocks.clone(),
        );
        to.register(
            "prediction_error_tokens",
            "Tokens by which receipts differed from what was expected",
            self.error_tokens.clone(),
        );
        let (seconds, score) = (Unit::Seconds, self.score_seconds.clone());
        to.register_with_unit("score", "Time within the index for one question", seconds, score);
        let (seconds, requests) = (Unit::Seconds, self.request_seconds.clone());
        to.register_with_unit("http_request", "Time for an answer by route", seconds, requests);
        let (seconds, calls) = (Unit::Seconds, self.call_seconds.clone());
        to.register_with_unit("grpc_request", "Time for an answer by method", seconds, calls);
        let (seconds, texts) = (Unit::Seconds, self.tokenize_seconds.clone());
        to.register_with_unit("tokenize", "Time to turn a text into tokens", seconds, texts);
    }

    /// The same under the names of llm-d's index, for dashboards that have them.
    fn register_as_peer(&self, to: &mut Registry) -> Applied {
        let Lookups { all, matched, .. } = &self.lookups;
        let applied = Applied::default();
        for (name, help, counter) in [
            ("admissions", "As kvscout_stored_total", &applied.stored),
            ("evictions", "As kvscout_removed_total", &applied.removed),
            ("lookup_requests", "As kvscout_lookups_total", all),
            ("lookup_hits", "As kvscout_lookup_matched_blocks_total", matched),
            ("max_pod_hit_count", "As kvscout_lookup_matched_blocks_total", matched),
        ] {
            to.register(name, help, counter.clone());
        }
        let (help, score) = ("As kvscout_score_seconds", self.score_seconds.clone());
        to.register_with_unit("lookup_latency", help, Unit::Seconds, score);
        applied
    }
}
