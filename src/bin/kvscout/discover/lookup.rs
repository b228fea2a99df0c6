//! One look at a name: its addresses, that it has none, or that nobody could say.
//!
//! The resolver's own walk along the search list ends with what the last name brought. On a cluster's pod that name is
//! asked of the world outside, which knows it not: "no such name", although the name server of the cluster, asked for the
//! right one, had failed. So the walk is ours.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;

use crate::config::discover::{DiscoverEntry, Family};

/// How long one question to a name server may take: another attempt, or look, is better than to wait for long.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(2);

/// What a look brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// Addresses.
    Found(Found),
    /// The name is there and has none.
    Nothing,
    /// There is no such name.
    NoSuchName(String),
    /// Nobody could say, for this reason.
    Failed(String),
}

/// An answer with addresses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// All of them.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// How long they are true.
    pub(super) ttl: Duration,
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Lookup {
    host: String,
    family: Family,
    nameserver: Option<SocketAddr>,
    /// The complete name that last had addresses: it is asked first, and its failure is no other name's business.
    settled: Option<Name>,
}

impl Lookup {
    /// The look that an entry asks for.
    pub(super) fn new(entry: &DiscoverEntry) -> Lookup {
        Lookup {
            host: entry.dns.host.clone(),
            family: entry.family,
            nameserver: entry.nameserver,
            settled: None,
        }
    }

    /// Asks now. Which family counts does not change while addresses of the other one are `known`.
    pub(super) async fn look(&mut self, known: &BTreeSet<IpAddr>) -> Looked {
        // Made anew for each look: it is cheap, and the system's configuration may have changed.
        let parts = self.servers().and_then(|(config, options)| {
            let names = self.names(&config, &options)?;
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            let timeout = options.timeout.min(ATTEMPT_LIMIT);
            *builder.options_mut() = options;
            builder.options_mut().timeout = timeout;
            Ok((names, builder.build()?))
        });
        match parts {
            Ok((names, resolver)) => self.walk(names, &resolver, known).await,
            Err(error) => Looked::Failed(error.to_string()),
        }
    }

    /// Asks for one name after the other, until one has addresses.
    async fn walk(
        &mut self,
        names: Vec<Name>,
        resolver: &TokioResolver,
        known: &BTreeSet<IpAddr>,
    ) -> Looked {
        let (mut failed, mut exists) = (None, false);
        for name in names {
            let is_settled = self.settled.as_ref() == Some(&name);
            match addresses(resolver, &name, self.family, known).await {
                Looked::Found(found) => {
                    self.settled = Some(name);
                    return Looked::Found(found);
                }
                Looked::Failed(why) if is_settled => return Looked::Failed(why),
                Looked::Failed(why) => failed = failed.or(Some(why)),
                Looked::Nothing => exists = true,
                Looked::NoSuchName(_) => {}
            }
        }
        match failed {
            Some(why) => Looked::Failed(why),
            None if exists => Looked::Nothing,
            None => Looked::NoSuchName(format!("there is no name {:?}", self.host)),
        }
    }

    fn servers(&self) -> Result<(ResolverConfig, ResolverOpts), NetError> {
        let Some(nameserver) = self.nameserver else { return read_system_conf() };
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        connections.iter_mut().for_each(|connection| connection.port = nameserver.port());
        let server = NameServerConfig::new(nameserver.ip(), true, connections);
        Ok((ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default()))
    }

    /// The complete names that the host may stand for, in the order in which they are asked.
    fn names(
        &self,
        config: &ResolverConfig,
        options: &ResolverOpts,
    ) -> Result<Vec<Name>, NetError> {
        let host = Name::from_ascii(&self.host)?;
        if host.is_fqdn() || self.nameserver.is_some() {
            return Ok(vec![complete(host)]);
        }
        let own = config.domain.iter().filter(|_| config.search.is_empty());
        let domains = config.search.iter().chain(own);
        // Those that are too long with a domain cannot be meant.
        let mut names: Vec<Name> = domains
            .filter_map(|domain| host.clone().append_domain(domain).ok())
            .map(complete)
            .collect();
        let dots = usize::from(host.num_labels()).saturating_sub(1);
        match dots >= options.ndots {
            true => names.insert(0, complete(host)),
            false => names.push(complete(host)),
        }
        if let Some(settled) = &self.settled
            && let Some(at) = names.iter().position(|name| name == settled)
        {
            names[..=at].rotate_right(1);
        }
        Ok(names)
    }
}

