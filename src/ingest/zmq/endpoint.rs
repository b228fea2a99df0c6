//! Where a publisher listens, or where publishers find us.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::Error;

/// The path of a Unix socket must fit `sockaddr_un` with its closing zero.
const IPC_PATH_MAX: usize = 107;

/// A ZeroMQ endpoint, checked: `tcp://host:port`, `tcp://[v6]:port` or `ipc://path`.
///
/// The host is a name, an address, or `*` (every interface; only to bind). The port is 1 to 65535,
/// or `*` (any free one; only to bind). Names are resolved anew by each connection attempt, so a
/// name that does not resolve yet is no error.
///
/// ```
/// use kvscout::ingest::zmq::Endpoint;
///
/// let rank0: Endpoint = "tcp://pod-7:5557".parse()?;
/// assert_eq!(rank0.for_rank(2)?.to_string(), "tcp://pod-7:5559");
/// assert!("tcp://pod-7".parse::<Endpoint>().is_err());
/// # Ok::<(), kvscout::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(Address);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Address {
    /// The host keeps its brackets; no port stands for "any free one".
    Tcp {
        host: Box<str>,
        port: Option<u16>,
    },
    Ipc {
        path: Box<str>,
    },
}

impl Endpoint {
    /// The endpoint of data-parallel rank `rank` of an engine whose rank 0 has this endpoint.
    ///
    /// vLLM adds the rank to the port (`offset_endpoint_port`, 0.10 and later).
    ///
    /// # Errors
    ///
    /// `InvalidInput` when the port would exceed 65535, when the port is `*`, or for an `ipc`
    /// endpoint and a rank above 0, which vLLM refuses as well.
    pub fn for_rank(&self, rank: u32) -> Result<Endpoint, Error> {
        if rank == 0 {
            return Ok(self.clone());
        }
        match &self.0 {
            Address::Tcp { host, port: Some(port) } => {
                let offset = u16::try_from(rank).ok().and_then(|rank| port.checked_add(rank));
                let port = offset.ok_or_else(|| {
                    Error::invalid(format!(
                        "rank {rank} of {self} would need port {}; ports end at 65535",
                        u64::from(*port) + u64::from(rank)
                    ))
                })?;
                Ok(Endpoint(Address::Tcp { host: host.clone(), port: Some(port) }))
            }
            Address::Tcp { port: None, .. } => Err(Error::invalid(format!(
                "{self} has no port to add rank {rank} to; write the port of rank 0"
            ))),
            Address::Ipc { .. } => Err(Error::invalid(format!(
                "rank {rank} of {self} has no endpoint: engines offset ports, not paths; use tcp"
            ))),
        }
    }

    /// This endpoint on the port of `bound`, which the system chose for it.
    pub(super) fn on_port_of(&self, bound: &Endpoint) -> Endpoint {
        match (&self.0, &bound.0) {
            (Address::Tcp { host, port: None }, Address::Tcp { port, .. }) => {
                Endpoint(Address::Tcp { host: host.clone(), port: *port })
            }
            _ => self.clone(),
        }
    }

    /// Whether one can connect to it: neither host nor port is `*`.
    pub fn is_connectable(&self) -> bool {
        match &self.0 {
            Address::Tcp { host, port } => &**host != "*" && port.is_some(),
            Address::Ipc { .. } => true,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Address::Tcp { host, port: Some(port) } => write!(f, "tcp://{host}:{port}"),
            Address::Tcp { host, port: None } => write!(f, "tcp://{host}:*"),
            Address::Ipc { path } => write!(f, "ipc://{path}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    /// # Errors
    ///
    /// `InvalidInput`, naming the value and what would be right.
    fn from_str(text: &str) -> Result<Endpoint, Error> {
        let wrong = |why: &str| Error::invalid(format!("endpoint {text:?}: {why}"));
        match text.split_once("://") {
            Some(("tcp", address)) => tcp(address).map_err(wrong),
            Some(("ipc", path)) => ipc(path).map_err(wrong),
            Some(("inproc", _)) => {
                Err(wrong("inproc stays inside the engine's process; use tcp or ipc"))
            }
            _ => Err(wrong("expected tcp://host:port, tcp://[v6]:port or ipc://path")),
        }
    }
}

fn tcp(address: &str) -> Result<Endpoint, &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("the port is missing; write host:port")?;
    let port = match port {
        "*" | "0" => None,
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| "the port must be 1 to 65535, or * to bind any")?)
        }
        _ => return Err("the port must be 1 to 65535, or * to bind any"),
    };
    let host_is_valid = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(is_ipv6),
        None if host.contains(':') => {
            return Err("an IPv6 address needs brackets: tcp://[::1]:port");
        }
        None => host == "*" || is_name(host),
    };
    if !host_is_valid {
        return Err("the host must be a name, an address, a bracketed IPv6 address or *");
    }
    Ok(Endpoint(Address::Tcp { host: host.into(), port }))
}

