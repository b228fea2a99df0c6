//! Whom requests may have dialled. Whoever may register a worker makes this process connect somewhere, inside the network
//! that it is in; a rule decides where, for the address that is dialled and not for the name that stands for it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use kvscout::ingest::zmq::Endpoint;
use tokio::sync::Semaphore;

/// Networks that nobody else routes to: RFC 1918, RFC 6598 (where some clouds have their pods) and RFC 4193.
const PRIVATE: [(IpAddr, u8); 5] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
];

const LOOPBACK: [(IpAddr, u8); 2] =
    [(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8), (IpAddr::V6(Ipv6Addr::LOCALHOST), 128)];

/// Never dialled for a request, whatever the rules say: addresses of this host, of a link, of groups, and those where
/// clouds keep credentials of their machines (Amazon, Google, Azure, Oracle: in 169.254.0.0/16, and besides).
const NEVER: [(IpAddr, u8); 12] = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    (IpAddr::V4(Ipv4Addr::new(240, 0, 0, 0)), 4),
    // Alibaba, Azure's host, Oracle.
    (IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), 32),
    (IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)), 32),
    (IpAddr::V4(Ipv4Addr::new(192, 0, 0, 0)), 24),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    // Amazon, Google.
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0)), 32),
    (IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0)), 32),
];

/// What may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// [`PRIVATE`].
    Private,
    /// [`LOOPBACK`].
    Loopback,
    /// An address in a network.
    Network(IpAddr, u8, Ports),
    /// Whatever a name of this form stands for; with `*.` in front, all names below.
    Name(String, Ports),
}

/// Ports from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports(u16, u16);

const ANY: Ports = Ports(1, u16::MAX);

impl FromStr for Rule {
    type Err = ();

    fn from_str(text: &str) -> Result<Rule, ()> {
        match text {
            "private" => return Ok(Rule::Private),
            "loopback" => return Ok(Rule::Loopback),
            _ => {}
        }
        let (host, ports) = split_ports(text)?;
        if let Some((address, prefix)) = network(host) {
            return Ok(Rule::Network(address, prefix, ports));
        }
        let name = host.strip_prefix("*.").unwrap_or(host);
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        // What ends in a number would be an address.
        let ends_in_number = name.rsplit('.').next().is_none_or(|last| last.parse::<u64>().is_ok());
        match !name.is_empty() && name.bytes().all(is_plain) && !ends_in_number {
            true => Ok(Rule::Name(host.to_ascii_lowercase(), ports)),
            false => Err(()),
        }
    }
}

/// `host`, `host:port`, `host:from-to`; an IPv6 network with ports is in brackets.
fn split_ports(text: &str) -> Result<(&str, Ports), ()> {
    let (host, ports) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, ports) = rest.split_once(']').ok_or(())?;
            (host, Some(ports.strip_prefix(':').ok_or(())?))
        }
        None => match text.split_once(':') {
            Some((host, ports)) if !ports.contains(':') => (host, Some(ports)),
            _ => (text, None),
        },
    };
    let Some(ports) = ports else { return Ok((host, ANY)) };
    let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if 0 < from && from <= to => Ok((host, Ports(from, to))),
        _ => Err(()),
    }
}

/// `10.0.0.0/8`, or one address.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(longest), |prefix| prefix.parse().ok())?;
    (prefix <= longest).then_some((address, prefix))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, Ports(from, to)) = match self {
            Rule::Private => return f.write_str("private"),
            Rule::Loopback => return f.write_str("loopback"),
            Rule::Network(address, prefix, ports) => (format!("{address}/{prefix}"), ports),
            Rule::Name(name, ports) => (name.clone(), ports),
        };
        match (Ports(*from, *to) == ANY, host.contains(':')) {
            (true, _) => f.write_str(&host),
            (false, true) => write!(f, "[{host}]:{from}-{to}"),
            (false, false) => write!(f, "{host}:{from}-{to}"),
        }
    }
}

