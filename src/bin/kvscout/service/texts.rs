//! Texts and chats to the tokens that a model's engines make of them.

mod engines;
mod turns;

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use kvscout::Error;
use kvscout::block::TokenId;
use kvscout::tokenize::{Chat, Options, Tokenize, Tokenizer};

use self::engines::Engines;
use self::turns::Turns;
use super::{Refusal, Service};
use crate::config::Config;
use crate::config::model::{ModelEntry, TokenizerSource};

/// How many questions to engines are under way at a time: they wait for the network, not for a core.
const ENGINES_AT_A_TIME: usize = 32;

/// How many texts may wait for their turn: each holds one of the 512 blocking threads, and others need
/// some, too.
const MOST_WAITING: usize = 192;

/// The tokenizers of configured models.
pub(super) struct Texts {
    models: HashMap<String, Source>,
    /// Adapters by tenant and name; each has the tokenizer of its model.
    adapters: HashMap<(String, String), String>,
    local: Turns,
    remote: Turns,
}

enum Source {
    Files(Box<Tokenizer>),
    Engines(Engines),
}

/// Without what is remembered of texts.
impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Texts").field("models", &self.models.keys()).finish_non_exhaustive()
    }
}

impl Texts {
    /// Reads every configured tokenizer.
    ///
    /// # Errors
    ///
    /// One cannot be read; the message names the model and the file.
    pub(super) fn new(config: &Config) -> Result<Texts, Error> {
        let mut models = HashMap::new();
        for entry in &config.models {
            let ModelEntry { name, tokenizer, content_format, tokenizer_memory } = entry;
            let source = match tokenizer {
                TokenizerSource::Engine => {
                    Source::Engines(Engines::new(name, config.engines_of(name)))
                }
                TokenizerSource::Files(files) => {
                    let (format, memory) = (*content_format, *tokenizer_memory);
                    let options = Options { format, memory, ..Options::default() };
                    Source::Files(Box::new(Tokenizer::load(name, files, options)?))
                }
            };
            models.insert(name.clone(), source);
        }
        let adapters = config.adapters.iter();
        let adapters = adapters
            .map(|entry| ((entry.tenant.clone(), entry.name.clone()), entry.model.clone()))
            .collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Texts {
            models,
            adapters,
            local: Turns::new(cores, MOST_WAITING),
            remote: Turns::new(ENGINES_AT_A_TIME, MOST_WAITING),
        })
    }

    /// Whether the engine at this base tokenizes for the model that it serves, or for any.
    pub(super) fn set_engine(&self, serves: Option<&str>, base: &str, is_there: bool) {
        for (model, source) in &self.models {
            if let Source::Engines(engines) = source
                && serves.is_none_or(|serves| serves == model)
            {
                engines.set(base, is_there);
            }
        }
    }

    fn source(&self, tenant: &str, model: &str) -> Option<&Source> {
        let adapter = || self.adapters.get(&(tenant.to_owned(), model.to_owned()));
        self.models.get(model).or_else(|| self.models.get(adapter()?))
    }

    fn tokens(
        &self,
        tenant: &str,
        model: &str,
        ask: impl FnOnce(&dyn Tokenize) -> Result<Vec<TokenId>, Error>,
    ) -> Result<Vec<TokenId>, Refusal> {
        match self.source(tenant, model) {
            Some(Source::Files(tokenizer)) => {
                let _turn = self.local.take()?;
                Ok(ask(tokenizer.as_ref())?)
            }
            Some(Source::Engines(engines)) => {
                let _turn = self.remote.take()?;
                engines.tokens(ask)
            }
            None => Err(Refusal::Invalid(format!(
                "model {model:?} has no tokenizer here: set [models.{model:?}] tokenizer in the configuration, or \
                 give token ids"
            ))),
        }
    }
}

impl Service {
    /// Whether texts for a model, or for an adapter of the tenant, can be tokenized.
    pub(crate) fn has_tokenizer(&self, tenant: &str, model: &str) -> bool {
        self.texts.source(tenant, model).is_some()
    }

    /// The tokens of a text, as the engines of a model, or of an adapter of the tenant, make them; `special`: with
    /// the special tokens that the model wants around a completion's text.
    ///
    /// May take long, or wait: asynchronous callers go through a blocking thread. A refusal may quote the text; it
    /// is for who asked, and for no log.
    pub(crate) fn tokens_of_text(
        &self,
        tenant: &str,
        model: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<TokenId>, Refusal> {
        self.tokens(tenant, model, |tokenizer| tokenizer.text(text, special))
    }

    /// The tokens of a chat's prompt; the rest as for [`tokens_of_text`](Service::tokens_of_text).
    pub(crate) fn tokens_of_chat(
        &self,
        tenant: &str,
        model: &str,
        chat: &Chat,
    ) -> Result<Vec<TokenId>, Refusal> {
        self.tokens(tenant, model, |tokenizer| tokenizer.chat(chat))
    }

    fn tokens(
        &self,
        tenant: &str,
        model: &str,
        ask: impl FnOnce(&dyn Tokenize) -> Result<Vec<TokenId>, Error>,
    ) -> Result<Vec<TokenId>, Refusal> {
        let by = match self.texts.source(tenant, model) {
            Some(Source::Files(_)) => "files",
            Some(Source::Engines(_)) => "engine",
            None => return self.texts.tokens(tenant, model, ask),
        };
        let begun = Instant::now();
        let tokens = self.texts.tokens(tenant, model, ask);
        self.metrics.count_text(by, begun.elapsed());
        tokens
    }
}
