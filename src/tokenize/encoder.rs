//! `tokenizer.json` to token ids. The only file that names the `tokenizers` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;

use crate::block::TokenId;
use crate::error::Error;

/// Texts whose ids show what the post-processor puts around a sequence.
const PROBES: [&str; 4] = ["a", "the quick", "0", "\u{4f60}"];

/// A tokenizer's rules: text in, ids out.
pub(super) struct Encoder {
    tokenizer: tokenizers::Tokenizer,
    /// What is put before and behind a text for which special tokens are asked.
    pub(super) before: Vec<TokenId>,
    pub(super) behind: Vec<TokenId>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("before", &self.before)
            .field("behind", &self.behind)
            .finish_non_exhaustive()
    }
}

impl Encoder {
    /// Builds the rules of a `tokenizer.json`, `file` being its name in messages.
    ///
    /// # Errors
    ///
    /// The file does not describe a tokenizer, or one whose ids are random.
    pub(super) fn new(json: &Value, file: &Path) -> Result<Encoder, Error> {
        let refuse = |what: String| Error::invalid(format!("{}: {what}", file.display()));
        if !json["model"].is_object() {
            return Err(refuse("no model in it; a tokenizer.json has one".to_owned()));
        }
        if json["model"]["dropout"].as_f64().is_some_and(|dropout| dropout > 0.0) {
            return Err(refuse("model.dropout makes ids random; it has to be null".to_owned()));
        }
        // The reader of the crate believes files that people publish; a panic in it is a bad file.
        let mut tokenizer = catch_unwind(|| -> Result<tokenizers::Tokenizer, String> {
            json.to_string().parse().map_err(|error: tokenizers::Error| error.to_string())
        })
        .unwrap_or_else(|_| Err("it contradicts itself".to_owned()))
        .map_err(|error| {
            // Some reasons list what they found at length.
            let error: String = error.chars().take(200).collect();
            refuse(format!("not a tokenizer that can be used: {error}"))
        })?;
        // Engines switch both off for prompts, whatever the file says (transformers,
        // `set_truncation_and_padding` with `DO_NOT_TRUNCATE` and `DO_NOT_PAD`).
        tokenizer.with_padding(None);
        let off = tokenizer.with_truncation(None).map(|_| ());
        off.map_err(|error| refuse(error.to_string()))?;
        let mut encoder = Encoder { tokenizer, before: Vec::new(), behind: Vec::new() };
        (encoder.before, encoder.behind) = encoder.frame().map_err(refuse)?;
        Ok(encoder)
    }

    /// Appends the ids of `text`, without special tokens around it.
    pub(super) fn append(&self, text: &str, out: &mut Vec<TokenId>) -> Result<(), Error> {
        out.extend_from_slice(self.encoding(text, false)?.get_ids());
        Ok(())
    }

    fn encoding(&self, text: &str, special: bool) -> Result<tokenizers::Encoding, Error> {
        // A panic in here would take down whoever serves many models.
        let done = catch_unwind(AssertUnwindSafe(|| self.tokenizer.encode_fast(text, special)));
        // What the crate says of a failure may quote the text.
        match done {
            Ok(Ok(encoding)) => Ok(encoding),
            _ => Err(Error::invalid(format!("a text of {} bytes cannot be tokenized", text.len()))),
        }
    }

    /// The ids that the post-processor puts before and behind a sequence.
    fn frame(&self) -> Result<(Vec<TokenId>, Vec<TokenId>), String> {
        for probe in PROBES {
            let ids = |special| {
                let encoding = self.encoding(probe, special).map_err(|error| error.to_string())?;
                Ok::<_, String>(encoding.get_ids().to_vec())
            };
            let (bare, framed) = (ids(false)?, ids(true)?);
            if bare.is_empty() || bare.len() > framed.len() {
                continue;
            }
            let mut places = (0..=framed.len() - bare.len())
                .filter(|&at| framed[at..at + bare.len()] == bare[..]);
            // Two places: the probe's own ids are among the special ones; another text may tell.
            if let (Some(at), None) = (places.next(), places.next()) {
                return Ok((framed[..at].to_vec(), framed[at + bare.len()..].to_vec()));
            }
        }
        Err("the post_processor does not keep a sequence as it is between special tokens"
            .to_owned())
    }
}
