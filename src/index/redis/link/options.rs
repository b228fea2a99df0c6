//! How long a call may take, how many may run, and who the client is.

use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use crate::error::Error;

/// How a store is used.
///
/// # Defaults
///
/// `read_deadline`: 50 ms, far above a lookup in the same data centre and below what a request can
/// wait for. `write_deadline`: 500 ms; nobody waits for a write. `connect_deadline`: 2 s for name
/// lookup, TLS and login together. `in_flight`: 256. `late_limit`: 3, so that one hiccup costs
/// nothing and a dead connection costs three deadlines. `retry_min`, `retry_max`: 50 ms to 5 s.
/// `health_interval`: 2 s. No password, and the system's certificates for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// The password, unless the address has one.
    pub password: Option<Secret>,
    /// The password of the sentinels themselves, where they have one.
    pub sentinel_password: Option<Secret>,
    /// A PEM file with the certificates to trust instead of the system's.
    pub tls_ca: Option<PathBuf>,
    /// PEM files with this client's certificate and key, for servers that ask for one.
    pub tls_client: Option<(PathBuf, PathBuf)>,
    /// How long a lookup waits for the store.
    pub read_deadline: Duration,
    /// How long a change waits for the store.
    pub write_deadline: Duration,
    /// How long one attempt to connect and log in may take.
    pub connect_deadline: Duration,
    /// How many calls may wait for replies at once; further ones are refused.
    pub in_flight: usize,
    /// After how many late replies in a row a connection is given up.
    pub late_limit: u32,
    /// The pause before the second attempt to connect; each further one doubles it.
    pub retry_min: Duration,
    /// The longest pause between attempts to connect.
    pub retry_max: Duration,
    /// How often an idle connection is tried, sentinels are asked for the master, and a cluster for
    /// its slots.
    pub health_interval: Duration,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            password: None,
            sentinel_password: None,
            tls_ca: None,
            tls_client: None,
            read_deadline: Duration::from_millis(50),
            write_deadline: Duration::from_millis(500),
            connect_deadline: Duration::from_secs(2),
            in_flight: 256,
            late_limit: 3,
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(5),
            health_interval: Duration::from_secs(2),
        }
    }
}

impl StoreOptions {
    /// The options, if they can be used.
    pub(super) fn checked(self) -> Result<StoreOptions, Error> {
        let positive = [
            ("read_deadline", self.read_deadline),
            ("write_deadline", self.write_deadline),
            ("connect_deadline", self.connect_deadline),
            ("retry_min", self.retry_min),
            ("health_interval", self.health_interval),
        ];
        for (name, value) in positive {
            if value.is_zero() || value > Duration::from_secs(3600) {
                return Err(Error::invalid(format!(
                    "the store's {name} is {value:?}, not above 0 and at most an hour"
                )));
            }
        }
        if self.retry_max < self.retry_min || self.retry_max > Duration::from_secs(3600) {
            return Err(Error::invalid(format!(
                "the store's retry_max is {:?}, not between retry_min ({:?}) and an hour",
                self.retry_max, self.retry_min
            )));
        }
        if self.in_flight == 0 || self.in_flight > 1 << 20 {
            return Err(Error::invalid(format!(
                "the store's in_flight is {}, not 1 to {}",
                self.in_flight,
                1 << 20
            )));
        }
        if self.late_limit == 0 {
            return Err(Error::invalid("the store's late_limit is 0, not at least 1"));
        }
        Ok(self)
    }
}