fn ipc(path: &str) -> Result<Endpoint, &'static str> {
    if path.is_empty() || path == "*" || path.contains('\0') {
        return Err("the path is missing; write ipc:///run/engine.sock");
    }
    if path.len() > IPC_PATH_MAX {
        return Err("the path of a Unix socket must not exceed 107 bytes");
    }
    Ok(Endpoint(Address::Ipc { path: path.into() }))
}

/// An IPv6 address, with or without a scope (`fe80::1%eth0`).
fn is_ipv6(text: &str) -> bool {
    let (address, scope) = text.split_once('%').unwrap_or((text, "0"));
    address.parse::<Ipv6Addr>().is_ok() && is_name(scope)
}

/// Letters, digits, `.`, `-`, `_`. Everything else means something to libzmq (`;` sets a source
/// address) or nothing at all.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_reads_back_as_it_was_written() {
        for text in [
            "tcp://127.0.0.1:5557",
            "tcp://pod-7.vllm_ns.svc.cluster.local:65535",
            "tcp://[::1]:1",
            "tcp://[fe80::1%eth0]:5557",
            "tcp://*:5557",
            "tcp://127.0.0.1:*",
            "ipc:///run/vllm/events.sock",
            "ipc://@abstract",
        ] {
            assert_eq!(endpoint(text).to_string(), text);
        }
        assert_eq!(endpoint("tcp://*:0").to_string(), "tcp://*:*");
    }

    #[test]
    fn a_wrong_endpoint_is_named_in_its_error() {
        for text in [
            "",
            "pod:5557",
            "tcp://",
            "tcp://pod",
            "tcp://:5557",
            "tcp://pod:",
            "tcp://pod:65536",
            "tcp://pod:+1",
            "tcp://pod:port",
            "tcp://::1:5557",
            "tcp://[pod]:5557",
            "tcp://[::1:5557",
            "tcp://a;b:5557",
            "tcp://pod\0:5557",
            "ipc://",
            "ipc://a\0b",
            "inproc://events",
            "udp://pod:5557",
            &format!("ipc://{}", "p".repeat(108)),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn a_rank_moves_the_port_and_nothing_else() {
        assert_eq!(endpoint("tcp://[::1]:5557").for_rank(3).unwrap(), endpoint("tcp://[::1]:5560"));
        assert_eq!(endpoint("ipc://a").for_rank(0).unwrap(), endpoint("ipc://a"));
        assert_eq!(endpoint("tcp://p:65534").for_rank(1).unwrap(), endpoint("tcp://p:65535"));
        for (text, rank) in [
            ("tcp://p:65534", 2),
            ("tcp://p:1", 65_535),
            ("tcp://p:1", u32::MAX),
            ("tcp://p:*", 1),
            ("ipc://a", 1),
        ] {
            assert_eq!(
                endpoint(text).for_rank(rank).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{text} {rank}"
            );
        }
    }

    #[test]
    fn wildcards_can_be_bound_but_not_dialled() {
        assert!(endpoint("tcp://p:1").is_connectable());
        assert!(!endpoint("tcp://*:1").is_connectable());
        assert!(!endpoint("tcp://p:*").is_connectable());
    }
}
