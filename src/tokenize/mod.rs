//! Text and chats to the token ids that an engine would make of them (feature `tokenizers`).
//!
//! A router that has a request's text asks [`Tokenizer`], which reads a model's `tokenizer.json` and chat
//! templates from disk and never from the network, or an engine, through [`EngineTokenizer`]. Both are
//! [`Tokenize`]. Ids must be the engine's, each of them: one that differs ends every match there.
//!
//! ```
//! use kvscout::tokenize::{Chat, Options, Tokenize, Tokenizer};
//!
//! # let folder = std::env::temp_dir().join(format!("kvscout-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).unwrap();
//! // A tokenizer of single bytes with one special token; a model's folder has larger ones.
//! # let alphabet = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń');
//! # let vocab: serde_json::Map<String, serde_json::Value> =
//! #     alphabet.enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
//! # let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true, "trim_offsets": true});
//! # let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
//! #     "added_tokens": [{"id": 256, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
//! #         "normalized": false, "special": true}],
//! #     "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
//! #     "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
//! #         "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}});
//! # std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
//! let config = r#"{"eos_token": "<end>", "chat_template":
//!     "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"}"#;
//! std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
//!
//! let tokenizer = Tokenizer::load("tiny", folder.to_str().unwrap(), Options::default())?;
//! let chat = Chat::parse(r#"{"messages": [{"role": "user", "content": "hi"}]}"#)?;
//! assert_eq!(tokenizer.render(&chat)?, "u:hi<end>");
//! assert_eq!(tokenizer.chat(&chat)?, [84, 25, 71, 72, 256]);
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok::<(), kvscout::Error>(())
//! ```
//!
//! # The next turn
//!
//! A tokenizer remembers the pieces of the texts it was asked for, within [`Options::memory`] bytes. A chat
//! that goes on is looked up piece by piece; what is new is tokenized, together with the last piece before
//! it. Texts are cut only where the ids of the pieces are known to be those of the whole: before
//! special tokens, and for byte-level BPE with a known split between a letter and a space. A
//! tokenizer for which neither holds remembers nothing ([`Tokenizer::remembers`]).
//!
//! `docs/tokenizers.md` has the rules that are taken from engines, version by version.

mod chat;
mod config;
mod cut;
mod encoder;
mod engine;
mod files;
mod format;
mod operators;
mod pieces;
mod python;
mod template;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use minijinja::value::Value;

pub use self::chat::Chat;
pub use self::engine::EngineTokenizer;
pub use self::format::ContentFormat;

use self::chat::Map;
use self::config::Config;
use self::cut::Cuts;
use self::encoder::Encoder;
use self::files::Files;
use self::pieces::Pieces;
use self::template::Templates;
use crate::block::TokenId;
use crate::error::Error;

/// What makes token ids of texts and chats.
pub trait Tokenize: Send + Sync {
    /// The ids of a text. `special`: whether the special tokens that the model wants around a text (BOS) are
    /// put there; engines do so for completions unless told otherwise.
    ///
    /// # Errors
    ///
    /// The text is too long, or an engine does not answer.
    fn text(&self, text: &str, special: bool) -> Result<Vec<TokenId>, Error>;

    /// The ids of a chat's prompt. No special tokens are put around it unless it asks for them: its
    /// template writes them.
    ///
    /// # Errors
    ///
    /// As for [`text`](Self::text), or the template refuses the chat.
    fn chat(&self, chat: &Chat) -> Result<Vec<TokenId>, Error>;
}

/// Limits and choices of a [`Tokenizer`].
///
/// # Defaults
///
/// `max_text` 8 MiB, some two million tokens; `memory` 64 MiB, the texts and ids of some 8 million tokens; `format`
/// as the template seems to want it; `now` the clock.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes that a text or a rendered prompt may have.
    pub max_text: usize,
    /// Bytes for pieces of texts and their ids; 0 remembers nothing.
    pub memory: usize,
    /// How contents reach the template; engines have `--chat-template-content-format` for it.
    pub format: ContentFormat,
    /// What templates take for the present (`strftime_now`, in UTC), for answers that can be repeated.
    pub now: Option<SystemTime>,
}

impl Default for Options {
    fn default() -> Options {
        Options { max_text: 8 << 20, memory: 64 << 20, format: ContentFormat::Auto, now: None }
    }
}

/// How much a [`Tokenizer`] remembers, and what that spared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Bytes of texts, ids and what is needed to find them.
    pub bytes: usize,
    /// Pieces of texts.
    pub pieces: usize,
    /// Bytes of all texts and prompts whose ids were asked for.
    pub asked: u64,
    /// How many of those had to be tokenized.
    pub tokenized: u64,
}

