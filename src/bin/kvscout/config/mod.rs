//! The daemon's configuration: file, then environment, then flags, parsed once into types.
//!
//! Every key has one line in [`KEYS`] (or [`source::KEYS`], [`discover::KEYS`], [`adapter::KEYS`],
//! [`caller::KEYS`], [`model::KEYS`]); reading the three sources, `--print-config`, the nearest known key of a
//! misspelt one and the test of `docs/configuration.md` all follow from it.

pub(crate) mod adapter;
pub(crate) mod caller;
mod checks;
pub(crate) mod discover;
mod entry;
mod limits;
pub(crate) mod model;
mod on_gap;
mod reading;
mod setting;
pub(crate) mod source;
mod state;
mod store;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use kvscout::event;
use kvscout::index::MemoryOptions;
use kvscout::ingest::ReplayOptions;
use kvscout::ingest::zmq::{self, Endpoint, RoundOptions};
use kvscout::predict::PredictOptions;
use kvscout::score::Weights;
use kvscout::scout::{self, Registration};
use toml::{Table, Value};

use self::adapter::AdapterEntry;
use self::caller::CallerEntry;
pub(crate) use self::caller::{Auth, TlsFiles};
use self::discover::DiscoverEntry;
pub(crate) use self::limits::Limits;
use self::model::ModelEntry;
pub(crate) use self::on_gap::OnGap;
pub(crate) use self::reading::Flags;
pub(crate) use self::setting::{Key, duration};
use self::setting::{Setting, assign, keys};
use self::source::SourceEntry;
pub(crate) use self::state::State;
pub(crate) use self::store::Store;
use crate::Failure;
use crate::dial::Rule;
use crate::http::MooncakeAnswer;
use crate::logs::{Format, Level};
use crate::service::ReceiptOptions;

/// Everything that can be set.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where HTTP is served.
    pub(crate) listen: SocketAddr,
    /// The gRPC services.
    pub(crate) grpc: Grpc,
    /// Who need not say who it is, and who may do everything.
    pub(crate) auth: Auth,
    /// TLS of both.
    pub(crate) tls: TlsFiles,
    /// Form of the log lines.
    pub(crate) log_format: Format,
    /// What is logged.
    pub(crate) log_level: Level,
    /// Texts of `PYTHONHASHSEED` to try.
    pub(crate) seeds: Vec<String>,
    /// Which of Mooncake's two documented answers `/query` gives.
    pub(crate) mooncake_answer: MooncakeAnswer,
    /// What other projects' clients need.
    pub(crate) dialects: Dialects,
    /// Whether one bound endpoint may tell pods apart by what they say.
    pub(crate) trust_topics: bool,
    /// That endpoint.
    pub(crate) topic_bind: Option<Endpoint>,
    /// The tenant of its workers.
    pub(crate) topic_tenant: String,
    /// What requests may have dialled.
    pub(crate) dial: Vec<Rule>,
    /// What a block is worth in each tier.
    pub(crate) weights: Weights,
    /// What requests may cost.
    pub(crate) limits: Limits,
    /// What a payload may cost.
    pub(crate) events: event::Limits,
    /// What the index may cost.
    pub(crate) memory: MemoryOptions,
    /// Bytes for names of prompts that were asked about before.
    pub(crate) chain_memory: usize,
    pub(crate) anchor_memory: usize,
    /// What is kept over a restart.
    pub(crate) state: State,
    /// A store that is shared with others.
    pub(crate) store: Store,
    /// When the daemon says that it is ready.
    pub(crate) ready: Ready,
    /// The transport.
    pub(crate) zmq: zmq::Options,
    /// What repairing a stream may cost.
    pub(crate) replay: ReplayOptions,
    /// What a replay may cost; its largest message is that of `zmq`.
    pub(crate) rounds: RoundOptions,
    /// How long picks count, and how many.
    pub(crate) predict: PredictOptions,
    /// What a predicted block is worth.
    pub(crate) predict_weight: f64,
    /// What follows from receipts.
    pub(crate) receipts: ReceiptOptions,
    /// What becomes of workers that lost something.
    pub(crate) on_gap: OnGap,
    /// How many pods have metrics of their own.
    pub(crate) most_pods: usize,
    /// How often engines' own metrics are asked for.
    pub(crate) metrics_interval: Duration,
    /// How long an engine may work without a message until its worker is silent.
    pub(crate) silent_after: Duration,
    /// How long a link may be down until its worker is silent.
    pub(crate) silent_after_down: Duration,
    /// How long an engine may be without a message, whatever it does, until its worker is silent; none for ever.
    pub(crate) silent_after_quiet: Option<Duration>,
    /// The engines to receive from.
    pub(crate) sources: Vec<SourceEntry>,
    /// Names that lead to engines.
    pub(crate) discover: Vec<DiscoverEntry>,
    /// LoRA adapters that requests may name.
    pub(crate) adapters: Vec<AdapterEntry>,
    /// Those who may do something, where not everyone may.
    pub(crate) callers: Vec<CallerEntry>,
    /// Models that can be asked about by text.
    pub(crate) models: Vec<ModelEntry>,
}

