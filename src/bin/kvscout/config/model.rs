//! `[models.NAME]`: how a model's texts become tokens.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use kvscout::tokenize::{self, ContentFormat};
use toml::{Table, Value};

use super::ConfigError;
use super::reading::{set, texts, unknown};
use super::setting::{Key, Setting, assign, keys};

/// One model that can be asked about by text.
#[derive(Clone, Debug)]
pub(crate) struct ModelEntry {
    /// The model, as requests name it.
    pub(crate) name: String,
    /// What makes its tokens.
    pub(crate) tokenizer: TokenizerSource,
    /// How contents of messages reach its chat template.
    pub(crate) content_format: ContentFormat,
    /// Bytes for texts that were asked for before, and their tokens.
    pub(crate) tokenizer_memory: usize,
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenizerSource {
    /// A `tokenizer.json`, its folder, or a name in the Hugging Face cache.
    Files(String),
    /// The `/tokenize` of the model's engines.
    Engine,
}

impl FromStr for TokenizerSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<TokenizerSource, Infallible> {
        Ok(match text {
            "engine" => TokenizerSource::Engine,
            files => TokenizerSource::Files(files.to_owned()),
        })
    }
}

impl fmt::Display for TokenizerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenizerSource::Files(files) => files,
            TokenizerSource::Engine => "engine",
        })
    }
}

/// Every key of a `[models.NAME]`.
pub(crate) const KEYS: &[Key<ModelEntry>] = keys! { ModelEntry {
    "tokenizer" => tokenizer;
    "content_format" => content_format;
    "tokenizer_memory" => tokenizer_memory;
}};

/// Reads the `[models]` of a file.
pub(super) fn from_tables(tables: Value) -> Result<Vec<ModelEntry>, ConfigError> {
    let wrong = || ConfigError::new("models is a table of tables; write [models.NAME]");
    let Value::Table(tables) = tables else { return Err(wrong()) };
    let read = |(name, table): (String, Value)| match table {
        Value::Table(table) => from_table(name, table),
        _ => Err(wrong()),
    };
    tables.into_iter().map(read).collect()
}

fn from_table(name: String, table: Table) -> Result<ModelEntry, ConfigError> {
    // A name with dots that is not quoted comes as tables within tables.
    let named = format!("models.{name:?}");
    let mut entry = ModelEntry {
        name,
        tokenizer: TokenizerSource::Files(String::new()),
        content_format: ContentFormat::default(),
        tokenizer_memory: tokenize::Options::default().memory,
    };
    for (path, value) in table {
        let key = KEYS.iter().find(|key| key.path == path).ok_or_else(|| {
            let error = unknown(&path, KEYS.iter().map(|key| key.path));
            ConfigError(format!(
                "{named}: {error} (a name with a dot or a slash has to be in quotes)"
            ))
        })?;
        set(key, &mut entry, &texts(&path, value)?, &format!("{named}, {path}"))?;
    }
    if entry.tokenizer == TokenizerSource::Files(String::new()) {
        return Err(ConfigError(format!("{named}: no tokenizer")));
    }
    Ok(entry)
}