/// One model's tokenizer and chat templates, read from files.
#[derive(Debug)]
pub struct Tokenizer {
    model: String,
    encoder: Encoder,
    cuts: Cuts,
    pieces: Pieces,
    templates: Templates,
    special: Vec<(String, Value)>,
    options: Options,
    asked: AtomicU64,
    tokenized: AtomicU64,
}

impl Tokenizer {
    /// Reads the files of `model`, a name for messages. `source` is a `tokenizer.json`, a folder that has one, or the name
    /// of a model in the local Hugging Face cache: `org/name`, or `org/name@revision`.
    ///
    /// # Errors
    ///
    /// A file is not there, is too large, or is not what it has to be; the message names the model and the file.
    pub fn load(model: &str, source: &str, options: Options) -> Result<Tokenizer, Error> {
        let cache = files::hub_cache(|name| std::env::var(name).ok());
        Tokenizer::load_from(model, source, &cache, options).map_err(|error| named(model, error))
    }

    fn load_from(
        model: &str,
        source: &str,
        cache: &std::path::Path,
        options: Options,
    ) -> Result<Tokenizer, Error> {
        let files = Files::find(source, cache)?;
        let text = files::read(&files.tokenizer, files::MAX_TOKENIZER)?;
        let mut json: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
            Error::invalid(format!("{}: not JSON: {error}", files.tokenizer.display()))
        })?;
        drop(text);
        let config = Config::read(&files)?;
        add_tokens(&mut json, &config);
        let encoder = Encoder::new(&json, &files.tokenizer)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|error| Error::invalid(format!("no randomness for a seed: {error}")))?;
        Ok(Tokenizer {
            model: model.to_owned(),
            encoder,
            cuts: Cuts::new(&json),
            pieces: Pieces::new(options.memory, u64::from_ne_bytes(seed)),
            templates: Templates::new(&config.templates, options.max_text, options.now)?,
            special: config
                .special
                .into_iter()
                .filter_map(|(name, value)| Some((name, serde_json::from_value(value).ok()?)))
                .collect(),
            options,
            asked: AtomicU64::new(0),
            tokenized: AtomicU64::new(0),
        })
    }

    /// The prompt that the model's template makes of a chat.
    ///
    /// # Errors
    ///
    /// The model has no template, or it refuses the chat, fails, or writes more than [`Options::max_text`]; the message
    /// names the model.
    pub fn render(&self, chat: &Chat) -> Result<String, Error> {
        self.rendered(chat).map_err(|error| named(&self.model, error))
    }

    /// What is remembered of texts.
    pub fn remembered(&self) -> Remembered {
        let (bytes, pieces) = self.pieces.size();
        let [asked, tokenized] = [&self.asked, &self.tokenized].map(|n| n.load(Relaxed));
        Remembered { bytes, pieces, asked, tokenized }
    }

    /// Whether texts of this tokenizer can be cut safely, so that pieces are remembered.
    pub fn remembers(&self) -> bool {
        self.cuts.any() && self.options.memory > 0
    }

    fn rendered(&self, chat: &Chat) -> Result<String, Error> {
        let fields = &chat.fields;
        let tools = chat.tools()?;
        let name = self.templates.pick(fields.chat_template.as_deref(), tools.is_some())?;
        let source = self.templates.source(name);
        let format = match self.options.format {
            ContentFormat::Auto => ContentFormat::detect(source),
            given => given,
        };
        let mut messages = chat.conversation(format, source)?;
        let last = match fields.continue_final_message {
            true => Some(tag_last(&mut messages, source)?),
            false => None,
        };
        let mut variables = Map::default();
        for (name, value) in &self.special {
            variables.set(name, value.clone());
        }
        if let Some(effort) = &fields.reasoning_effort {
            // vLLM 0.33, `build_chat_params`.
            variables.set("reasoning_effort", Value::from(effort.as_str()));
            variables.set("enable_thinking", Value::from(effort != "none"));
        }
        if let Some(kwargs) =
            fields.chat_template_kwargs.as_ref().filter(|kwargs| !kwargs.is_none())
        {
            for key in kwargs.try_iter().into_iter().flatten() {
                if let (Some(name), Ok(value)) = (key.as_str(), kwargs.get_item(&key)) {
                    variables.set(name, value);
                }
            }
        }
        variables.set("messages", Value::from_iter(messages.into_iter().map(Value::from)));
        variables.set("tools", tools.map_or(Value::from(()), Value::from));
        variables.set("documents", fields.documents.clone().unwrap_or(Value::from(())));
        variables.set("add_generation_prompt", Value::from(fields.add_generation_prompt));
        let limit = self.options.max_text;
        let text = self.templates.render(name, variables.into(), chat.bytes, limit)?;
        match last {
            Some(last) => untagged(text, &last),
            None => Ok(text),
        }
    }

    fn append(&self, text: &str, out: &mut Vec<TokenId>) -> Result<(), Error> {
        if text.len() > self.options.max_text {
            return Err(Error::invalid(format!(
                "the text has {} bytes, more than {}",
                text.len(),
                self.options.max_text
            )));
        }
        self.asked.fetch_add(text.len() as u64, Relaxed);
        if !self.remembers() {
            return self.encode(text, out);
        }
        let mut outcome = Ok(());
        self.cuts.pieces(text, |range| {
            let piece = &text[range];
            if outcome.is_err() || self.pieces.append(piece, out) {
                return;
            }
            let from = out.len();
            outcome = self.encode(piece, out);
            if outcome.is_ok() {
                self.pieces.insert(piece, &out[from..]);
            }
        });
        outcome
    }

    fn encode(&self, text: &str, out: &mut Vec<TokenId>) -> Result<(), Error> {
        self.tokenized.fetch_add(text.len() as u64, Relaxed);
        self.encoder.append(text, out)
    }

    fn framed(&self, text: &str, special: bool) -> Result<Vec<TokenId>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        if special {
            ids.extend(&self.encoder.before);
        }
        self.append(text, &mut ids).map_err(|error| named(&self.model, error))?;
        if special {
            ids.extend(&self.encoder.behind);
        }
        Ok(ids)
    }
}

