//! `[[adapter]]`: a LoRA adapter that requests may name instead of its model.

use kvscout::scout::{Adapter, Registration};
use toml::Table;

use super::setting::{Key, Setting, assign, keys};
use super::{ConfigError, entry};

/// One adapter of one tenant.
#[derive(Clone, Debug)]
pub(crate) struct AdapterEntry {
    /// The tenant.
    pub(crate) tenant: String,
    /// The name that requests use.
    pub(crate) name: String,
    /// The model it belongs to.
    pub(crate) model: String,
    /// The engine's integer id.
    pub(crate) id: Option<u32>,
    /// The path as the engine sees it.
    pub(crate) path: Option<String>,
}

/// Every key of an `[[adapter]]`.
pub(crate) const KEYS: &[Key<AdapterEntry>] = keys! { AdapterEntry {
    "tenant" => tenant;
    "name" => name;
    "model" => model;
    "id" => id;
    "path" => path;
}};

impl AdapterEntry {
    /// What is registered under its name.
    pub(crate) fn adapter(&self) -> Adapter {
        let id = self.id.map(i64::from);
        Adapter { model: self.model.clone(), id, path: self.path.clone() }
    }
}

/// Reads an `[[adapter]]` table, the `n`th of the file.
pub(super) fn from_table(table: Table, n: usize) -> Result<AdapterEntry, ConfigError> {
    let mut entry = AdapterEntry {
        tenant: Registration::DEFAULT_TENANT.to_owned(),
        name: String::new(),
        model: String::new(),
        id: None,
        path: None,
    };
    let named = format!("adapter {}", n + 1);
    entry::fill(&mut entry, KEYS, &entry::from_table(table)?, &named)?;
    for (path, value) in [("name", &entry.name), ("model", &entry.model)] {
        if value.is_empty() {
            return Err(ConfigError(format!("{named}: no {path}")));
        }
    }
    Ok(entry)
}
