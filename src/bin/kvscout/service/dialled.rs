//! What is dialled for a worker, and where a name has moved to.

use kvscout::ingest::zmq::{Endpoint, Mode, Source, SourceId};
use tracing::{info, warn};

use super::{Enrolment, Origin, Refusal, Service};
use crate::dial::Undialled;
use crate::intake::{Feed, Route};

/// The endpoints of an enrolment as they are dialled.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) endpoint: Endpoint,
    pub(super) replay: Option<Endpoint>,
}

impl From<Undialled> for Refusal {
    fn from(undialled: Undialled) -> Refusal {
        match undialled {
            Undialled::Refused(message) => Refusal::NotAllowed(message),
            Undialled::Unresolved(message) => Refusal::Unavailable(message),
            Undialled::Busy(message) => Refusal::Busy(message),
        }
    }
}

impl Service {
    /// What is dialled for an enrolment: what the configuration says, as it says it; what a request or a name server says, if
    /// that may be.
    pub(super) fn dialled(&self, enrolment: &Enrolment) -> Result<Dialled, Refusal> {
        let Enrolment { endpoint, replay, origin, .. } = enrolment;
        Ok(match origin {
            Origin::Configured => Dialled { endpoint: endpoint.clone(), replay: replay.clone() },
            Origin::Requested | Origin::Discovered(_) => Dialled {
                endpoint: self.dial.address_of(endpoint)?,
                replay: replay.as_ref().map(|replay| self.dial.address_of(replay)).transpose()?,
            },
        })
    }

    /// Dials workers elsewhere whose link is down and whose name has another address now, and those of a snapshot whose name
    /// had none. Waits for name servers.
    pub(crate) fn follow_names(&self) {
        self.dial_unresolved();
        let feeds: Vec<Feed> = self.switchboard.feeds.lock().values().cloned().collect();
        for feed in feeds {
            let Feed::Source { source, endpoint, dialled, replay, origin, .. } = feed else {
                continue;
            };
            let is_up = || self.receiver.status_of(source).is_none_or(|status| status.up);
            if origin != Origin::Requested || is_up() {
                continue;
            }
            if let Some(next) = self.dial.moved(&endpoint, &dialled) {
                let past = replay.as_ref().and_then(|replay| self.dial.address_of(replay).ok());
                self.dial_elsewhere(source, &dialled, next, past);
            }
        }
    }

    /// The link is down, and stays so for its worker until the other address answers.
    fn dial_elsewhere(
        &self,
        source: SourceId,
        before: &Endpoint,
        next: Endpoint,
        past: Option<Endpoint>,
    ) {
        let _one_at_a_time = self.enrolling.lock();
        let mut departed = self.departed.lock();
        let mut feeds = self.switchboard.feeds.lock();
        let place = feeds.values_mut().find_map(|feed| match feed {
            Feed::Source { source: its, dialled, .. } if *its == source => Some(dialled),
            _ => None,
        });
        // It may be gone by now, or have moved.
        let Some(dialled) = place.filter(|dialled| *dialled == before) else { return };
        *dialled = next.clone();
        drop(feeds);
        if let Some(status) = self.receiver.status_of(source) {
            departed.add_source(&status);
        }
        self.receiver.remove(source);
        if let Some(Route::Worker { replay, .. }) = self.switchboard.routes.write().get_mut(&source)
            && replay.is_some()
        {
            *replay = past.map(std::sync::Arc::new).or(replay.take());
        }
        info!(%source, %before, now = %next, "the name stands for another address");
        if let Err(error) = self.receiver.add(source, Source::new(next, Mode::Connect)) {
            warn!(%source, %error, "cannot be dialled any more");
        }
    }
}
