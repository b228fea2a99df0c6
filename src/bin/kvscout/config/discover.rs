//! `[[discover]]`: a name behind whose addresses are engines, which come and go.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::str::FromStr;
use std::time::Duration;

use kvscout::Error;
use kvscout::block::BlockSize;
use kvscout::hash::vllm::Version;
use kvscout::ingest::zmq::Endpoint;
use kvscout::scout::{Copies, OnClear, Registration};
use toml::Table;

use super::ConfigError;
use super::entry::{self, Given};
use super::setting::{Key, Setting, assign, keys};
use super::source::SourceEntry;
use crate::service::Labels;

/// The shortest time from one look to the next: more often would only burden the name server.
const EVERY_MIN: Duration = Duration::from_millis(100);

/// One name, and what is true of every engine behind it.
#[derive(Clone, Debug)]
pub(crate) struct DiscoverEntry {
    /// What `/ready`, metrics and logs call it.
    pub(crate) name: String,
    /// The name that is resolved, and the port where rank 0 of each engine publishes.
    pub(crate) dns: DnsAddress,
    /// Which addresses count.
    pub(crate) family: Family,
    /// Who is asked; absent, whom `/etc/resolv.conf` names.
    pub(crate) nameserver: Option<SocketAddr>,
    /// From one look to the next, unless the answer holds for longer.
    pub(crate) every: Duration,
    /// How long an address may be missing before its engine is unregistered.
    pub(crate) grace: Duration,
    /// How many engines it may lead to.
    pub(crate) most: NonZeroUsize,
    /// The port in the pods' names; absent, a pod is called as its address.
    pub(crate) pod_port: Option<NonZeroU16>,
    /// Where rank 0 of each engine answers questions for past batches.
    pub(crate) replay: Option<NonZeroU16>,
    /// Where the HTTP API of each engine is, its metrics among it.
    pub(crate) http: Option<NonZeroU16>,
    /// The model that they serve; absent, they answer for any model.
    pub(crate) model: Option<String>,
    /// The tenant.
    pub(crate) tenant: String,
    /// Number of data-parallel ranks of each.
    pub(crate) ranks: NonZeroU32,
    /// The engines' version.
    pub(crate) vllm: Option<Version>,
    /// The block size the operator expects.
    pub(crate) block_size: Option<BlockSize>,
    /// What their clears take away.
    pub(crate) on_clear: OnClear,
    /// What their repeated stores mean.
    pub(crate) copies: Copies,
    /// What routers tell them apart by from others.
    pub(crate) labels: Labels,
}

/// Every key of a `[[discover]]`.
pub(crate) const KEYS: &[Key<DiscoverEntry>] = keys! { DiscoverEntry {
    "name" => name;
    "dns" => dns;
    "family" => family;
    "nameserver" => nameserver;
    "every" => every;
    "grace" => grace;
    "most" => most;
    "pod_port" => pod_port;
    "replay" => replay;
    "http" => http;
    "model" => model;
    "tenant" => tenant;
    "ranks" => ranks;
    "vllm" => vllm;
    "block_size" => block_size;
    "on_clear" => on_clear;
    "copies" => copies;
    "labels" => labels;
}};

impl DiscoverEntry {
    fn new(name: String, dns: DnsAddress) -> DiscoverEntry {
        DiscoverEntry {
            name,
            dns,
            family: Family::Auto,
            nameserver: None,
            every: Duration::from_secs(5),
            grace: Duration::from_secs(30),
            // Far more than a service has engines. A zero would not compile.
            most: const { NonZeroUsize::new(1024).unwrap() },
            pod_port: None,
            replay: None,
            http: None,
            model: None,
            tenant: Registration::DEFAULT_TENANT.to_owned(),
            ranks: NonZeroU32::MIN,
            vllm: None,
            block_size: None,
            on_clear: OnClear::default(),
            copies: Copies::default(),
            labels: Labels::new(),
        }
    }

