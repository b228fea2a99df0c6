//! `[[source]]`: one engine to receive from.

use std::num::NonZeroU32;

use kvscout::block::BlockSize;
use kvscout::hash::vllm::{self, Algorithm, Root, Version};
use kvscout::ingest::verify::Contract;
use kvscout::ingest::zmq::{Endpoint, Mode};
use kvscout::scout::{Copies, OnClear, Registration};
use toml::Table;

use super::ConfigError;
use super::entry::{self, Given};
use super::setting::{Key, Setting, assign, keys};
use crate::service::Labels;

/// One engine, with all its data-parallel ranks.
#[derive(Clone, Debug)]
pub(crate) struct SourceEntry {
    /// The pod.
    pub(crate) name: String,
    /// Where rank 0 publishes; rank `r` does so at this port plus `r`.
    pub(crate) endpoint: Endpoint,
    /// Where rank 0 answers questions for past batches.
    pub(crate) replay: Option<Endpoint>,
    /// Where its own metrics are.
    pub(crate) metrics: Option<String>,
    /// Base of its HTTP API, which is asked for tokens.
    pub(crate) http: Option<String>,
    /// The model it serves; absent answers for any model.
    pub(crate) model: Option<String>,
    /// The tenant.
    pub(crate) tenant: String,
    /// Number of data-parallel ranks.
    pub(crate) ranks: NonZeroU32,
    /// The engine's version.
    pub(crate) vllm: Option<Version>,
    /// The block size the operator expects.
    pub(crate) block_size: Option<BlockSize>,
    /// What its clears take away.
    pub(crate) on_clear: OnClear,
    /// What its repeated stores mean.
    pub(crate) copies: Copies,
    /// Who dials.
    pub(crate) mode: Mode,
    /// How the names of a publisher without tokens are made.
    pub(crate) hash_algorithm: Option<Algorithm>,
    /// The `PYTHONHASHSEED` of whoever made them.
    pub(crate) hash_seed: Option<String>,
    /// What routers tell it apart by.
    pub(crate) labels: Labels,
}

/// Every key of a `[[source]]`.
pub(crate) const KEYS: &[Key<SourceEntry>] = keys! { SourceEntry {
    "name" => name;
    "endpoint" => endpoint;
    "replay" => replay;
    "metrics" => metrics;
    "http" => http;
    "model" => model;
    "tenant" => tenant;
    "ranks" => ranks;
    "vllm" => vllm;
    "block_size" => block_size;
    "on_clear" => on_clear;
    "copies" => copies;
    "mode" => mode;
    "hash_algorithm" => hash_algorithm;
    "hash_seed" => hash_seed;
    "labels" => labels;
}};

impl SourceEntry {
    pub(super) fn new(name: String, endpoint: Endpoint) -> SourceEntry {
        SourceEntry {
            name,
            endpoint,
            replay: None,
            metrics: None,
            http: None,
            model: None,
            tenant: Registration::DEFAULT_TENANT.to_owned(),
            ranks: NonZeroU32::MIN,
            vllm: None,
            block_size: None,
            on_clear: OnClear::default(),
            copies: Copies::default(),
            mode: Mode::Connect,
            hash_algorithm: None,
            hash_seed: None,
            labels: Labels::new(),
        }
    }

    /// What the worker of a rank is registered with.
    pub(crate) fn registration(&self, rank: u32) -> Registration {
        Registration {
            pod: self.name.clone(),
            rank,
            tenant: self.tenant.clone(),
            model: self.model.clone(),
            vllm: self.vllm,
            block_size: self.block_size,
            on_clear: self.on_clear,
            copies: self.copies,
            // Checked when it was read.
            contract: self.contract().ok().flatten(),
        }
    }

    /// The contract of its names, as far as it is told.
    fn contract(&self) -> Result<Option<Contract>, kvscout::Error> {
        let Some(algorithm) = self.hash_algorithm else { return Ok(None) };
        let root = self.hash_seed.as_deref().map_or(Root::Unset, Root::Seed);
        let version = self.vllm.unwrap_or(Version::NEWEST);
        vllm::Contract::new(version, algorithm, root).map(Contract::Vllm).map(Some)
    }

    fn check(self) -> Result<SourceEntry, ConfigError> {
        let name = &self.name;
        if self.hash_algorithm.is_none() && self.hash_seed.is_some() {
            let alone = "hash_seed says nothing without hash_algorithm (see also seeds)";
            return Err(ConfigError(format!("source {name:?}: {alone}")));
        }
        if let Err(error) = self.contract() {
            return Err(ConfigError(format!("source {name:?}, hash_algorithm: {error}")));
        }
        if self.mode == Mode::Connect && !self.endpoint.is_connectable() {
            return Err(ConfigError(format!(
                "source {name:?}: {} cannot be dialled; name host and port, or set mode = \"bind\"",
                self.endpoint
            )));
        }
        for (key, url, expected) in [
            ("metrics", &self.metrics, "http://host:port/metrics"),
            ("http", &self.http, "http://host:port"),
        ] {
            if let Some(url) = url.as_deref().filter(|url| !url.starts_with("http://")) {
                return Err(ConfigError(format!(
                    "source {name:?}, {key} {url:?}: expected {expected}"
                )));
            }
        }
        for endpoint in [Some(&self.endpoint), self.replay.as_ref()].into_iter().flatten() {
            let last = endpoint.for_rank(self.ranks.get() - 1);
            last.map_err(|error| ConfigError(format!("source {name:?}: {error}")))?;
        }
        Ok(self)
    }
}

/// Reads a `[[source]]` table, the `n`th of the file.
pub(super) fn from_table(table: Table, n: usize) -> Result<SourceEntry, ConfigError> {
    from_given(&entry::from_table(table)?, &format!("source {}", n + 1))
}

/// Reads `NAME=ENDPOINT[,KEY=VALUE]...`; `model` is the one of sources that name none.
pub(super) fn from_text(
    text: &str,
    model: Option<&str>,
    named: &str,
) -> Result<SourceEntry, ConfigError> {
    let given = entry::from_text(text, "endpoint", model).ok_or_else(|| {
        ConfigError(format!(
            "{named} {text:?}: expected NAME=tcp://host:port[,replay=tcp://host:port]"
        ))
    })?;
    from_given(&given, &format!("{named} {text:?}"))
}

fn from_given(given: &Given, named: &str) -> Result<SourceEntry, ConfigError> {
    let name = entry::required(given, "name", named)?;
    let mut source = SourceEntry::new(name, entry::required(given, "endpoint", named)?);
    entry::fill(&mut source, KEYS, given, named)?;
    source.check()
}
