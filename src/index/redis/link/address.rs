//! Where the store is: one server, a cluster, or a master that sentinels know.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::secret::Secret;
use crate::error::Error;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    /// Host without brackets, and port.
    Tcp(Box<str>, u16),
    /// Path of a socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How servers form a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    One(Endpoint),
    /// Nodes to ask first for the others.
    Cluster(Vec<Endpoint>),
    Sentinel {
        sentinels: Vec<Endpoint>,
        master: Box<str>,
    },
}

/// Where a Redis or Valkey store is, from text:
///
/// | text | store |
/// |---|---|
/// | `redis://[user[:password]@]host[:port][/database]` | one server; port 6379 unless given |
/// | `redis+cluster://host[:port][,host[:port]]...` | a cluster; some of its nodes are enough |
/// | `redis+sentinel://host[:port][,...]/master[/database]` | the master of that name; port 26379 unless given |
/// | `unix:/path[?db=1][&user=name]` | one server on a Unix socket; also `redis+unix:` and `valkey+unix:` |
///
/// `valkey` may stand for `redis` everywhere; `rediss` and `valkeys` (with the same endings) mean TLS.
/// User and password are percent-encoded. A password is better left out and given as
/// [`StoreOptions::password`](super::StoreOptions::password); printing an address never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreAddress {
    pub(super) place: Place,
    pub(super) tls: bool,
    pub(super) user: Option<Box<str>>,
    pub(super) password: Option<Secret>,
    pub(super) database: u32,
}

impl StoreAddress {
    /// Whether a password is part of it.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    One,
    Cluster,
    Sentinel,
    Unix,
}

const SCHEMES: &str = "redis, rediss, valkey or valkeys, each alone or with +cluster or +sentinel, \
                       or unix, redis+unix or valkey+unix";

fn scheme(text: &str) -> Option<(Form, bool)> {
    let (base, form) = match text.split_once('+') {
        None if text == "unix" => return Some((Form::Unix, false)),
        None => (text, Form::One),
        Some((base, "cluster")) => (base, Form::Cluster),
        Some((base, "sentinel")) => (base, Form::Sentinel),
        Some(("redis" | "valkey", "unix")) => return Some((Form::Unix, false)),
        Some(_) => return None,
    };
    match base {
        "redis" | "valkey" => Some((form, false)),
        "rediss" | "valkeys" => Some((form, true)),
        _ => None,
    }
}

impl FromStr for StoreAddress {
    type Err = Error;

    /// Parses an address.
    ///
    /// # Errors
    ///
    /// The message names the part that is wrong, and never contains a password.
    fn from_str(text: &str) -> Result<StoreAddress, Error> {
        // Before the scheme is known, nothing of the text may be shown: it could be all password.
        let (name, rest) = text
            .split_once(':')
            .filter(|(name, _)| !name.is_empty() && name.len() < 20 && !name.contains('@'))
            .ok_or_else(|| {
                Error::invalid(format!("a store's address starts with a scheme: {SCHEMES}"))
            })?;
        let (form, tls) = scheme(name).ok_or_else(|| {
            Error::invalid(format!(
                "the scheme of a store's address is unknown; right is {SCHEMES}"
            ))
        })?;
        if form == Form::Unix {
            return unix(rest);
        }
        let rest = rest.strip_prefix("//").ok_or_else(|| {
            Error::invalid(format!("after the scheme {name:?} of a store's address comes \"://\""))
        })?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        // What follows an unescaped '/' in a password would be taken, and shown, as something else.
        if tail.contains('@') {
            return Err(Error::invalid(
                "a '/', '?', '#' or '@' in the user or password of a store's address has to be \
                 percent-encoded, and so has an '@' behind the hosts",
            ));
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let (user, password) = credentials.map_or(Ok((None, None)), parse_credentials)?;
        if tail.contains(['?', '#']) {
            return Err(Error::invalid(
                "a store's address with hosts has no '?' or '#': the database is its last path part",
            ));
        }
        let default_port = if form == Form::Sentinel { 26_379 } else { 6_379 };
        let mut endpoints = Vec::new();
        for host in hosts.split(',') {
            endpoints.push(endpoint(host, default_port)?);
        }
        let path = tail.strip_prefix('/').unwrap_or_default();
        let (place, database) = match form {
            Form::One if endpoints.len() > 1 => {
                return Err(Error::invalid(format!(
                    "{} hosts in an address with the scheme {name:?}: several need {name}+cluster or \
                     {name}+sentinel",
                    endpoints.len()
                )));
            }
            Form::One => (Place::One(endpoints.remove(0)), parse_database(path)?),
            Form::Cluster => {
                if parse_database(path)? != 0 {
                    return Err(Error::invalid(format!(
                        "a cluster has database 0 only, not {path:?}"
                    )));
                }
                (Place::Cluster(endpoints), 0)
            }
            _ => {
                let (master, database) = path.split_once('/').unwrap_or((path, ""));
                let master = decode(master, "master name")?;
                if master.is_empty() {
                    return Err(Error::invalid(
                        "the address of sentinels ends in the name of the master they watch: \
                         redis+sentinel://host/mymaster",
                    ));
                }
                (Place::Sentinel { sentinels: endpoints, master }, parse_database(database)?)
            }
        };
        Ok(StoreAddress { place, tls, user, password, database })
    }
}

fn unix(rest: &str) -> Result<StoreAddress, Error> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = path.strip_prefix("//").unwrap_or(path);
    if !path.starts_with('/') {
        return Err(Error::invalid(
            "the path of a Unix socket is absolute: unix:/run/redis/redis.sock",
        ));
    }
    let mut address = StoreAddress {
        place: Place::One(Endpoint::Unix(PathBuf::from(&*decode(path, "socket path")?))),
        tls: false,
        user: None,
        password: None,
        database: 0,
    };
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("db", value)) => address.database = parse_database(value)?,
            Some(("user", value)) => address.user = Some(decode(value, "user")?),
            Some(("pass", value)) => {
                address.password = Some(Secret::new(decode(value, "password")?))
            }
            _ => {
                return Err(Error::invalid(
                    "behind the '?' of a socket's address may stand db=, user= and pass=, joined by '&'",
                ));
            }
        }
    }
    Ok(address)
}