impl Tokenize for Tokenizer {
    fn text(&self, text: &str, special: bool) -> Result<Vec<TokenId>, Error> {
        self.framed(text, special)
    }

    fn chat(&self, chat: &Chat) -> Result<Vec<TokenId>, Error> {
        self.framed(&self.render(chat)?, chat.fields.add_special_tokens)
    }
}

fn named(model: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("model {model:?}: {error}"))
}

/// transformers' way of finding where the last message ends (`render_jinja_template`).
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Marks the end of the last message's text; the text itself.
fn tag_last(messages: &mut [Map], template: &str) -> Result<String, Error> {
    if !template.contains("content") {
        return Err(Error::invalid("continue_final_message: the template does not show contents"));
    }
    let nothing = || Error::invalid("continue_final_message: the last message has no text");
    let message = messages.last_mut().ok_or_else(nothing)?;
    let content = message.get("content").cloned().ok_or_else(nothing)?;
    if let Some(text) = content.as_str() {
        message.set("content", Value::from(format!("{text}{TAG}")));
        return Ok(text.to_owned());
    }
    let mut parts: Vec<Value> = content.try_iter().into_iter().flatten().collect();
    let part = parts.last_mut().ok_or_else(nothing)?;
    let text = part.get_attr("text").ok().and_then(|text| text.as_str().map(str::to_owned));
    let text = text.ok_or_else(nothing)?;
    let mut tagged = Map::default();
    for key in part.try_iter().into_iter().flatten() {
        tagged.set(key.as_str().unwrap_or(""), part.get_item(&key).unwrap_or_default());
    }
    tagged.set("text", Value::from(format!("{text}{TAG}")));
    *part = tagged.into();
    message.set("content", Value::from(parts));
    Ok(text)
}

/// The prompt up to the end of the last message's text.
fn untagged(mut text: String, last: &str) -> Result<String, Error> {
    let at = text.rfind(TAG.trim_end()).filter(|_| text.contains(last.trim()));
    let at = at.ok_or_else(|| {
        Error::invalid("continue_final_message: the last message is not in the prompt as it is")
    })?;
    let whole = text[at..].starts_with(TAG);
    text.truncate(at);
    if !whole {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// Adds the configuration's tokens that `tokenizer.json` does not have.
fn add_tokens(json: &mut serde_json::Value, config: &Config) {
    if config.added.is_empty() {
        return;
    }
    if !json["added_tokens"].is_array() {
        json["added_tokens"] = serde_json::Value::Array(Vec::new());
    }
    let Some(tokens) = json["added_tokens"].as_array_mut() else { return };
    for token in &config.added {
        if !tokens.iter().any(|known| known["content"] == token["content"]) {
            tokens.push(token.clone());
        }
    }
}
