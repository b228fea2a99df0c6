//! From the file, the environment and the flags to values, in this order.

use std::path::Path;

use toml::{Table, Value};

use super::discover::DiscoverEntry;
use super::setting::Key;
use super::source::SourceEntry;
use super::{Config, ConfigError, KEYS, adapter, caller, discover, model, source};
use crate::Failure;

/// What the command line says, key by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// Keys of [`KEYS`] and their texts.
    pub(crate) keys: Vec<(&'static str, Vec<String>)>,
    /// `--source`.
    pub(crate) sources: Vec<String>,
    /// `--discover`.
    pub(crate) discover: Vec<String>,
    /// `--model`.
    pub(crate) model: Option<String>,
}

impl Config {
    /// The effective configuration of this process, with a file if one is given.
    ///
    /// # Errors
    ///
    /// As [`from_sources`](Config::from_sources); or the file cannot be read.
    pub(crate) fn load(path: Option<&Path>, flags: &Flags) -> Result<Config, Failure> {
        let read = |path: &Path| {
            let unread = |error| Failure::Usage(format!("--config {}: {error}", path.display()));
            std::fs::read_to_string(path).map_err(unread)
        };
        let file = path.map(read).transpose()?;
        // What is no UTF-8 cannot be a valid value either and shows as what it is.
        let environment =
            |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Ok(Config::from_sources(file.as_deref(), &environment, flags)?)
    }

    /// The effective configuration: defaults, then `file`, then the environment, then `flags`.
    ///
    /// A source of a later origin replaces the one of the same tenant and name.
    ///
    /// # Errors
    ///
    /// An unknown key, a value of the wrong type or range, or values that contradict each other.
    pub(crate) fn from_sources(
        file: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
        flags: &Flags,
    ) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        if let Some(file) = file {
            config.read_file(file)?;
        }
        for key in KEYS {
            let variable = variable(key.path);
            if let Some(text) = environment(&variable) {
                set(key, &mut config, &[text], &variable)?;
            }
        }
        let model = flags.model.clone().or_else(|| environment("KVSCOUT_MODEL"));
        if let Some(list) = environment("KVSCOUT_SOURCES") {
            for text in list.split_whitespace() {
                config.add_source(source::from_text(text, model.as_deref(), "KVSCOUT_SOURCES")?);
            }
        }
        if let Some(list) = environment("KVSCOUT_DISCOVER") {
            for text in list.split_whitespace() {
                let entry = discover::from_text(text, model.as_deref(), "KVSCOUT_DISCOVER")?;
                config.add_discover(entry);
            }
        }
        for (path, texts) in &flags.keys {
            // The command line names its keys itself.
            let Some(key) = KEYS.iter().find(|key| key.path == *path) else { continue };
            let flag = match *path {
                "grpc.listen" => "grpc".to_owned(),
                "state.dir" => "state".to_owned(),
                "store.address" => "store".to_owned(),
                "store.mode" => "mode".to_owned(),
                path => path.replace(['.', '_'], "-"),
            };
            set(key, &mut config, texts, &format!("--{flag}"))?;
        }
        for text in &flags.sources {
            config.add_source(source::from_text(text, model.as_deref(), "--source")?);
        }
        for text in &flags.discover {
            config.add_discover(discover::from_text(text, model.as_deref(), "--discover")?);
        }
        config.check()?;
        Ok(config)
    }

    fn read_file(&mut self, text: &str) -> Result<(), ConfigError> {
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
            let message = error.message().lines().collect::<Vec<_>>().join(" ");
            ConfigError(format!("configuration file, line {line}: {message}"))
        })?;
        if let Some(tables) = table.remove("models") {
            self.models = model::from_tables(tables)?;
        }
        for (path, value) in flatten(table) {
            match LISTS.iter().find(|list| list.name == path) {
                Some(list) => list.read(self, value)?,
                None => self.read_key(&path, value)?,
            }
        }
        Ok(())
    }

    fn read_key(&mut self, path: &str, value: Value) -> Result<(), ConfigError> {
        let lists = LISTS.iter().map(|list| list.name);
        let known = KEYS.iter().map(|key| key.path).chain(lists).chain(["models"]);
        let key = KEYS.iter().find(|key| key.path == path).ok_or_else(|| unknown(path, known))?;
        set(key, self, &texts(path, value)?, path)
    }

    fn add_source(&mut self, source: SourceEntry) {
        let same = |other: &SourceEntry| other.name == source.name && other.tenant == source.tenant;
        match self.sources.iter_mut().find(|other| same(other)) {
            Some(other) => *other = source,
            None => self.sources.push(source),
        }
    }

    fn add_discover(&mut self, entry: DiscoverEntry) {
        match self.discover.iter_mut().find(|other| other.name == entry.name) {
            Some(other) => *other = entry,
            None => self.discover.push(entry),
        }
    }
}

