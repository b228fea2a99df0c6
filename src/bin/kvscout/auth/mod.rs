//! Who may do what. A caller is known by a bearer token or by a client certificate; what it asks belongs to a
//! class, which every route and every method declares where it is declared itself.
//!
//! Without callers in the configuration everything is open, as far as the network lets anyone through.

pub(crate) mod browser;
mod file;
mod tokens;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::Choice;
use tracing::{info, warn};

use self::browser::Nobody;
pub(crate) use self::file::{Stamp, read_secret};
use self::tokens::TokenFile;
pub(crate) use self::tokens::first_token;
use crate::config::Config;
use crate::config::caller::CallerEntry;

/// What requests have in common, as far as it matters who may send them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Where is how much of a prompt?
    Score,
    /// What a router says of its own decisions: picks and receipts.
    Pick,
    /// What an operator looks at: everything that is known of every tenant, no token and no salt.
    Read,
    /// What changes who is dialled and what is known to be held where.
    Change,
    /// What takes away what is held, or gives all of it out.
    Admin,
}

impl Class {
    pub(crate) const ALL: [Class; 5] =
        [Class::Score, Class::Pick, Class::Read, Class::Change, Class::Admin];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Class::Score => "score",
            Class::Pick => "pick",
            Class::Read => "read",
            Class::Change => "change",
            Class::Admin => "admin",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Class {
    type Err = ();

    fn from_str(text: &str) -> Result<Class, ()> {
        Class::ALL.into_iter().find(|class| class.as_str() == text).ok_or(())
    }
}

/// What a route or a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Nothing: it says only whether the daemon works, or what it is.
    Open,
    /// Leave for this class; whoever is bound to a tenant may name no other.
    Tenant(Class),
    /// Leave for this class; it reaches every tenant, so that whoever is bound to one has none.
    Everything(Class),
}

/// A caller that may do what it asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leave {
    /// The only tenant that it may name.
    pub(crate) tenant: Option<Arc<str>>,
}

impl Leave {
    /// Whether this tenant may be named.
    pub(crate) fn reaches(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|only| only == tenant)
    }
}

/// Why a caller may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It did not say who it is.
    Anonymous,
    /// Nobody has such a token.
    Unknown,
    /// It is known, and has no leave for this class.
    Class(Class),
    /// It is bound to one tenant, and this reaches them all.
    Bound,
}

impl Denied {
    /// Whether another credential is what is wanted, rather than other leave.
    pub(crate) fn wants_credential(self) -> bool {
        matches!(self, Denied::Anonymous | Denied::Unknown)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Anonymous => f.write_str(
                "a credential is required here: send 'authorization: Bearer TOKEN', or a client certificate",
            ),
            Denied::Unknown => f.write_str("the bearer token is not known here"),
            Denied::Class(class) => {
                write!(f, "this caller has no leave for requests of class '{class}'")
            }
            Denied::Bound => f.write_str("this caller is bound to one tenant; this reaches all"),
        }
    }
}

/// What a caller shows of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shown<'a> {
    /// The header `authorization`.
    pub(crate) authorization: Option<&'a [u8]>,
    /// The names in its client certificate, which was verified.
    pub(crate) certificate: Option<&'a [String]>,
}

/// Everyone who is known.
#[derive(Debug, Default)]
pub(crate) struct Access {
    callers: Vec<Caller>,
    open: Vec<Class>,
}

#[derive(Debug)]
struct Caller {
    name: String,
    known_by: KnownBy,
    allows: Vec<Class>,
    leave: Leave,
}

#[derive(Debug)]
enum KnownBy {
    Token(TokenFile),
    /// This name; `*` is any certificate of the authority.
    Certificate(String),
}

impl Access {
    /// The callers of the configuration, with their tokens.
    ///
    /// # Errors
    ///
    /// A token file cannot be used, or two have the same token.
    pub(crate) fn new(config: &Config) -> Result<Access, String> {
        let all = config.auth.token_file.as_ref().map(|path| CallerEntry {
            token_file: Some(path.clone()),
            allows: Class::ALL.to_vec(),
            ..CallerEntry::new("auth.token_file")
        });
        let mut callers: Vec<Caller> = Vec::new();
        for entry in all.iter().chain(&config.callers) {
            let named = |error| format!("caller {:?}: {error}", entry.name);
            let caller = Caller::new(entry).map_err(named)?;
            if let KnownBy::Token(file) = &caller.known_by
                && let Some(other) = callers.iter().find(|other| other.shares_token_with(file))
            {
                let other = &other.name;
                return Err(named(format!("has the same token as caller {other:?}")));
            }
            callers.push(caller);
        }
        Ok(Access { callers, open: config.auth.open.clone() })
    }

