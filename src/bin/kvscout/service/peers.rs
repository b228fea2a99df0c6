//! Replicas as Dynamo's clients list them. As there, only those that were configured are ever asked, and only
//! at the start: a new replica begins with the snapshot of one in `state.from`, and hears the engines itself.

use std::collections::BTreeSet;

use super::{Refusal, Service};

/// How many replicas are kept: those of a large deployment many times over.
const MOST: usize = 256;

/// How long an address may be.
const LONGEST: usize = 2048;

impl Service {
    /// Adds a replica; doing so again changes nothing.
    pub(crate) fn add_peer(&self, url: String) -> Result<(), Refusal> {
        if url.len() > LONGEST {
            return Err(Refusal::Invalid(format!("the url is longer than {LONGEST} bytes")));
        }
        let mut peers = self.peers.lock();
        if peers.len() >= MOST && !peers.contains(&url) {
            return Err(Refusal::Unavailable(format!("there are {MOST} peers already")));
        }
        peers.insert(url);
        Ok(())
    }

    /// Takes a replica away.
    pub(crate) fn remove_peer(&self, url: &str) -> Result<(), Refusal> {
        match self.peers.lock().remove(url) {
            true => Ok(()),
            false => Err(Refusal::UnknownPeer("no such peer".to_owned())),
        }
    }

    /// All replicas.
    pub(crate) fn peers(&self) -> BTreeSet<String> {
        self.peers.lock().clone()
    }
}