type Credentials = (Option<Box<str>>, Option<Secret>);

fn parse_credentials(text: &str) -> Result<Credentials, Error> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let user = decode(user, "user")?;
    let password = match password {
        Some("") | None => None,
        Some(password) => Some(Secret::new(decode(password, "password")?)),
    };
    Ok(((!user.is_empty()).then_some(user), password))
}

fn endpoint(text: &str, default_port: u16) -> Result<Endpoint, Error> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| {
            Error::invalid(format!("the host {text:?} of a store's address has no closing ']'"))
        })?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(Error::invalid(format!("{rest:?} after a host is not a port"))),
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(Error::invalid(
                    "a host in a store's address has two colons: an IPv6 address stands in brackets",
                ));
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(Error::invalid(format!("{host:?} in a store's address is not a host")));
    }
    let port = match port {
        None => default_port,
        // Without an '@' a forgotten host leaves the password here: the value is not shown.
        Some(port) => port.parse().ok().filter(|&port| port != 0).ok_or_else(|| {
            Error::invalid(format!(
                "the port of the host {host:?} in a store's address is not a number from 1 to 65535"
            ))
        })?,
    };
    Ok(Endpoint::Tcp(host.into(), port))
}

fn parse_database(text: &str) -> Result<u32, Error> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        Error::invalid(format!("the database {text:?} of a store's address is not a number"))
    })
}

/// Percent-decodes; `part` names it in errors.
fn decode(text: &str, part: &str) -> Result<Box<str>, Error> {
    let wrong =
        || Error::invalid(format!("the {part} in a store's address is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map(String::into_boxed_str).map_err(|_| wrong())
}

impl fmt::Display for StoreAddress {
    /// The address with `***` where a password stands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Place::One(Endpoint::Unix(path)) = &self.place {
            write!(f, "unix:{}?db={}", path.display(), self.database)?;
            if let Some(user) = &self.user {
                write!(f, "&user={user}")?;
            }
            return if self.password.is_some() { f.write_str("&pass=***") } else { Ok(()) };
        }
        f.write_str(if self.tls { "rediss" } else { "redis" })?;
        let (ending, hosts) = match &self.place {
            Place::One(host) => ("", std::slice::from_ref(host)),
            Place::Cluster(hosts) => ("+cluster", &hosts[..]),
            Place::Sentinel { sentinels, .. } => ("+sentinel", &sentinels[..]),
        };
        write!(f, "{ending}://")?;
        if self.user.is_some() || self.password.is_some() {
            f.write_str(self.user.as_deref().unwrap_or_default())?;
            f.write_str(if self.password.is_some() { ":***@" } else { "@" })?;
        }
        for (i, host) in hosts.iter().enumerate() {
            write!(f, "{}{host}", if i == 0 { "" } else { "," })?;
        }
        match &self.place {
            Place::Sentinel { master, .. } => write!(f, "/{master}/{}", self.database),
            Place::Cluster(_) => Ok(()),
            Place::One(_) => write!(f, "/{}", self.database),
        }
    }
}

impl fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreAddress({self})")
    }
}
