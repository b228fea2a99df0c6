//! The daemon's configuration: file, then environment, then flags, parsed once into types.
//!
//! Every key has one line in [`KEYS`] (or [`source::KEYS`], [`discover::KEYS`], [`adapter::KEYS`], [`caller::KEYS`],
//! [`model::KEYS`]); reading the three
//! sources, `--print-config`, the nearest known key of a misspelt one and the test of
//! `docs/configuration.md` all follow from it.

pub(crate) mod adapter;
pub(crate) mod caller;
pub(crate) mod discover;
mod entry;
pub(crate) mod model;
mod on_gap;
mod setting;
pub(crate) mod source;
mod store;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
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
use self::model::{ModelEntry, TokenizerSource};
pub(crate) use self::on_gap::OnGap;
pub(crate) use self::setting::{Key, duration};
use self::setting::{Setting, assign, keys};
use self::source::SourceEntry;
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

/// The gRPC services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grpc {
    /// Where they are served, if anywhere.
    pub(crate) listen: Option<SocketAddr>,
    /// Calls that a connection may have under way.
    pub(crate) max_streams: NonZeroU32,
}

/// What is kept over a restart.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The directory of snapshots and the digest key.
    pub(crate) dir: Option<String>,
    /// From one snapshot to the next.
    pub(crate) interval: Duration,
    /// Other replicas to begin with, where the directory has no snapshot: the first that has one.
    pub(crate) from: Vec<String>,
    /// The file with the token that they want.
    pub(crate) from_token_file: Option<String>,
    /// Whether others may begin with a snapshot of this one.
    pub(crate) share: bool,
}

impl State {
    /// The replicas to begin with. An empty text, as a variable of the environment may be, is none.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = &String> {
        self.from.iter().filter(|from| !from.is_empty())
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

/// Limits of the daemon itself.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Bytes of a request's body.
    pub(crate) max_body: NonZeroUsize,
    /// How long a body may take to arrive.
    pub(crate) read_timeout: Duration,
    /// Questions that are computed at a time.
    pub(crate) concurrency: Option<NonZeroUsize>,
    /// Questions that may wait for that.
    pub(crate) queue: usize,
    /// Bytes of all bodies at a time.
    pub(crate) body_memory: usize,
    /// Connections to each listener.
    pub(crate) connections: NonZeroUsize,
    /// How long one may rest.
    pub(crate) idle: Duration,
    /// How long requests in flight may go on after the signal to stop.
    pub(crate) drain: Duration,
    /// Workers that topics may register.
    pub(crate) topic_workers: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 13333)),
            // Twice what SGLang's router has in flight. A zero would not compile.
            grpc: Grpc { listen: None, max_streams: const { NonZeroU32::new(64).unwrap() } },
            auth: Auth::default(),
            tls: TlsFiles::default(),
            log_format: Format::Text,
            log_level: Level::Info,
            seeds: Vec::new(),
            mooncake_answer: MooncakeAnswer::Doc,
            dialects: Dialects {
                dynamo_hashes: false,
                // Some 50 MB. A zero would not compile.
                dynamo_blocks: const { NonZeroUsize::new(1 << 20).unwrap() },
                // Up to some 200 MB where no two workers hold the same.
                sglang_blocks: const { NonZeroUsize::new(1 << 20).unwrap() },
            },
            trust_topics: false,
            topic_bind: None,
            topic_tenant: Registration::DEFAULT_TENANT.to_owned(),
            dial: vec![Rule::Private],
            weights: Weights::default(),
            limits: Limits {
                // A million tokens of seven digits and a comma; Dynamo's limit, too. A zero would not
                // compile.
                max_body: const { NonZeroUsize::new(8 << 20).unwrap() },
                read_timeout: Duration::from_secs(10),
                concurrency: None,
                queue: 256,
                body_memory: 256 << 20,
                // A zero would not compile.
                connections: const { NonZeroUsize::new(1024).unwrap() },
                // Longer than routers' own pools keep a connection.
                idle: Duration::from_secs(120),
                drain: Duration::from_secs(10),
                topic_workers: 4096,
            },
            events: event::Limits::default(),
            memory: MemoryOptions::default(),
            chain_memory: scout::Options::default().chain_memory,
            anchor_memory: scout::Options::default().anchor_memory,
            state: State {
                dir: None,
                interval: Duration::from_secs(60),
                from: Vec::new(),
                from_token_file: None,
                share: false,
            },
            store: Store::default(),
            // Some engines may never come back, and must not keep a router from being served.
            ready: Ready { workers: 0.0, deadline: Some(Duration::from_secs(60)) },
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

/// What the command line says, key by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// Keys of [`KEYS`] and their texts.
    pub(crate) keys: Vec<(&'static str, Vec<String>)>,
    /// `--source`.
    pub(crate) sources: Vec<String>,
    /// `--discover`.
    pub(crate) discover: Vec<String>,
    /// `--model`.
    pub(crate) model: Option<String>,
}