/// What other projects' clients need, and costs something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialects {
    /// Whether Dynamo's hashes of single blocks are kept.
    pub(crate) dynamo_hashes: bool,
    /// How many.
    pub(crate) dynamo_blocks: NonZeroUsize,
    /// How many blocks of workers that SGLang's bridges report.
    pub(crate) sglang_blocks: NonZeroUsize,
}

impl Default for Dialects {
    fn default() -> Dialects {
        Dialects {
            dynamo_hashes: false,
            // Some 50 MB. A zero would not compile.
            dynamo_blocks: const { NonZeroUsize::new(1 << 20).unwrap() },
            // Up to some 200 MB where no two workers hold the same.
            sglang_blocks: const { NonZeroUsize::new(1 << 20).unwrap() },
        }
    }
}

/// The gRPC services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grpc {
    /// Where they are served, if anywhere.
    pub(crate) listen: Option<SocketAddr>,
    /// Calls that a connection may have under way.
    pub(crate) max_streams: NonZeroU32,
}

impl Default for Grpc {
    fn default() -> Grpc {
        // Twice what SGLang's router has in flight. A zero would not compile.
        Grpc { listen: None, max_streams: const { NonZeroU32::new(64).unwrap() } }
    }
}

/// When the daemon says that it is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// The share of workers that are exact.
    pub(crate) workers: f64,
    /// After which it does not matter any more.
    pub(crate) deadline: Option<Duration>,
}

impl Default for Ready {
    fn default() -> Ready {
        // Some engines may never come back, and must not keep a router from being served.
        Ready { workers: 0.0, deadline: Some(Duration::from_secs(60)) }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 13333)),
            grpc: Grpc::default(),
            auth: Auth::default(),
            tls: TlsFiles::default(),
            log_format: Format::Text,
            log_level: Level::Info,
            seeds: Vec::new(),
            mooncake_answer: MooncakeAnswer::Doc,
            dialects: Dialects::default(),
            trust_topics: false,
            topic_bind: None,
            topic_tenant: Registration::DEFAULT_TENANT.to_owned(),
            dial: vec![Rule::Private],
            weights: Weights::default(),
            limits: Limits::default(),
            events: event::Limits::default(),
            memory: MemoryOptions::default(),
            chain_memory: scout::Options::default().chain_memory,
            anchor_memory: scout::Options::default().anchor_memory,
            state: State::default(),
            store: Store::default(),
            ready: Ready::default(),
            zmq: zmq::Options::default(),
            // A few seconds of a replay in ten minutes, if the buffer still has everything; else one attempt.
            replay: ReplayOptions { audit: Duration::from_secs(600), ..ReplayOptions::default() },
            rounds: RoundOptions::default(),
            predict: PredictOptions::default(),
            // Less than any tier that is announced on the device or beside it, more than none.
            predict_weight: 0.5,
            receipts: ReceiptOptions {
                quarantine: false,
                quarantine_for: Duration::from_secs(300),
            },
            on_gap: OnGap::Flag,
            // Some 25 series each.
            most_pods: 256,
            metrics_interval: Duration::from_secs(30),
            silent_after: Duration::from_secs(300),
            // A restart in place takes longer; a dropped connection is dialled again much sooner.
            silent_after_down: Duration::from_secs(10),
            // An engine without traffic says nothing.
            silent_after_quiet: None,
            sources: Vec::new(),
            discover: Vec::new(),
            adapters: Vec::new(),
            callers: Vec::new(),
            models: Vec::new(),
        }
    }
}