/// A list of tables in the file, such as `[[source]]`.
struct List {
    name: &'static str,
    /// Adds the so-manieth table.
    add: fn(&mut Config, Table, usize) -> Result<(), ConfigError>,
}

const LISTS: [List; 4] = [
    List {
        name: "source",
        add: |config, table, n| source::from_table(table, n).map(|entry| config.add_source(entry)),
    },
    List {
        name: "discover",
        add: |config, table, n| {
            discover::from_table(table, n).map(|entry| config.add_discover(entry))
        },
    },
    List {
        name: "adapter",
        add: |config, table, n| {
            adapter::from_table(table, n).map(|entry| config.adapters.push(entry))
        },
    },
    List {
        name: "caller",
        add: |config, table, n| {
            caller::from_table(table, n).map(|entry| config.callers.push(entry))
        },
    },
];

impl List {
    fn read(&self, config: &mut Config, value: Value) -> Result<(), ConfigError> {
        let name = self.name;
        let wrong = || ConfigError(format!("{name} is a list of tables; write [[{name}]]"));
        let Value::Array(tables) = value else { return Err(wrong()) };
        for (n, table) in tables.into_iter().enumerate() {
            let Value::Table(table) = table else { return Err(wrong()) };
            (self.add)(config, table, n)?;
        }
        Ok(())
    }
}

/// The environment variable of a key.
///
/// Variables of other names are ignored: Kubernetes sets `KVSCOUT_PORT` and the like itself for a
/// service called kvscout.
fn variable(path: &str) -> String {
    format!("KVSCOUT_{}", path.replace('.', "_").to_uppercase())
}

pub(super) fn set<T>(
    key: &Key<T>,
    of: &mut T,
    texts: &[String],
    named: &str,
) -> Result<(), ConfigError> {
    (key.set)(of, texts).map_err(|expected| {
        ConfigError(format!("{named} {:?}: expected {expected}", shown(key.path, texts)))
    })
}

/// A wrong value, without a password that may be in it.
fn shown(path: &str, texts: &[String]) -> String {
    let text = texts.join(",");
    match text.rfind('@').filter(|_| path == "store.address") {
        Some(at) => format!("...{}", &text[at..]),
        None => text,
    }
}

/// The keys of a file by their dotted paths.
fn flatten(table: Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                flat.extend(inner.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => flat.push((name, value)),
        }
    }
    flat
}

/// A value's texts: one, or those of a list.
pub(super) fn texts(path: &str, value: Value) -> Result<Vec<String>, ConfigError> {
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(value) => Ok(value.to_string()),
        other => Err(ConfigError(format!(
            "{path}: expected one value or a list of values, found {}",
            other.type_str()
        ))),
    };
    match value {
        Value::Array(values) => values.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

pub(super) fn unknown<'a>(path: &str, known: impl Iterator<Item = &'a str>) -> ConfigError {
    let nearest = known.min_by_key(|known| distance(path, known)).unwrap_or_default();
    ConfigError(format!("unknown key {path:?}; the nearest known one is {nearest:?}"))
}

/// Insertions, deletions and replacements that make one text of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