/// What is wrong with the configuration, in one line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ConfigError {
    fn new(message: impl Into<String>) -> ConfigError {
        ConfigError(message.into())
    }
}

impl Config {
    /// The effective configuration of this process, with a file if one is given.
    ///
    /// # Errors
    ///
    /// As [`from_sources`](Config::from_sources); or the file cannot be read.
    pub(crate) fn load(path: Option<&Path>, flags: &Flags) -> Result<Config, Failure> {
        let read = |path: &Path| {
            let unread = |error| Failure::Usage(format!("--config {}: {error}", path.display()));
            std::fs::read_to_string(path).map_err(unread)
        };
        let file = path.map(read).transpose()?;
        // What is no UTF-8 cannot be a valid value either and shows as what it is.
        let environment =
            |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Config::from_sources(file.as_deref(), &environment, flags)
            .map_err(|error| Failure::Usage(error.to_string()))
    }

    /// The effective configuration: defaults, then `file`, then the environment, then `flags`.
    ///
    /// A source of a later origin replaces the one of the same tenant and name.
    ///
    /// # Errors
    ///
    /// An unknown key, a value of the wrong type or range, or values that contradict each other.
    pub(crate) fn from_sources(
        file: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
        flags: &Flags,
    ) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        if let Some(file) = file {
            config.read_file(file)?;
        }
        for key in KEYS {
            let variable = variable(key.path);
            if let Some(text) = environment(&variable) {
                set(key, &mut config, &[text], &variable)?;
            }
        }
        let model = flags.model.clone().or_else(|| environment("KVSCOUT_MODEL"));
        if let Some(list) = environment("KVSCOUT_SOURCES") {
            for text in list.split_whitespace() {
                config.add_source(source::from_text(text, model.as_deref(), "KVSCOUT_SOURCES")?);
            }
        }
        if let Some(list) = environment("KVSCOUT_DISCOVER") {
            for text in list.split_whitespace() {
                let entry = discover::from_text(text, model.as_deref(), "KVSCOUT_DISCOVER")?;
                config.add_discover(entry);
            }
        }
        for (path, texts) in &flags.keys {
            // The command line names its keys itself.
            let Some(key) = KEYS.iter().find(|key| key.path == *path) else { continue };
            let flag = match *path {
                "grpc.listen" => "grpc".to_owned(),
                "state.dir" => "state".to_owned(),
                "store.address" => "store".to_owned(),
                "store.mode" => "mode".to_owned(),
                path => path.replace(['.', '_'], "-"),
            };
            set(key, &mut config, texts, &format!("--{flag}"))?;
        }
        for text in &flags.sources {
            config.add_source(source::from_text(text, model.as_deref(), "--source")?);
        }
        for text in &flags.discover {
            config.add_discover(discover::from_text(text, model.as_deref(), "--discover")?);
        }
        config.check()?;
        Ok(config)
    }

    fn read_file(&mut self, text: &str) -> Result<(), ConfigError> {
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
            let message = error.message().lines().collect::<Vec<_>>().join(" ");
            ConfigError(format!("configuration file, line {line}: {message}"))
        })?;
        if let Some(tables) = table.remove("models") {
            self.models = model::from_tables(tables)?;
        }
        for (path, value) in flatten(table) {
            match (path.as_str(), value) {
                ("source", Value::Array(tables)) => {
                    for (n, table) in tables.into_iter().enumerate() {
                        self.add_source(source::from_table(table, n)?);
                    }
                }
                ("discover", Value::Array(tables)) => {
                    for (n, table) in tables.into_iter().enumerate() {
                        self.add_discover(discover::from_table(table, n)?);
                    }
                }
                ("adapter", Value::Array(tables)) => {
                    for (n, table) in tables.into_iter().enumerate() {
                        self.adapters.push(adapter::from_table(table, n)?);
                    }
                }
                ("caller", Value::Array(tables)) => {
                    for (n, table) in tables.into_iter().enumerate() {
                        self.callers.push(caller::from_table(table, n)?);
                    }
                }
                (table @ ("source" | "discover" | "adapter" | "caller"), _) => {
                    return Err(ConfigError(format!(
                        "{table} is a list of tables; write [[{table}]]"
                    )));
                }
                (path, value) => {
                    let lists = ["source", "discover", "adapter", "caller", "models"];
                    let known = KEYS.iter().map(|key| key.path).chain(lists);
                    let key = KEYS
                        .iter()
                        .find(|key| key.path == path)
                        .ok_or_else(|| unknown(path, known))?;
                    set(key, self, &texts(path, value)?, path)?;
                }
            }
        }
        Ok(())
    }

    fn add_source(&mut self, source: SourceEntry) {
        let same = |other: &SourceEntry| other.name == source.name && other.tenant == source.tenant;
        match self.sources.iter_mut().find(|other| same(other)) {
            Some(other) => *other = source,
            None => self.sources.push(source),
        }
    }

    fn add_discover(&mut self, entry: DiscoverEntry) {
        match self.discover.iter_mut().find(|other| other.name == entry.name) {
            Some(other) => *other = entry,
            None => self.discover.push(entry),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.check_state()?;
        self.store.check(self)?;
        self.check_models()?;
        caller::check(&self.callers, &self.auth, &self.tls)?;
        if self.metrics_interval.is_zero() {
            return Err(ConfigError::new("metrics_interval \"0s\" never rests; at least 1ms"));
        }
        if self.replay.rebuild.is_zero() {
            return Err(ConfigError::new(
                "replay.rebuild \"0s\" asks without end for what an engine no longer has; at least 1ms",
            ));
        }
        if self.ready.workers > 1.0 {
            let share = self.ready.workers;
            return Err(ConfigError(format!(
                "ready.workers {share}: expected a share from 0 to 1"
            )));
        }
        match (self.trust_topics, &self.topic_bind) {
            (true, None) => Err(ConfigError::new(
                "trust_topics is true without an endpoint: set topic_bind, such as tcp://*:5557",
            )),
            (false, Some(bind)) => Err(ConfigError(format!(
                "topic_bind {bind} lets every sender speak for every pod: set trust_topics = true \
                 if that is acceptable",
            ))),
            _ => Ok(()),
        }
    }

    fn check_models(&self) -> Result<(), ConfigError> {
        for entry in &self.models {
            let Some(engine) = (entry.tokenizer == TokenizerSource::Engine).then_some(&entry.name)
            else {
                continue;
            };
            let serves = |entry: &DiscoverEntry| {
                entry.http.is_some() && entry.model.as_ref().is_none_or(|served| served == engine)
            };
            if self.engines_of(engine).next().is_none() && !self.discover.iter().any(serves) {
                return Err(ConfigError(format!(
                    "models.{engine:?}, tokenizer \"engine\": no source of this model says where its HTTP API \
                     is; set http = \"http://host:port\", or the port where it is discovered"
                )));
            }
        }
        Ok(())
    }

    /// The bases of the HTTP APIs of the engines that serve a model.
    pub(crate) fn engines_of(&self, model: &str) -> impl Iterator<Item = &str> {
        let serves = move |source: &&SourceEntry| {
            source.model.as_deref().is_none_or(|served| served == model)
        };
        self.sources.iter().filter(serves).filter_map(|source| source.http.as_deref())
    }

    fn check_state(&self) -> Result<(), ConfigError> {
        let State { dir, interval, from_token_file, share, .. } = &self.state;
        if interval.is_zero() {
            return Err(ConfigError::new("state.interval 0s: expected a duration above 0"));
        }
        if let Some(from) = self.state.replicas().find(|from| !from.starts_with("http://")) {
            return Err(ConfigError(format!("state.from {from:?}: expected http://host:port")));
        }
        let has_replicas = self.state.replicas().next().is_some();
        if from_token_file.is_some() && !has_replicas {
            return Err(ConfigError::new("state.from_token_file is set without state.from"));
        }
        for (key, is_set) in [("state.from", has_replicas), ("state.share", *share)] {
            if is_set && dir.is_none() {
                return Err(ConfigError(format!(
                    "{key} is set without state.dir, where the digest key is that both replicas need"
                )));
            }
        }
        Ok(())
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

/// The environment variable of a key.
///
/// Variables of other names are ignored: Kubernetes sets `KVSCOUT_PORT` and the like itself for a
/// service called kvscout.
fn variable(path: &str) -> String {
    format!("KVSCOUT_{}", path.replace('.', "_").to_uppercase())
}

fn set<T>(key: &Key<T>, of: &mut T, texts: &[String], named: &str) -> Result<(), ConfigError> {
    (key.set)(of, texts).map_err(|expected| {
        ConfigError(format!("{named} {:?}: expected {expected}", shown(key.path, texts)))
    })
}

/// A wrong value, without a password that may be in it.
fn shown(path: &str, texts: &[String]) -> String {
    let text = texts.join(",");
    match text.rfind('@').filter(|_| path == "store.address") {
        Some(at) => format!("...{}", &text[at..]),
        None => text,
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

/// The keys of a file by their dotted paths.
fn flatten(table: Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                flat.extend(inner.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => flat.push((name, value)),
        }
    }
    flat
}

/// A value's texts: one, or those of a list.
fn texts(path: &str, value: Value) -> Result<Vec<String>, ConfigError> {
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(value) => Ok(value.to_string()),
        other => Err(ConfigError(format!(
            "{path}: expected one value or a list of values, found {}",
            other.type_str()
        ))),
    };
    match value {
        Value::Array(values) => values.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

fn unknown<'a>(path: &str, known: impl Iterator<Item = &'a str>) -> ConfigError {
    let nearest = known.min_by_key(|known| distance(path, known)).unwrap_or_default();
    ConfigError(format!("unknown key {path:?}; the nearest known one is {nearest:?}"))
}

/// Insertions, deletions and replacements that make one text of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
