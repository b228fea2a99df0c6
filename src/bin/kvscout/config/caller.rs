//! `[[caller]]`: someone who may do something, where not everyone may.

use toml::Table;

use super::setting::{Key, Setting, assign, keys};
use super::{ConfigError, entry};
use crate::auth::Class;

/// A caller, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallerEntry {
    /// What logs call it.
    pub(crate) name: String,
    /// The file with its bearer token.
    pub(crate) token_file: Option<String>,
    /// A name in its client certificate.
    pub(crate) certificate: Option<String>,
    /// What it may do.
    pub(crate) allows: Vec<Class>,
    /// The only tenant that it may name.
    pub(crate) tenant: Option<String>,
}

/// The files that TLS needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    /// The certificate, with those between it and its authority.
    pub(crate) certificate: Option<String>,
    /// Its key.
    pub(crate) key: Option<String>,
    /// The authorities whose certificates clients may show.
    pub(crate) client_ca: Option<String>,
}

/// Who may do what, beside the callers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Auth {
    /// The file with the token of who may do everything.
    pub(crate) token_file: Option<String>,
    /// What nobody needs a credential for.
    pub(crate) open: Vec<Class>,
}

/// Every key of a `[[caller]]`.
pub(crate) const KEYS: &[Key<CallerEntry>] = keys! { CallerEntry {
    "name" => name;
    "token_file" => token_file;
    "certificate" => certificate;
    "allows" => allows;
    "tenant" => tenant;
}};

impl CallerEntry {
    /// One that may do nothing.
    pub(crate) fn new(name: &str) -> CallerEntry {
        CallerEntry {
            name: name.to_owned(),
            token_file: None,
            certificate: None,
            allows: Vec::new(),
            tenant: None,
        }
    }

    fn check(self) -> Result<CallerEntry, ConfigError> {
        let wrong = |what: &str| Err(ConfigError(format!("caller {:?}: {what}", self.name)));
        if self.name.is_empty() {
            return wrong("no name");
        }
        if self.token_file.is_some() == self.certificate.is_some() {
            return wrong("give one of token_file and certificate");
        }
        if self.allows.is_empty() {
            return wrong("may do nothing: set allows, such as [\"score\"]");
        }
        let reaches_all = |class: &&Class| matches!(class, Class::Read | Class::Admin);
        if self.tenant.is_some()
            && let Some(class) = self.allows.iter().find(reaches_all)
        {
            return wrong(&format!(
                "is bound to a tenant and allows {class:?}, which reaches all of them; score, pick and change do not",
                class = class.as_str()
            ));
        }
        Ok(self)
    }
}

/// Whether these go together.
pub(super) fn check(
    callers: &[CallerEntry],
    auth: &Auth,
    tls: &TlsFiles,
) -> Result<(), ConfigError> {
    for (n, caller) in callers.iter().enumerate() {
        let name = &caller.name;
        if callers[..n].iter().any(|other| other.name == *name) {
            return Err(ConfigError(format!("caller {name:?} comes twice")));
        }
        if caller.certificate.is_some() && tls.client_ca.is_none() {
            return Err(ConfigError(format!(
                "caller {name:?} is known by a certificate, which needs tls.client_ca"
            )));
        }
    }
    if tls.certificate.is_some() != tls.key.is_some() {
        return Err(ConfigError::new("tls.certificate and tls.key go together: set both"));
    }
    if tls.client_ca.is_some() && tls.certificate.is_none() {
        return Err(ConfigError::new("tls.client_ca needs tls.certificate and tls.key"));
    }
    if !auth.open.is_empty() && auth.token_file.is_none() && callers.is_empty() {
        return Err(ConfigError::new(
            "auth.open is set and nobody is known, so that everything is open: set auth.token_file, or add a \
             [[caller]]",
        ));
    }
    Ok(())
}

/// Reads a `[[caller]]` table, the `n`th of the file.
pub(super) fn from_table(table: Table, n: usize) -> Result<CallerEntry, ConfigError> {
    let mut entry = CallerEntry::new("");
    entry::fill(&mut entry, KEYS, &entry::from_table(table)?, &format!("caller {}", n + 1))?;
    entry.check()
}
