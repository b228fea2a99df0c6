//! `tokenizer_config.json` and the templates beside it, as transformers reads them.

use serde_json::Value;

use super::files::{self, Files};
use crate::error::Error;

/// The single special tokens that a template may name.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the files beside `tokenizer.json` say.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// Name and text of each special token, and lists of further ones as they are.
    pub(super) special: Vec<(String, Value)>,
    /// Name and text of each chat template; a single one is `default`.
    pub(super) templates: Vec<(String, String)>,
    /// Tokens that the file adds to those of `tokenizer.json`.
    pub(super) added: Vec<Value>,
}

impl Config {
    /// Reads them; a file that is not there says nothing.
    ///
    /// # Errors
    ///
    /// A file is there and is not what it has to be.
    pub(super) fn read(files: &Files) -> Result<Config, Error> {
        let path = files.folder.join("tokenizer_config.json");
        let refuse = |what: &str| Error::invalid(format!("{}: {what}", path.display()));
        let json: Value = match files::read_if_there(&path, files::MAX_CONFIG)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| refuse(&format!("not JSON: {error}")))?,
            None => Value::Object(serde_json::Map::new()),
        };
        if !json.is_object() {
            return Err(refuse("has to be a JSON object"));
        }
        // `add_bos_token` and `add_eos_token` have no effect beside a tokenizer.json: its post-processor
        // says what is put around a text (transformers 5, `_from_pretrained`).
        Ok(Config {
            special: special(&json, files)?,
            templates: templates(&json, files)?,
            added: added(&json).map_err(|what| refuse(&what))?,
        })
    }
}

/// A token is its text, or an object with it.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn special(json: &Value, files: &Files) -> Result<Vec<(String, Value)>, Error> {
    let path = files.folder.join("special_tokens_map.json");
    let older: Value = match files::read_if_there(&path, files::MAX_CONFIG)? {
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| Error::invalid(format!("{}: not JSON: {error}", path.display())))?,
        None => Value::Null,
    };
    let mut special = Vec::new();
    for name in NAMED {
        // What the configuration says wins, also that there is none.
        let token = json.get(name).unwrap_or(&older[name]);
        if let Some(text) = token_text(token) {
            special.push((name.to_owned(), Value::from(text)));
        }
    }
    for name in ["additional_special_tokens", "extra_special_tokens"] {
        match json.get(name).unwrap_or(&older[name]) {
            Value::Array(tokens) => {
                let texts: Vec<Value> =
                    tokens.iter().filter_map(token_text).map(Value::from).collect();
                special.push((name.to_owned(), Value::from(texts)));
            }
            // Named by the model: `{"image_token": "<image>"}`.
            Value::Object(named) => {
                special.extend(named.iter().filter_map(|(name, token)| {
                    Some((name.clone(), Value::from(token_text(token)?)))
                }))
            }
            _ => {}
        }
    }
    Ok(special)
}

/// The file `chat_template.jinja` and those of its folder win over the configuration's.
fn templates(json: &Value, files: &Files) -> Result<Vec<(String, String)>, Error> {
    let mut found = Vec::new();
    let file = files.folder.join("chat_template.jinja");
    if let Some(text) = files::read_if_there(&file, files::MAX_TEMPLATE)? {
        found.push(("default".to_owned(), text));
    }
    let folder = files.folder.join("additional_chat_templates");
    for entry in folder.read_dir().into_iter().flatten().flatten().take(64) {
        let path = entry.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja"))
        {
            found.push((name.to_owned(), files::read(&path, files::MAX_TEMPLATE)?));
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let path = files.folder.join("tokenizer_config.json");
    let refuse = |what: &str| Error::invalid(format!("{}: chat_template {what}", path.display()));
    let bounded = |text: &str| match text.len() as u64 <= files::MAX_TEMPLATE {
        true => Ok(text.to_owned()),
        false => Err(refuse(&format!("is larger than {} bytes", files::MAX_TEMPLATE))),
    };
    match &json["chat_template"] {
        Value::Null => Ok(found),
        Value::String(text) => Ok(vec![("default".to_owned(), bounded(text)?)]),
        Value::Array(named) => named
            .iter()
            .map(|entry| match (entry["name"].as_str(), entry["template"].as_str()) {
                (Some(name), Some(text)) => Ok((name.to_owned(), bounded(text)?)),
                _ => Err(refuse("lists something without a name and a template")),
            })
            .collect(),
        _ => Err(refuse("has to be a text or a list of {\"name\", \"template\"}")),
    }
}

/// `added_tokens_decoder`: id -> token.
fn added(json: &Value) -> Result<Vec<Value>, String> {
    let Some(decoder) = json["added_tokens_decoder"].as_object() else { return Ok(Vec::new()) };
    let mut tokens = Vec::with_capacity(decoder.len());
    for (id, token) in decoder {
        let number = id.parse::<u32>();
        let (Ok(number), Some(text)) = (number, token["content"].as_str()) else {
            return Err(format!("added_tokens_decoder: {id:?} is no id of a token with content"));
        };
        let flag = |key: &str| token[key].as_bool().unwrap_or(false);
        tokens.push(serde_json::json!({
            "id": number, "content": text, "single_word": flag("single_word"), "lstrip": flag("lstrip"),
            "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
        }));
    }
    tokens.sort_by_key(|token| token["id"].as_u64());
    Ok(tokens)
}