    /// The engine at an address.
    ///
    /// # Errors
    ///
    /// None for an entry that was checked: whether a port is one does not depend on the address.
    pub(crate) fn source(&self, address: IpAddr) -> Result<SourceEntry, Error> {
        let at =
            |port: u16| format!("tcp://{}", SocketAddr::new(address, port)).parse::<Endpoint>();
        let http = self.http.map(|port| format!("http://{}", SocketAddr::new(address, port.get())));
        let name = match self.pod_port {
            Some(port) => SocketAddr::new(address, port.get()).to_string(),
            None => address.to_string(),
        };
        Ok(SourceEntry {
            replay: self.replay.map(|port| at(port.get())).transpose()?,
            metrics: http.as_ref().map(|base| format!("{base}/metrics")),
            http,
            model: self.model.clone(),
            tenant: self.tenant.clone(),
            ranks: self.ranks,
            vllm: self.vllm,
            block_size: self.block_size,
            on_clear: self.on_clear,
            copies: self.copies,
            labels: self.labels.clone(),
            ..SourceEntry::new(name, at(self.dns.port.get())?)
        })
    }

    fn check(self) -> Result<DiscoverEntry, ConfigError> {
        let name = &self.name;
        if self.every < EVERY_MIN {
            return Err(ConfigError(format!(
                "discover {name:?}, every {:?}: asks a name server without rest; at least {EVERY_MIN:?}",
                self.every
            )));
        }
        for port in [Some(self.dns.port), self.replay].into_iter().flatten() {
            let last = u64::from(port.get()) + u64::from(self.ranks.get()) - 1;
            if last > u64::from(u16::MAX) {
                return Err(ConfigError(format!(
                    "discover {name:?}: rank {} would need port {last}; ports end at 65535",
                    self.ranks.get() - 1
                )));
            }
        }
        Ok(self)
    }
}

/// Reads a `[[discover]]` table, the `n`th of the file.
pub(super) fn from_table(table: Table, n: usize) -> Result<DiscoverEntry, ConfigError> {
    from_given(&entry::from_table(table)?, &format!("discover {}", n + 1))
}

/// Reads `NAME=HOST:PORT[,KEY=VALUE]...`; `model` is the one of those that name none.
pub(super) fn from_text(
    text: &str,
    model: Option<&str>,
    named: &str,
) -> Result<DiscoverEntry, ConfigError> {
    let given = entry::from_text(text, "dns", model).ok_or_else(|| {
        ConfigError(format!("{named} {text:?}: expected NAME=host:port[,replay=port]"))
    })?;
    from_given(&given, &format!("{named} {text:?}"))
}

fn from_given(given: &Given, named: &str) -> Result<DiscoverEntry, ConfigError> {
    let name = entry::required(given, "name", named)?;
    let mut discover = DiscoverEntry::new(name, entry::required(given, "dns", named)?);
    entry::fill(&mut discover, KEYS, given, named)?;
    discover.check()
}

/// A name that is resolved, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsAddress {
    /// The name: letters, digits, `-`, `_` and dots. Ends with a dot if it is complete as it is.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: NonZeroU16,
}

impl FromStr for DnsAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<DnsAddress, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let is_label = |label: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            (1..=63).contains(&label.len()) && label.bytes().all(known)
        };
        let labels = host.strip_suffix('.').unwrap_or(host);
        // An address is a source, which neither comes nor goes.
        if host.len() > 253 || !labels.split('.').all(is_label) || host.parse::<IpAddr>().is_ok() {
            return Err(());
        }
        Ok(DnsAddress { host: host.to_owned(), port: port.parse().map_err(drop)? })
    }
}

impl fmt::Display for DnsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Which addresses of a name count. Where each engine has one of either family, only one may: it would be two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4 where there are such, else IPv6.
    Auto,
    /// A records.
    Ipv4,
    /// AAAA records.
    Ipv6,
    /// Both.
    Both,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Auto => "auto",
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
            Family::Both => "both",
        })
    }
}

impl FromStr for Family {
    type Err = ();

    fn from_str(text: &str) -> Result<Family, ()> {
        match text {
            "auto" => Ok(Family::Auto),
            "ipv4" => Ok(Family::Ipv4),
            "ipv6" => Ok(Family::Ipv6),
            "both" => Ok(Family::Both),
            _ => Err(()),
        }
    }
}
