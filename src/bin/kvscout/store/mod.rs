//! The store that this daemon shares with others: behind its memory, or in its place.

mod behind;
mod counts;
mod instead;

use std::sync::Arc;
use std::time::Duration;

use kvscout::index::redis::{RedisIndex, RedisOptions, StoreCounters, WarningKind};
use kvscout::ingest::snapshot::StateDirectory;
use tracing::warn;

pub(crate) use self::behind::{Behind, BehindReport, start};
pub(crate) use self::counts::encode;
pub(crate) use self::instead::Instead;
use crate::Failure;
use crate::config::Config;

/// Different reasons that are told in one outage.
const MOST_REASONS: usize = 8;

/// Why the store cannot be used, as far as it was told: the first reason is often only that nothing is connected yet,
/// and what an operator has to mend comes behind.
#[derive(Debug, Default)]
struct Told(Vec<String>);

impl Told {
    /// Whether this reason was not told yet.
    fn is_new(&mut self, reason: &str) -> bool {
        let is_new = self.0.len() < MOST_REASONS && !self.0.iter().any(|told| told == reason);
        if is_new {
            self.0.push(reason.to_owned());
        }
        is_new
    }

    /// All is well; whether something was told before.
    fn is_over(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
    }
}

/// What the store is to this daemon.
#[derive(Debug)]
pub(crate) enum Shared {
    /// It keeps what memory holds, for others and for the next start.
    Behind(Behind),
    /// It answers.
    Instead(Arc<Instead>),
}

/// What there is to count.
#[derive(Clone, Debug)]
pub(crate) struct SharedReport {
    /// The way to the store.
    pub(crate) link: StoreCounters,
    /// What is kept there, if this daemon does that.
    pub(crate) behind: Option<BehindReport>,
    /// How long ago a reader asked who there is.
    pub(crate) workers_age: Option<Duration>,
}

impl Shared {
    /// The configured store, if there is one; what it keeps is under the secret of the state directory, where that
    /// knows one. Inside a runtime's context, outside of its tasks.
    ///
    /// # Errors
    ///
    /// An option or a file is wrong.
    pub(crate) fn open(
        config: &Config,
        state: Option<&StateDirectory>,
    ) -> Result<Option<Shared>, Failure> {
        match config.store.is_reader() {
            true => Ok(Instead::open(config)?.map(|instead| Shared::Instead(Arc::new(instead)))),
            false => Ok(Behind::open(config, state)?.map(Shared::Behind)),
        }
    }

    /// The store behind memory, if that is what it is.
    pub(crate) fn behind(&self) -> Option<&Behind> {
        match self {
            Shared::Behind(behind) => Some(behind),
            Shared::Instead(_) => None,
        }
    }

    /// The store in memory's place, if that is what it is.
    pub(crate) fn instead(&self) -> Option<&Arc<Instead>> {
        match self {
            Shared::Instead(instead) => Some(instead),
            Shared::Behind(_) => None,
        }
    }

    /// What there is to count.
    pub(crate) fn report(&self) -> SharedReport {
        match self {
            Shared::Behind(behind) => SharedReport {
                link: behind.index().counters(),
                behind: Some(behind.report()),
                workers_age: None,
            },
            Shared::Instead(instead) => SharedReport {
                link: instead.index().counters(),
                behind: None,
                workers_age: instead.age(),
            },
        }
    }
}

/// Opens the configured store, which need not be there.
fn open(
    config: &Config,
    of: impl FnOnce(&mut RedisOptions),
) -> Result<Option<RedisIndex>, Failure> {
    let Some(address) = config.store.place() else { return Ok(None) };
    let mut options = config.store.options();
    options.secret = config.store.secret()?;
    of(&mut options);
    Ok(Some(RedisIndex::open(address, config.store.link(), options)?))
}

/// Says what about the store will bite later. Who only reads needs no permission to change anything.
async fn warn_of(index: &RedisIndex, only_reads: bool) {
    for warning in index.check().await {
        if !(only_reads && warning.kind == WarningKind::Permission) {
            warn!(server = %warning.server, "store: {}", warning.text);
        }
    }
}