/// Whether an endpoint has a name in it that has to be looked up.
pub(crate) fn is_by_name(endpoint: &Endpoint) -> bool {
    host_and_port(endpoint).is_some_and(|(host, _)| host.parse::<IpAddr>().is_err())
}

/// Names that are looked up at a time.
const LOOKUPS: usize = 8;

/// Why something is not dialled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Undialled {
    /// No rule allows it.
    Refused(String),
    /// Its name stands for nothing at the moment.
    Unresolved(String),
    /// As many names are looked up already as may be at a time.
    Busy(String),
}

/// Who has the addresses of a name.
type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// The rules, and who resolves names.
#[derive(Debug)]
pub(crate) struct Dial {
    rules: Vec<Rule>,
    resolve: Resolve,
    /// Each look-up may hold a thread for as long as the name server says nothing.
    lookups: Semaphore,
}

impl Dial {
    /// What these rules allow; who can be reached from this machine only may dial what is on it.
    pub(crate) fn new(allow: &[Rule], listen: SocketAddr) -> Dial {
        let mut rules = allow.to_vec();
        if listen.ip().is_loopback() && !rules.contains(&Rule::Loopback) {
            rules.push(Rule::Loopback);
        }
        let lookups = Semaphore::new(LOOKUPS);
        Dial { rules, resolve: |host, port| Ok((host, port).to_socket_addrs()?.collect()), lookups }
    }

    /// What to dial for an endpoint that a request named: an address that a rule allows, in place of a name, which may stand
    /// for another one by the time that it is dialled. May wait for a name server.
    pub(crate) fn address_of(&self, endpoint: &Endpoint) -> Result<Endpoint, Undialled> {
        let Some((host, port)) = host_and_port(endpoint) else {
            return Err(Undialled::Refused(format!("{endpoint} is no tcp://host:port")));
        };
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => {
                let found = self.look_up(&host, port).ok_or_else(|| {
                    Undialled::Busy(format!(
                        "{endpoint}: {LOOKUPS} names are being looked up already; try again later"
                    ))
                })?;
                found.map_err(|error| {
                    Undialled::Unresolved(format!("{endpoint}: {host} cannot be resolved: {error}"))
                })?
            }
        };
        let allowed = found.iter().find(|address| self.allows(&host, **address));
        match (allowed, found.first()) {
            (Some(address), _) => format!("tcp://{address}")
                .parse()
                .map_err(|error: kvscout::Error| Undialled::Refused(error.to_string())),
            (None, None) => {
                Err(Undialled::Unresolved(format!("{endpoint}: {host} has no address")))
            }
            (None, Some(address)) => {
                let rules: Vec<String> = self.rules.iter().map(ToString::to_string).collect();
                Err(Undialled::Refused(format!(
                    "{endpoint} may not be dialled: {address} is allowed by none of {} (dial.allow), or by nothing at all",
                    rules.join(", ")
                )))
            }
        }
    }

    /// Whether an endpoint is by name, and what it was dialled as is no longer what the name stands for: then what is.
    pub(crate) fn moved(&self, endpoint: &Endpoint, dialled: &Endpoint) -> Option<Endpoint> {
        let (host, port) = host_and_port(endpoint)?;
        if host.parse::<IpAddr>().is_ok() {
            return None;
        }
        let found = self.look_up(&host, port)?.ok()?;
        let stays = found.iter().any(|address| format!("tcp://{address}") == dialled.to_string());
        let next = found.iter().find(|address| !stays && self.allows(&host, **address));
        next.and_then(|address| format!("tcp://{address}").parse().ok())
    }

    /// What has this name; `None` while too many are looked up.
    fn look_up(&self, host: &str, port: u16) -> Option<io::Result<Vec<SocketAddr>>> {
        let _one = self.lookups.try_acquire().ok()?;
        Some((self.resolve)(host, port))
    }

    fn allows(&self, host: &str, address: SocketAddr) -> bool {
        let ip = plain(address.ip());
        let is_in = |networks: &[(IpAddr, u8)]| {
            networks.iter().any(|&(network, prefix)| contains(network, prefix, ip))
        };
        let port_in = |Ports(from, to): &Ports| (*from..=*to).contains(&address.port());
        let by = |rule: &Rule| match rule {
            Rule::Private => is_in(&PRIVATE),
            Rule::Loopback => is_in(&LOOPBACK),
            Rule::Network(network, prefix, ports) => {
                port_in(ports) && contains(*network, *prefix, ip)
            }
            Rule::Name(pattern, ports) => port_in(ports) && is_name(pattern, host),
        };
        !is_in(&NEVER) && self.rules.iter().any(by)
    }
}

