//! Engines behind a name: its addresses are looked at again and again, who is new there is registered, and who is
//! missing for long enough is not any more.
//!
//! Only an answer takes anything away. A resolver that fails, or is gone, changes nothing.

mod lookup;
mod members;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::lookup::{Found, Looked, Lookup};
use self::members::Members;
use crate::config::Config;
use crate::config::discover::DiscoverEntry;
use crate::service::{Service, Sighting};

/// How long a look may take, with every name of the search list and every name server in it.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// How long an answer is taken for good at most, whatever its time to live.
const TTL_LIMIT: Duration = Duration::from_secs(60);

/// Follows every name of the configuration for as long as `tasks` live, once each configured source was to be added: a pod
/// that both lead to is the source's.
pub(crate) fn start(
    service: &Arc<Service>,
    config: &Config,
    tried: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) {
    for (n, entry) in config.discover.iter().enumerate() {
        let known = service.discovered(n);
        let members = Members::new(entry.grace, entry.most.get(), known, Instant::now());
        let (service, entry, mut tried) = (Arc::clone(service), entry.clone(), tried.clone());
        tasks.spawn(async move {
            // Nobody tries any more where the daemon ends.
            if tried.wait_for(|tried| *tried).await.is_ok() {
                follow(service, n, entry, members).await;
            }
        });
    }
}

async fn follow(service: Arc<Service>, n: usize, entry: DiscoverEntry, members: Members) {
    let mut lookup = Lookup::new(&entry);
    let mut follower = Follower { n, entry: Arc::new(entry), members, told: None };
    loop {
        let known = follower.members.addresses();
        let looked = timeout(LOOK_LIMIT, lookup.look(&known)).await;
        let looked =
            looked.unwrap_or_else(|_| Looked::Failed(format!("no answer within {LOOK_LIMIT:?}")));
        let ttl = match &looked {
            Looked::Found(Found { ttl, .. }) => (*ttl).min(TTL_LIMIT),
            _ => Duration::ZERO,
        };
        let every = follower.entry.every;
        let service = Arc::clone(&service);
        let taken = spawn_blocking(move || {
            follower.take(&service, looked);
            follower
        });
        match taken.await {
            Ok(back) => follower = back,
            // The runtime ends.
            Err(_) => return,
        }
        sleep(every.max(ttl)).await;
    }
}

/// What one name has led to so far.
#[derive(Debug)]
struct Follower {
    n: usize,
    entry: Arc<DiscoverEntry>,
    members: Members,
    /// What was last complained of, so that it is said once.
    told: Option<String>,
}

impl Follower {
    fn take(&mut self, service: &Service, looked: Looked) {
        let addresses = match looked {
            Looked::Found(found) => found.addresses,
            Looked::Nothing => BTreeSet::new(),
            Looked::NoSuchName(_) if service.has_answered(&self.entry) => BTreeSet::new(),
            // A name that was never there is more likely misspelt than without engines.
            Looked::NoSuchName(why) | Looked::Failed(why) => {
                self.complain(Some(why.clone()));
                service.saw(&self.entry, Err(why));
                return;
            }
        };
        let change = self.members.take(&addresses, Instant::now());
        for address in &change.gone {
            info!(discover = self.entry.name, %address, "not there any more");
            service.dismiss(self.n, &self.entry, *address);
        }
        let refused = self.welcome(service, &change.present);
        let sighting = Sighting {
            addresses: addresses.len(),
            missing: self.members.missing(),
            surplus: change.surplus,
            refused: refused.len(),
        };
        let most = self.entry.most;
        let surplus = (change.surplus > 0)
            .then(|| format!("{} addresses are beyond the {most} that may be", change.surplus));
        let empty = addresses.is_empty().then(|| format!("{} has no address", self.entry.dns.host));
        let wrong: Vec<String> = refused.into_iter().chain(surplus).chain(empty).collect();
        self.complain((!wrong.is_empty()).then(|| wrong.join("; ")));
        service.saw(&self.entry, Ok(sighting));
    }

    /// Registers the engines at these addresses; what was wrong with those that could not be.
    fn welcome(&self, service: &Service, present: &[IpAddr]) -> Vec<String> {
        let refused = present.iter().filter_map(|&address| {
            let why = service.welcome(self.n, &self.entry, address).err()?;
            Some(format!("{address}: {why}"))
        });
        refused.collect()
    }

    fn complain(&mut self, wrong: Option<String>) {
        if self.told == wrong {
            return;
        }
        match &wrong {
            Some(why) => warn!(discover = self.entry.name, why, "discovery"),
            None => info!(discover = self.entry.name, "discovery is in order"),
        }
        self.told = wrong;
    }
}
