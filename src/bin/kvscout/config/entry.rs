//! How an entry of a list is read, such as `[[source]]`: from its table, or from a flag's text.

use toml::Table;

use super::ConfigError;
use super::reading::{set, texts, unknown};
use super::setting::{Key, Setting};

/// Keys and their texts, as they were given.
pub(super) type Given = Vec<(String, Vec<String>)>;

/// What a table says.
pub(super) fn from_table(table: Table) -> Result<Given, ConfigError> {
    let mut given = Vec::new();
    for (path, value) in table {
        let texts = texts(&path, value)?;
        given.push((path, texts));
    }
    Ok(given)
}

/// What `NAME=ADDRESS[,KEY=VALUE]...` says, where `address` is the key of the address; `None` if it is not of this form.
pub(super) fn from_text(text: &str, address: &str, model: Option<&str>) -> Option<Given> {
    let (name, rest) = text.split_once('=')?;
    let mut parts = rest.split(',');
    let first = parts.next().filter(|part| !part.is_empty())?;
    let pair = |key: &str, value: &str| (key.to_owned(), vec![value.to_owned()]);
    let mut given = vec![pair("name", name), pair(address, first)];
    given.extend(model.map(|model| pair("model", model)));
    for part in parts {
        let (key, value) = part.split_once('=')?;
        given.push(pair(key, value));
    }
    Some(given)
}

/// Puts everything in its place.
pub(super) fn fill<T>(
    entry: &mut T,
    keys: &[Key<T>],
    given: &Given,
    named: &str,
) -> Result<(), ConfigError> {
    for (path, texts) in given {
        let key = keys.iter().find(|key| key.path == path).ok_or_else(|| {
            let error = unknown(path, keys.iter().map(|key| key.path));
            ConfigError(format!("{named}: {error}"))
        })?;
        set(key, entry, texts, &format!("{named}, {path}"))?;
    }
    Ok(())
}

/// The value of a key without which there is no entry.
pub(super) fn required<S: Setting>(
    given: &Given,
    path: &str,
    named: &str,
) -> Result<S, ConfigError> {
    let Some((_, texts)) = given.iter().find(|(key, _)| key == path) else {
        return Err(ConfigError(format!("{named}: no {path}")));
    };
    S::read(texts).ok_or_else(|| {
        let (text, expected) = (texts.join(","), S::EXPECTED);
        ConfigError(format!("{named}, {path} {text:?}: expected {expected}"))
    })
}