fn host_and_port(endpoint: &Endpoint) -> Option<(String, u16)> {
    let text = endpoint.to_string();
    let (host, port) = text.strip_prefix("tcp://")?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?))
}

/// An IPv4 address however it is dressed up: mapped into IPv6, or behind a translator (RFC 6052).
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => v6.to_canonical(),
    }
}

fn contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    let same = |a: u128, b: u128, bits: u8| {
        let host = u32::from(bits - prefix.min(bits));
        a.checked_shr(host).unwrap_or(0) == b.checked_shr(host).unwrap_or(0)
    };
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

fn is_name(pattern: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => host == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(rules: &[&str], listen: &str) -> Dial {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        // A name server of our own: a name has its address in it.
        fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            let first = host.split('.').next().unwrap_or_default().replace('-', ".");
            let address: Result<IpAddr, _> = first.replace('_', ":").parse();
            let address = address.map_err(|_| io::Error::other("no such name"))?;
            Ok(vec![SocketAddr::new(address, port)])
        }
        Dial { resolve, ..Dial::new(&rules, listen.parse().unwrap()) }
    }

    #[track_caller]
    fn dialled(dial: &Dial, endpoint: &str) -> Result<String, Undialled> {
        dial.address_of(&endpoint.parse().unwrap()).map(|endpoint| endpoint.to_string())
    }

    #[track_caller]
    fn refused(dial: &Dial, endpoint: &str) {
        let outcome = dialled(dial, endpoint);
        assert!(matches!(outcome, Err(Undialled::Refused(_))), "{endpoint}: {outcome:?}");
    }

    #[test]
    fn so_many_names_are_looked_up_at_a_time_and_whoever_comes_beyond_is_told_to_come_back() {
        let dial = dial(&["private"], "0.0.0.0:1");
        let name = "10-1-2-3.example";
        let endpoint = format!("tcp://{name}:5557");
        let permits = u32::try_from(LOOKUPS).unwrap();
        let all_but_one = dial.lookups.try_acquire_many(permits - 1).unwrap();
        assert_eq!(dialled(&dial, &endpoint).unwrap(), "tcp://10.1.2.3:5557");
        let last = dial.lookups.try_acquire().unwrap();
        let busy = dialled(&dial, &endpoint).unwrap_err();
        let Undialled::Busy(error) = busy else { panic!("{busy:?}") };
        assert!(error.contains("8 names are being looked up already; try again later"), "{error}");
        // An address is no name.
        assert!(dialled(&dial, "tcp://10.1.2.3:5557").is_ok());
        drop((all_but_one, last));
        assert!(dialled(&dial, &endpoint).is_ok());
    }

    #[test]
    fn private_networks_are_dialled_and_nothing_that_keeps_credentials() {
        let dial = dial(&["private"], "0.0.0.0:1");
        for allowed in [
            "10.1.2.3",
            "172.31.0.1",
            "192.168.7.7",
            "100.64.0.1",
            "[fd12::1]",
            "[::ffff:10.0.0.1]",
        ] {
            let endpoint = format!("tcp://{allowed}:5557");
            assert_eq!(dialled(&dial, &endpoint), Ok(endpoint.clone()));
        }
        for refused_host in [
            "8.8.8.8",
            "172.32.0.1",
            "127.0.0.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "169.254.169.254",
            "[::ffff:169.254.169.254]",
            "100.100.100.200",
            "[fd00:ec2::254]",
            "[fd20:ce::254]",
            "[fe80::1]",
            "0.0.0.0",
            "[::]",
            "224.0.0.1",
            "255.255.255.255",
            "[2001:db8::1]",
        ] {
            refused(&dial, &format!("tcp://{refused_host}:5557"));
        }
    }

    #[test]
    fn a_name_is_dialled_as_the_address_that_was_checked() {
        let private = dial(&["private"], "0.0.0.0:1");
        assert_eq!(dialled(&private, "tcp://10-0-0-9.pods:5557"), Ok("tcp://10.0.0.9:5557".into()));
        assert_eq!(dialled(&private, "tcp://fd12__9.pods:5557"), Ok("tcp://[fd12::9]:5557".into()));
        refused(&private, "tcp://169-254-169-254.evil.example:80");
        refused(&private, "tcp://127-0-0-1.evil.example:6379");
        let unknown = dialled(&private, "tcp://nobody:5557");
        assert!(matches!(unknown, Err(Undialled::Unresolved(_))), "{unknown:?}");
        // A name may be allowed as such, and still stands for no address that is never dialled.
        let named = dial(&["*.svc.cluster.local:5557-5560"], "0.0.0.0:1");
        assert!(dialled(&named, "tcp://8-8-8-8.a.svc.cluster.local:5558").is_ok());
        assert!(dialled(&named, "tcp://8-8-8-8.a.SVC.cluster.local.:5558").is_ok());
        refused(&named, "tcp://8-8-8-8.a.svc.cluster.local:6379");
        refused(&named, "tcp://8-8-8-8.svc.cluster.local.evil:5557");
        refused(&named, "tcp://8-8-8-8.xsvc.cluster.local:5557");
        refused(&named, "tcp://169-254-169-254.a.svc.cluster.local:5557");
    }

    #[test]
    fn a_name_that_stands_for_something_else_is_followed_where_that_is_allowed() {
        let dial = dial(&["private"], "0.0.0.0:1");
        let moved = |endpoint: &str, dialled: &str| {
            let (endpoint, dialled) = (endpoint.parse().unwrap(), dialled.parse().unwrap());
            dial.moved(&endpoint, &dialled).map(|next| next.to_string())
        };
        let name = "tcp://10-0-0-9.pods:5557";
        assert_eq!(moved(name, "tcp://10.0.0.9:5557"), None);
        assert_eq!(moved(name, "tcp://10.0.0.8:5557"), Some("tcp://10.0.0.9:5557".into()));
        assert_eq!(moved("tcp://10.0.0.9:5557", "tcp://10.0.0.9:5557"), None);
        assert_eq!(moved("tcp://169-254-169-254.pods:1", "tcp://10.0.0.8:1"), None);
    }

    #[test]
    fn this_machine_is_dialled_for_those_who_are_on_it_and_where_that_is_said() {
        assert!(dialled(&dial(&["private"], "127.0.0.1:1"), "tcp://127.0.0.1:5557").is_ok());
        assert!(dialled(&dial(&["loopback"], "0.0.0.0:1"), "tcp://[::1]:5557").is_ok());
        refused(&dial(&[], "[::]:1"), "tcp://127.0.0.1:5557");
    }

    #[test]
    fn rules_read_back_as_they_are_written_and_wrong_ones_are_none() {
        for (text, written) in [
            ("private", "private"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.7", "10.0.0.7/32"),
            ("10.0.0.0/8:5557", "10.0.0.0/8:5557-5557"),
            ("[fd00::/8]:5557-5600", "[fd00::/8]:5557-5600"),
            ("fd00::/8", "fd00::/8"),
            ("*.Svc.local", "*.svc.local"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), written);
            assert_eq!(written.parse(), Ok(rule));
        }
        for wrong in [
            "",
            "*",
            "*.",
            "10.0.0.0/33",
            "10.0.0/8",
            "a:0",
            "a:9-1",
            "a b",
            "1.2.3.4.5",
            "ipc://x",
            "[fd00::/8]",
        ] {
            assert_eq!(wrong.parse::<Rule>(), Err(()), "{wrong}");
        }
    }
}
