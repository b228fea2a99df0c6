//! What of the configuration takes its time: sources are added, and a shared endpoint is bound, again and again
//! until all are there; until then each says why it is not.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use kvscout::ingest::zmq::{Endpoint, Mode, Source};
use tracing::info;

use super::discovered::{self, enrolment};
use super::{Origin, Refusal, Service};
use crate::config::Config;
use crate::config::source::SourceEntry;
use crate::intake::Route;

/// The name under which the shared endpoint is pending.
const TOPIC_ENDPOINT: &str = "topic_bind";

/// The name under which a source is.
fn source_name(entry: &SourceEntry) -> String {
    format!("source {:?}", entry.name)
}

/// Everything that is to come, with the reason why it is not there.
pub(super) fn at_first(config: &Config) -> BTreeMap<String, String> {
    let sources = config.sources.iter().map(|entry| (source_name(entry), "not added yet"));
    let names = config.discover.iter();
    let names = names.map(|entry| (discovered::pending_name(entry), "not resolved yet"));
    let topics = config.trust_topics.then(|| (TOPIC_ENDPOINT.to_owned(), "not bound yet"));
    let all = sources.chain(names).chain(topics);
    all.map(|(name, reason)| (name, reason.to_owned())).collect()
}

impl Service {
    /// What of the configuration is not there yet, with the reason.
    pub(crate) fn pending(&self) -> BTreeMap<String, String> {
        self.pending.lock().clone()
    }

    /// Adds every configured source that is not there yet; whether all are.
    pub(crate) fn add_configured(&self, config: &Config) -> bool {
        for entry in &config.sources {
            let added = (0..NonZeroU32::get(entry.ranks))
                .try_for_each(|rank| self.register(enrolment(entry, rank, Origin::Configured)?));
            self.note(&source_name(entry), added);
        }
        let unbound = self.pending.lock().contains_key(TOPIC_ENDPOINT);
        if let (true, Some(bind)) = (unbound, &config.topic_bind) {
            self.note(TOPIC_ENDPOINT, self.bind_topics(bind, &config.topic_tenant));
        }
        self.pending.lock().is_empty()
    }

    fn note(&self, name: &str, added: Result<(), Refusal>) {
        let mut pending = self.pending.lock();
        match added {
            Ok(()) => pending.remove(name),
            Err(refusal) => pending.insert(name.to_owned(), refusal.into_message()),
        };
    }

    fn bind_topics(&self, bind: &Endpoint, tenant: &str) -> Result<(), Refusal> {
        let source = self.new_source();
        let route = Route::Topics { tenant: tenant.into() };
        self.switchboard.routes.write().insert(source, route);
        match self.receiver.add(source, Source::new(bind.clone(), Mode::BindShared)) {
            Ok(bound) => {
                info!(endpoint = %bound, "telling pods apart by their topics");
                Ok(())
            }
            Err(error) => {
                self.switchboard.routes.write().remove(&source);
                Err(error.into())
            }
        }
    }
}
