//! `[[caller]]`: someone who may do something, where not everyone may.

use toml::Value;

use super::setting::{Key, Setting, assign, keys};
use super::{ConfigError, set, texts, unknown};
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

/// Reads a `[[caller]]` table, the `n`th of the file.
pub(super) fn from_table(table: Value, n: usize) -> Result<CallerEntry, ConfigError> {
    let Value::Table(table) = table else {
        return Err(ConfigError::new("caller is a list of tables; write [[caller]]"));
    };
    let mut entry = CallerEntry::new("");
    for (path, value) in table {
        let named = format!("caller {}", n + 1);
        let key = KEYS.iter().find(|key| key.path == path).ok_or_else(|| {
            let error = unknown(&path, KEYS.iter().map(|key| key.path));
            ConfigError(format!("{named}: {error}"))
        })?;
        set(key, &mut entry, &texts(&path, value)?, &format!("{named}, {path}"))?;
    }
    entry.check()
}