    /// Whether anybody has to say who it is.
    pub(crate) fn is_closed(&self) -> bool {
        !self.callers.is_empty()
    }

    /// Why whoever asks for what is of a class does not have to say who it is; `None` where it has to.
    fn asks_nobody(&self, class: Class) -> Option<Nobody> {
        match self.open.contains(&class) {
            _ if !self.is_closed() => Some(Nobody::IsKnown),
            true => Some(Nobody::IsAsked(class)),
            false => None,
        }
    }

    /// The same of what is guarded so; what is open to all is no matter.
    pub(crate) fn asks_nobody_for(&self, guard: Guard) -> Option<Nobody> {
        match guard {
            Guard::Open => None,
            Guard::Tenant(class) | Guard::Everything(class) => self.asks_nobody(class),
        }
    }

    /// Whether whoever shows this may do what is guarded so.
    pub(crate) fn admit(&self, guard: Guard, shown: Shown<'_>) -> Result<Leave, Denied> {
        let (class, reaches_all) = match guard {
            Guard::Open => return Ok(Leave::default()),
            Guard::Tenant(class) => (class, false),
            Guard::Everything(class) => (class, true),
        };
        if self.asks_nobody(class).is_some() {
            return Ok(Leave::default());
        }
        let mut known = self.known(shown)?.into_iter().peekable();
        if known.peek().is_none() {
            return Err(Denied::Anonymous);
        }
        let caller = known.find(|caller| caller.allows.contains(&class));
        let caller = caller.ok_or(Denied::Class(class))?;
        match reaches_all && caller.leave.tenant.is_some() {
            true => Err(Denied::Bound),
            false => Ok(caller.leave.clone()),
        }
    }

    /// As whom a caller is known: by its token if it has one, else by its certificate.
    fn known(&self, shown: Shown<'_>) -> Result<Vec<&Caller>, Denied> {
        if let Some(header) = shown.authorization {
            let digest: [u8; 32] = Sha256::digest(bearer(header).ok_or(Denied::Unknown)?).into();
            // All are compared, so that the time tells nothing of where a token is.
            let mut found = None;
            for caller in &self.callers {
                if let KnownBy::Token(file) = &caller.known_by
                    && bool::from(file.has(&digest))
                {
                    found = Some(caller);
                }
            }
            return found.map(|caller| vec![caller]).ok_or(Denied::Unknown);
        }
        let Some(names) = shown.certificate else { return Ok(Vec::new()) };
        let is_named = |caller: &&Caller| match &caller.known_by {
            KnownBy::Certificate(name) => name == "*" || names.contains(name),
            KnownBy::Token(_) => false,
        };
        Ok(self.callers.iter().filter(is_named).collect())
    }

    /// Reads token files that changed.
    pub(crate) fn refresh(&self) {
        for Caller { name, known_by, .. } in &self.callers {
            let KnownBy::Token(file) = known_by else { continue };
            match file.refresh() {
                None => {}
                Some(Ok(0)) => {
                    warn!(caller = name, "the token file is gone: its token counts no more")
                }
                Some(Ok(tokens)) => info!(caller = name, tokens, "the token file changed"),
                Some(Err(error)) => warn!(
                    caller = name,
                    error, "the token file changed and cannot be used: the token before counts"
                ),
            }
        }
    }
}

impl Caller {
    fn new(entry: &CallerEntry) -> Result<Caller, String> {
        let known_by = match (&entry.token_file, &entry.certificate) {
            (Some(path), None) => KnownBy::Token(TokenFile::open(Path::new(path))?),
            (None, Some(name)) => KnownBy::Certificate(name.clone()),
            // The configuration was checked.
            _ => return Err("has neither or both of token_file and certificate".to_owned()),
        };
        let tenant = entry.tenant.as_deref().map(Arc::from);
        Ok(Caller {
            name: entry.name.clone(),
            known_by,
            allows: entry.allows.clone(),
            leave: Leave { tenant },
        })
    }

    fn shares_token_with(&self, file: &TokenFile) -> bool {
        match &self.known_by {
            KnownBy::Token(own) => own.shares_with(file),
            KnownBy::Certificate(_) => false,
        }
    }
}

/// The token of a header `authorization: Bearer TOKEN`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Whether one of these is that, in a time that depends on their number alone.
fn any_is(digests: &[[u8; 32]], wanted: &[u8; 32]) -> Choice {
    use subtle::ConstantTimeEq;
    digests.iter().fold(Choice::from(0), |found, digest| found | digest[..].ct_eq(&wanted[..]))
}

#[cfg(test)]
mod tests;
