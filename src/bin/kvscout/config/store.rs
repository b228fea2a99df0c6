//! A shared store: where it is, who this daemon is to it, and what it is used for.

use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use kvscout::index::redis::{RedisOptions, Secret, StoreAddress, StoreOptions};
use kvscout::ingest::snapshot::parse_secret;

use super::{Config, ConfigError};

/// Whose answers are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreMode {
    /// Those of this process's memory; a store is kept up behind it.
    Memory,
    /// Those of the store, which others keep up.
    Redis,
}

impl FromStr for StoreMode {
    type Err = ();

    fn from_str(text: &str) -> Result<StoreMode, ()> {
        match text {
            "memory" => Ok(StoreMode::Memory),
            "redis" => Ok(StoreMode::Redis),
            _ => Err(()),
        }
    }
}

impl fmt::Display for StoreMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreMode::Memory => "memory",
            StoreMode::Redis => "redis",
        })
    }
}

/// An address without a password, so that it may be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    text: String,
    parsed: StoreAddress,
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Address, ()> {
        let parsed: StoreAddress = text.parse().map_err(drop)?;
        match parsed.has_password() {
            true => Err(()),
            false => Ok(Address { text: text.to_owned(), parsed }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A store, and how it is used.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// Whose answers are given.
    pub(crate) mode: StoreMode,
    /// Where it is; without one there is none.
    pub(crate) address: Option<Address>,
    /// What keys begin with, among others.
    pub(crate) namespace: String,
    /// A file with the secret, if that shall not lie in the store.
    pub(crate) secret_file: Option<String>,
    /// A file with the password.
    pub(crate) password_file: Option<String>,
    /// The environment variable with it.
    pub(crate) password_env: Option<String>,
    /// A file with the password of sentinels.
    pub(crate) sentinel_password_file: Option<String>,
    /// Certificates to trust instead of the system's.
    pub(crate) tls_ca: Option<String>,
    /// This client's certificate.
    pub(crate) tls_cert: Option<String>,
    /// Its key.
    pub(crate) tls_key: Option<String>,
    /// How long one lookup waits.
    pub(crate) read_deadline: Duration,
    /// How long an answer waits in all.
    pub(crate) answer_deadline: Duration,
    /// How long one change waits.
    pub(crate) write_deadline: Duration,
    /// How long one attempt to connect may take.
    pub(crate) connect_deadline: Duration,
    /// Calls that wait at once.
    pub(crate) in_flight: NonZeroUsize,
    /// How long what is there lasts without a refresh.
    pub(crate) ttl: Duration,
    /// How long a writer has a worker for itself.
    pub(crate) lease: Duration,
    /// How long a writer counts as alive.
    pub(crate) owner_ttl: Duration,
    /// What may wait for the store, in bytes.
    pub(crate) max_queue: usize,
    /// How long a start waits for the store.
    pub(crate) wait: Duration,
    /// How often a reader asks which workers there are.
    pub(crate) refresh: Duration,
}

impl Default for Store {
    fn default() -> Store {
        let (link, options) = (StoreOptions::default(), RedisOptions::default());
        Store {
            mode: StoreMode::Memory,
            address: None,
            namespace: options.namespace,
            secret_file: None,
            password_file: None,
            password_env: None,
            sentinel_password_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            read_deadline: link.read_deadline,
            // Two round trips.
            answer_deadline: link.read_deadline * 2,
            write_deadline: link.write_deadline,
            connect_deadline: link.connect_deadline,
            // A zero would not compile.
            in_flight: const { NonZeroUsize::new(256).unwrap() },
            ttl: options.ttl,
            lease: options.lease,
            owner_ttl: options.owner_ttl,
            // Minutes of a large fleet's events.
            max_queue: 64 << 20,
            // A server that is there answers within milliseconds.
            wait: Duration::from_secs(5),
            refresh: Duration::from_millis(500),
        }
    }
}

impl Store {
    /// Whether answers come from a store.
    pub(crate) fn is_reader(&self) -> bool {
        self.mode == StoreMode::Redis
    }

    /// The store's address, if there is one.
    pub(crate) fn place(&self) -> Option<StoreAddress> {
        self.address.as_ref().map(|address| address.parsed.clone())
    }

    /// How it is reached.
    pub(crate) fn link(&self) -> StoreOptions {
        let password = self.password_file.as_ref().map(Secret::file);
        StoreOptions {
            password: password.or(self.password_env.as_deref().map(Secret::variable)),
            sentinel_password: self.sentinel_password_file.as_ref().map(Secret::file),
            tls_ca: self.tls_ca.as_ref().map(PathBuf::from),
            tls_client: self
                .tls_cert
                .as_ref()
                .zip(self.tls_key.as_ref())
                .map(|(c, k)| (PathBuf::from(c), PathBuf::from(k))),
            read_deadline: self.read_deadline,
            write_deadline: self.write_deadline,
            connect_deadline: self.connect_deadline,
            in_flight: self.in_flight.get(),
            ..StoreOptions::default()
        }
    }

    /// What is in it.
    pub(crate) fn options(&self) -> RedisOptions {
        RedisOptions {
            namespace: self.namespace.clone(),
            ttl: self.ttl,
            lease: self.lease,
            owner_ttl: self.owner_ttl,
            ..RedisOptions::default()
        }
    }

    /// What digests are made under, if a file says so and not the store.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has something else in it.
    pub(crate) fn secret(&self) -> Result<Option<[u8; 32]>, ConfigError> {
        let Some(path) = &self.secret_file else { return Ok(None) };
        let wrong = |what: &str| ConfigError(format!("store.secret_file {path}: {what}"));
        let text = fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
        parse_secret(&text).map(Some).ok_or_else(|| wrong("expected 64 hex digits"))
    }

    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let wrong = |message: String| Err(ConfigError(message));
        if self.password_file.is_some() && self.password_env.is_some() {
            return wrong(
                "store.password_file and store.password_env are both set: give one".into(),
            );
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return wrong("store.tls_cert and store.tls_key go together: give both or none".into());
        }
        for (key, value, least) in [
            ("store.ttl", self.ttl, Duration::from_secs(60)),
            ("store.lease", self.lease, Duration::from_millis(500)),
            ("store.owner_ttl", self.owner_ttl, Duration::from_secs(1)),
            ("store.refresh", self.refresh, Duration::from_millis(10)),
            ("store.answer_deadline", self.answer_deadline, Duration::from_millis(1)),
        ] {
            if value < least {
                return wrong(format!("{key} {value:?}: expected at least {least:?}"));
            }
        }
        if !self.is_reader() {
            return Ok(());
        }
        if self.address.is_none() {
            return wrong("store.mode \"redis\" answers from a store: set store.address".into());
        }
        let has = [
            ("a source", !config.sources.is_empty()),
            ("trust_topics", config.trust_topics),
            ("state.dir", config.state.dir.is_some()),
        ];
        match has.into_iter().find(|(_, has)| *has) {
            Some((what, _)) => wrong(format!(
                "store.mode \"redis\" answers from the store and follows no engine: {what} belongs to a kvscout of \
                 mode \"memory\""
            )),
            None => Ok(()),
        }
    }
}