/// Every key outside of `[[source]]`, `[[discover]]`, `[[adapter]]` and `[models.NAME]`.
pub(crate) const KEYS: &[Key<Config>] = keys! { Config {
    "listen" => listen;
    "grpc.listen" => grpc.listen;
    "grpc.max_streams" => grpc.max_streams;
    "auth.token_file" => auth.token_file;
    "auth.open" => auth.open;
    "tls.certificate" => tls.certificate;
    "tls.key" => tls.key;
    "tls.client_ca" => tls.client_ca;
    "log.format" => log_format;
    "log.level" => log_level;
    "seeds" => seeds;
    "mooncake_answer" => mooncake_answer;
    "dialects.dynamo_hashes" => dialects.dynamo_hashes;
    "dialects.dynamo_blocks" => dialects.dynamo_blocks;
    "dialects.sglang_blocks" => dialects.sglang_blocks;
    "trust_topics" => trust_topics;
    "topic_bind" => topic_bind;
    "topic_tenant" => topic_tenant;
    "dial.allow" => dial;
    "weights.gpu" => weights.gpu;
    "weights.cpu" => weights.cpu;
    "weights.disk" => weights.disk;
    "weights.remote" => weights.remote;
    "limits.max_body_bytes" => limits.max_body;
    "limits.read_timeout" => limits.read_timeout;
    "limits.concurrency" => limits.concurrency;
    "limits.queue" => limits.queue;
    "limits.body_memory_bytes" => limits.body_memory;
    "limits.connections" => limits.connections;
    "limits.idle" => limits.idle;
    "limits.drain" => limits.drain;
    "limits.topic_workers" => limits.topic_workers;
    "limits.registered_workers" => limits.registered_workers;
    "limits.adapters" => limits.adapters;
    "limits.max_frame_bytes" => events.max_frame;
    "limits.max_events" => events.max_events;
    "limits.max_hashes" => events.max_hashes;
    "memory.budget" => memory.budget;
    "limits.unplaced_per_worker" => memory.unplaced_per_worker;
    "limits.chain_memory_bytes" => chain_memory;
    "predict.ttl" => predict.ttl;
    "predict.most_blocks" => predict.most_blocks;
    "predict.weight" => predict_weight;
    "receipts.quarantine" => receipts.quarantine;
    "receipts.quarantine_for" => receipts.quarantine_for;
    "on_gap" => on_gap;
    "silent_after" => silent_after;
    "metrics.most_pods" => most_pods;
    "metrics_interval" => metrics_interval;
    "silent_after_down" => silent_after_down;
    "silent_after_quiet" => silent_after_quiet;
    "replay.at_a_time" => rounds.at_a_time;
    "replay.idle" => rounds.idle;
    "replay.overall" => rounds.overall;
    "replay.max_backlog_bytes" => rounds.max_backlog_bytes;
    "replay.max_malformed" => rounds.max_malformed;
    "replay.max_held_bytes" => replay.max_held_bytes;
    "replay.max_held_batches" => replay.max_held_batches;
    "replay.max_fruitless" => replay.max_fruitless;
    "replay.max_rounds" => replay.max_rounds;
    "replay.backoff" => replay.backoff;
    "replay.backoff_max" => replay.backoff_max;
    "replay.rebuild" => replay.rebuild;
    "replay.rebuild_max" => replay.rebuild_max;
    "audit.every" => replay.audit;
    "audit.memory" => anchor_memory;
    "state.dir" => state.dir;
    "state.interval" => state.interval;
    "state.from" => state.from;
    "state.from_token_file" => state.from_token_file;
    "state.share" => state.share;
    "store.mode" => store.mode;
    "store.address" => store.address;
    "store.namespace" => store.namespace;
    "store.secret_file" => store.secret_file;
    "store.password_file" => store.password_file;
    "store.password_env" => store.password_env;
    "store.sentinel_password_file" => store.sentinel_password_file;
    "store.tls_ca" => store.tls_ca;
    "store.tls_cert" => store.tls_cert;
    "store.tls_key" => store.tls_key;
    "store.read_deadline" => store.read_deadline;
    "store.answer_deadline" => store.answer_deadline;
    "store.write_deadline" => store.write_deadline;
    "store.connect_deadline" => store.connect_deadline;
    "store.in_flight" => store.in_flight;
    "store.ttl" => store.ttl;
    "store.lease" => store.lease;
    "store.owner_ttl" => store.owner_ttl;
    "store.max_queue_bytes" => store.max_queue;
    "store.wait" => store.wait;
    "store.refresh" => store.refresh;
    "ready.workers" => ready.workers;
    "ready.deadline" => ready.deadline;
    "zmq.max_message_bytes" => zmq.max_message_bytes;
    "zmq.receive_hwm" => zmq.receive_hwm;
    "zmq.heartbeat_interval" => zmq.heartbeat_interval;
    "zmq.heartbeat_timeout" => zmq.heartbeat_timeout;
    "zmq.heartbeat_ttl" => zmq.heartbeat_ttl;
    "zmq.tcp_keepalive" => zmq.tcp_keepalive;
    "zmq.reconnect_interval" => zmq.reconnect_interval;
    "zmq.reconnect_max" => zmq.reconnect_max;
    "zmq.topic" => zmq.topic;
    "zmq.max_connections" => zmq.max_connections;
}};