fn complete(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

/// The addresses of a complete name.
async fn addresses(
    resolver: &TokioResolver,
    name: &Name,
    family: Family,
    known: &BTreeSet<IpAddr>,
) -> Looked {
    let one = async |record| records(resolver, name, record).await;
    match family {
        Family::Ipv4 => one(RecordType::A).await,
        Family::Ipv6 => one(RecordType::AAAA).await,
        Family::Auto => match one(RecordType::A).await {
            Looked::Nothing if !known.iter().any(IpAddr::is_ipv4) => one(RecordType::AAAA).await,
            other => other,
        },
        Family::Both => match (one(RecordType::A).await, one(RecordType::AAAA).await) {
            // Half an answer would let the other half seem gone.
            (Looked::Failed(why), _) | (_, Looked::Failed(why)) => Looked::Failed(why),
            (Looked::Found(mut a), Looked::Found(b)) => {
                a.addresses.extend(b.addresses);
                Looked::Found(Found { ttl: a.ttl.min(b.ttl), ..a })
            }
            (Looked::Found(found), _) | (_, Looked::Found(found)) => Looked::Found(found),
            (Looked::Nothing, _) | (_, Looked::Nothing) => Looked::Nothing,
            (none, _) => none,
        },
    }
}

async fn records(resolver: &TokioResolver, name: &Name, record: RecordType) -> Looked {
    let lookup = match resolver.lookup(name.clone(), record).await {
        Ok(lookup) => lookup,
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
            ResponseCode::NoError => return Looked::Nothing,
            ResponseCode::NXDomain => return Looked::NoSuchName(String::new()),
            code => return Looked::Failed(format!("{name}: the name server says {code}")),
        },
        Err(error) => return Looked::Failed(format!("{name}: {error}")),
    };
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::from(aaaa.0)),
        _ => None,
    };
    let addresses: BTreeSet<IpAddr> =
        lookup.answers().iter().filter_map(|record| address(&record.data)).collect();
    if addresses.is_empty() {
        return Looked::Nothing;
    }
    let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
    Looked::Found(Found { addresses, ttl })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use hickory_resolver::proto::op::{Message, OpCode};
    use hickory_resolver::proto::rr::Record;
    use hickory_resolver::proto::rr::rdata::A;
    use tokio::runtime::Runtime;

    use super::*;

    fn lookup(host: &str) -> Lookup {
        Lookup { host: host.to_owned(), family: Family::Auto, nameserver: None, settled: None }
    }

    /// What a pod's `/etc/resolv.conf` says.
    fn pod(server: SocketAddr) -> (ResolverConfig, ResolverOpts) {
        let (mut config, mut options) =
            Lookup { nameserver: Some(server), ..lookup("x") }.servers().unwrap();
        let domains = ["default.svc.cluster.test.", "svc.cluster.test.", "cluster.test."];
        config.search = domains.map(|domain| Name::from_ascii(domain).unwrap()).to_vec();
        (options.ndots, options.attempts) = (5, 0);
        (config, options)
    }

    fn names(lookup: &Lookup) -> Vec<String> {
        let (config, options) = pod("127.0.0.1:53".parse().unwrap());
        let names = lookup.names(&config, &options).unwrap();
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_search_list_comes_first_unless_the_name_is_complete() {
        let mut short = lookup("vllm.default.svc");
        let walked = [
            "vllm.default.svc.default.svc.cluster.test.",
            "vllm.default.svc.svc.cluster.test.",
            "vllm.default.svc.cluster.test.",
            "vllm.default.svc.",
        ];
        assert_eq!(names(&short), walked);
        short.settled = Some(Name::from_ascii(walked[2]).unwrap());
        assert_eq!(names(&short), [walked[2], walked[0], walked[1], walked[3]]);
        assert_eq!(names(&lookup("vllm.default.svc.")), ["vllm.default.svc."]);
        assert_eq!(names(&lookup("a.b.c.d.e.f"))[0], "a.b.c.d.e.f.");
    }

    /// What a name server answers for each name; a name that it has not does not exist.
    type Zone = Arc<Mutex<Vec<(&'static str, Result<[u8; 4], ResponseCode>)>>>;

    fn serve(zone: Zone) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let asked = query.queries[0].clone();
                let mut answer = Message::response(query.id, OpCode::Query);
                answer.add_query(asked.clone());
                let name = asked.name().to_string();
                let found = zone.lock().unwrap().iter().find(|(known, _)| *known == name).copied();
                match found {
                    Some((_, Ok([a, b, c, d]))) => {
                        let data = RData::A(A::new(a, b, c, d));
                        answer.add_answer(Record::from_rdata(asked.name().clone(), 0, data));
                    }
                    Some((_, Err(code))) => answer.metadata.response_code = code,
                    None => answer.metadata.response_code = ResponseCode::NXDomain,
                }
                socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        });
        address
    }

    #[test]
    fn that_the_world_outside_knows_no_such_name_hides_no_failure() {
        let inside = "vllm.default.svc.cluster.test.";
        let zone = Zone::default();
        let (config, options) = pod(serve(Arc::clone(&zone)));
        let runtime = Runtime::new().unwrap();
        let mut lookup = lookup("vllm.default.svc");
        let mut look = |zone_now: Vec<(&'static str, Result<[u8; 4], ResponseCode>)>| {
            *zone.lock().unwrap() = zone_now;
            let names = lookup.names(&config, &options).unwrap();
            runtime.block_on(async {
                let provider = TokioRuntimeProvider::default();
                let mut builder = TokioResolver::builder_with_config(config.clone(), provider);
                *builder.options_mut() = options.clone();
                lookup.walk(names, &builder.build().unwrap(), &BTreeSet::new()).await
            })
        };
        assert!(matches!(look(vec![]), Looked::NoSuchName(_)));
        let failing = vec![(inside, Err(ResponseCode::ServFail))];
        assert!(matches!(look(failing.clone()), Looked::Failed(_)));
        // Before the name is known to be the right one, a domain that fails does not hide another.
        let elsewhere = ("vllm.default.svc.svc.cluster.test.", Err(ResponseCode::Refused));
        let found = look(vec![elsewhere, (inside, Ok([10, 0, 0, 7]))]);
        assert!(matches!(&found, Looked::Found(found) if found.addresses.len() == 1), "{found:?}");
        let other = ("vllm.default.svc.", Ok([10, 9, 9, 9]));
        let failing = look(vec![(inside, Err(ResponseCode::ServFail)), other]);
        assert!(matches!(failing, Looked::Failed(_)), "afterwards no other name stands in for it");
        assert_eq!(look(vec![(inside, Err(ResponseCode::NoError))]), Looked::Nothing);
    }
}
