//! Workers of engines that a name led to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use kvscout::block::WorkerId;
use parking_lot::Mutex;

use super::{Enrolment, Origin, Refusal, Service};
use crate::config::Config;
use crate::config::discover::DiscoverEntry;
use crate::config::source::SourceEntry;
use crate::intake::Feed;

/// What was seen behind a name, with the last answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sighting {
    /// Addresses in the answer.
    pub(crate) addresses: usize,
    /// Addresses that it left out and whose engines are still registered.
    pub(crate) missing: usize,
    /// Addresses beyond the most that may be.
    pub(crate) surplus: usize,
    /// Addresses whose engines could not be registered.
    pub(crate) refused: usize,
}

/// How looking at a name goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Discovery {
    /// What the last answer was, if there ever was one.
    pub(crate) last: Option<Sighting>,
    /// Looks with an answer.
    pub(crate) answered: u64,
    /// Looks without one.
    pub(crate) failed: u64,
}

/// Every name of the configuration.
#[derive(Debug)]
pub(super) struct Discoveries(Mutex<BTreeMap<String, Discovery>>);

impl Discoveries {
    pub(super) fn new(config: &Config) -> Discoveries {
        let names = config.discover.iter().map(|entry| (entry.name.clone(), Discovery::default()));
        Discoveries(Mutex::new(names.collect()))
    }
}

/// The name under which a discovery is pending.
pub(super) fn pending_name(entry: &DiscoverEntry) -> String {
    format!("discover {:?}", entry.name)
}

impl Service {
    /// Registers what is not registered yet of the engine at an address that the `n`th name led to.
    pub(crate) fn welcome(
        &self,
        n: usize,
        entry: &DiscoverEntry,
        address: IpAddr,
    ) -> Result<(), String> {
        let source = entry.source(address).map_err(|error| error.to_string())?;
        let enrolled = (0..source.ranks.get())
            .filter(|&rank| !self.is_discovered(&source, rank))
            .try_for_each(|rank| self.register(enrolment(&source, rank, Origin::Discovered(n))?));
        enrolled.map_err(Refusal::into_message)?;
        self.lends_its_tokenizer(&source, true);
        Ok(())
    }

    /// Unregisters the engine at an address, unless somebody else wants it, too.
    pub(crate) fn dismiss(&self, n: usize, entry: &DiscoverEntry, address: IpAddr) {
        let Ok(source) = entry.source(address) else { return };
        self.lends_its_tokenizer(&source, false);
        for rank in 0..source.ranks.get() {
            let Some(worker) = self.scout.find(&source.tenant, &source.name, rank) else {
                continue;
            };
            let feed = self.switchboard.feeds.lock().get(&worker).cloned();
            if matches!(feed, Some(Feed::Source { origin: Origin::Discovered(by), .. }) if by == n)
            {
                // One that was unregistered meanwhile is gone, too.
                let _ = self.unregister(&source.tenant, &source.name, Some(rank), None);
            }
        }
    }

    /// The addresses whose engines are registered because the `n`th name led to them.
    pub(crate) fn discovered(&self, n: usize) -> BTreeSet<IpAddr> {
        let feeds = self.switchboard.feeds.lock();
        let address = |feed: &Feed| match feed {
            Feed::Source { endpoint, origin: Origin::Discovered(by), .. } if *by == n => {
                address_of(&endpoint.to_string())
            }
            _ => None,
        };
        feeds.values().filter_map(address).collect()
    }

    /// The engines that are registered because a name led to them.
    pub(crate) fn discovered_sources(&self, config: &Config) -> Vec<SourceEntry> {
        let entries = config.discover.iter().enumerate();
        let sources = entries.flat_map(|(n, entry)| {
            let addresses = self.discovered(n).into_iter();
            addresses.filter_map(|address| entry.source(address).ok())
        });
        sources.collect()
    }

    /// Whether a worker is registered.
    pub(crate) fn is_fed(&self, worker: WorkerId) -> bool {
        self.switchboard.feeds.lock().contains_key(&worker)
    }

    /// Whether texts for its model may be tokenized by an engine.
    pub(super) fn lends_its_tokenizer(&self, source: &SourceEntry, is_there: bool) {
        if let Some(base) = &source.http {
            self.texts.set_engine(source.model.as_deref(), base, is_there);
        }
    }

    /// Notes what a look at a name brought, or why it brought nothing.
    pub(crate) fn saw(&self, entry: &DiscoverEntry, looked: Result<Sighting, String>) {
        let mut discoveries = self.discoveries.0.lock();
        let discovery = discoveries.entry(entry.name.clone()).or_default();
        match looked {
            Ok(sighting) => {
                discovery.last = Some(sighting);
                discovery.answered += 1;
                self.pending.lock().remove(&pending_name(entry));
            }
            Err(why) => {
                discovery.failed += 1;
                if discovery.last.is_none() {
                    self.pending.lock().insert(pending_name(entry), why);
                }
            }
        }
    }

    /// Whether a name has ever been answered for.
    pub(crate) fn has_answered(&self, entry: &DiscoverEntry) -> bool {
        self.discoveries.0.lock().get(&entry.name).is_some_and(|discovery| discovery.last.is_some())
    }

    /// How looking at each name goes.
    pub(crate) fn discoveries(&self) -> BTreeMap<String, Discovery> {
        self.discoveries.0.lock().clone()
    }

    fn is_discovered(&self, source: &SourceEntry, rank: u32) -> bool {
        let Some(worker) = self.scout.find(&source.tenant, &source.name, rank) else {
            return false;
        };
        let feeds = self.switchboard.feeds.lock();
        matches!(feeds.get(&worker), Some(Feed::Source { origin: Origin::Discovered(_), .. }))
    }
}

/// What a rank of a source is registered with.
pub(super) fn enrolment(
    source: &SourceEntry,
    rank: u32,
    origin: Origin,
) -> Result<Enrolment, kvscout::Error> {
    let replay = source.replay.as_ref().map(|replay| replay.for_rank(rank));
    Ok(Enrolment {
        registration: source.registration(rank),
        endpoint: source.endpoint.for_rank(rank)?,
        mode: source.mode,
        replay: replay.transpose()?,
        origin,
        labels: Some(source.labels.clone()),
    })
}

/// Which name leads to this pod at this endpoint, and the engine there.
pub(super) fn leading_to(
    config: &Config,
    tenant: &str,
    pod: &str,
    endpoint: &str,
) -> Option<(usize, SourceEntry)> {
    let address = address_of(endpoint)?;
    config.discover.iter().enumerate().find_map(|(n, entry)| {
        let source = entry.source(address).ok()?;
        ((source.tenant.as_str(), source.name.as_str()) == (tenant, pod)).then_some((n, source))
    })
}

/// The address in an endpoint `tcp://address:port`.
fn address_of(endpoint: &str) -> Option<IpAddr> {
    let address: SocketAddr = endpoint.strip_prefix("tcp://")?.parse().ok()?;
    Some(address.ip())
}