/// What is wrong with the configuration, in one line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Usage(error.0)
    }
}

impl ConfigError {
    fn new(message: impl Into<String>) -> ConfigError {
        ConfigError(message.into())
    }
}

impl Config {
    /// The bases of the HTTP APIs of the engines that serve a model.
    pub(crate) fn engines_of(&self, model: &str) -> impl Iterator<Item = &str> {
        let serves = move |source: &&SourceEntry| {
            source.model.as_deref().is_none_or(|served| served == model)
        };
        self.sources.iter().filter(serves).filter_map(|source| source.http.as_deref())
    }

    /// The configuration as TOML that reads back as itself.
    pub(crate) fn to_toml(&self) -> String {
        let mut root = table_of(KEYS, self);
        let sources = self.sources.iter().map(|source| table_of(source::KEYS, source).into());
        let discover = self.discover.iter().map(|entry| table_of(discover::KEYS, entry).into());
        let adapters = self.adapters.iter().map(|entry| table_of(adapter::KEYS, entry).into());
        let callers = self.callers.iter().map(|entry| table_of(caller::KEYS, entry).into());
        let lists: [(&str, Vec<Value>); 4] = [
            ("source", sources.collect()),
            ("discover", discover.collect()),
            ("adapter", adapters.collect()),
            ("caller", callers.collect()),
        ];
        for (name, tables) in lists {
            if !tables.is_empty() {
                root.insert(name.to_owned(), Value::Array(tables));
            }
        }
        let models = self.models.iter();
        let models: Table =
            models.map(|entry| (entry.name.clone(), table_of(model::KEYS, entry).into())).collect();
        if !models.is_empty() {
            root.insert("models".to_owned(), models.into());
        }
        root.to_string()
    }
}

fn table_of<T>(keys: &[Key<T>], of: &T) -> Table {
    let mut root = Table::new();
    for key in keys {
        let Some(value) = (key.get)(of) else { continue };
        match key.path.split_once('.') {
            None => {
                root.insert(key.path.to_owned(), value);
            }
            Some((table, name)) => {
                let inner = root.entry(table).or_insert_with(|| Table::new().into());
                if let Value::Table(inner) = inner {
                    inner.insert(name.to_owned(), value);
                }
            }
        }
    }
    root
}

#[cfg(test)]
mod tests;
