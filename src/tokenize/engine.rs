//! The engine's own tokenizer behind its HTTP API.

use serde::Serialize;
use serde_json::{Value, json};

use super::chat::Fields;
use super::{Chat, Tokenize};
use crate::block::TokenId;
use crate::error::{Error, ErrorKind};

/// Asks a vLLM-like engine's `POST /tokenize`. The HTTP call is the caller's: this writes the body and reads the
/// answer.
pub struct EngineTokenizer<F> {
    model: String,
    post: F,
}

impl<F> std::fmt::Debug for EngineTokenizer<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineTokenizer").field("model", &self.model).finish_non_exhaustive()
    }
}

impl<F> EngineTokenizer<F>
where
    F: Fn(&str) -> Result<String, Error>,
{
    /// `post` sends a JSON body to `/tokenize` of an engine that serves `model` and gives the body of its answer. It bounds
    /// time and size, and its errors are the caller's.
    pub fn new(model: &str, post: F) -> EngineTokenizer<F> {
        EngineTokenizer { model: model.to_owned(), post }
    }

    fn ask(&self, body: &impl Serialize) -> Result<Vec<TokenId>, Error> {
        let unreadable = |what: &str| {
            Error::new(ErrorKind::Unavailable, format!("the engine's /tokenize: {what}"))
        };
        let body =
            serde_json::to_string(body).map_err(|error| Error::invalid(error.to_string()))?;
        let answer = (self.post)(&body)?;
        let answer: Value =
            serde_json::from_str(&answer).map_err(|_| unreadable("the answer is no JSON"))?;
        let tokens = answer["tokens"].as_array().ok_or_else(|| unreadable("no tokens in it"))?;
        let ids = tokens.iter().map(|id| TokenId::try_from(id.as_u64()?).ok());
        ids.collect::<Option<_>>().ok_or_else(|| unreadable("a token that is no 32-bit id"))
    }
}

impl<F> Tokenize for EngineTokenizer<F>
where
    F: Fn(&str) -> Result<String, Error> + Send + Sync,
{
    fn text(&self, text: &str, special: bool) -> Result<Vec<TokenId>, Error> {
        self.ask(&json!({ "model": self.model, "prompt": text, "add_special_tokens": special }))
    }

    fn chat(&self, chat: &Chat) -> Result<Vec<TokenId>, Error> {
        self.ask(&Asked { model: &self.model, fields: &chat.fields })
    }
}

/// Written as it is, without a [`Value`] in between, which would sort the keys: templates print a tool's
/// parameters in the order in which they came.
#[derive(Serialize)]
struct Asked<'a> {
    model: &'a str,
    #[serde(flatten)]
    fields: &'a Fields,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_asked_for_what_was_asked_and_its_ids_are_read() {
        let engine = EngineTokenizer::new("m", |body: &str| {
            let body: Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["model"], "m");
            if body["prompt"] == "hi" {
                assert_eq!(body["add_special_tokens"], true);
                return Ok(r#"{"count": 2, "max_model_len": 9, "tokens": [1, 4294967295]}"#.into());
            }
            assert_eq!(body["messages"][0]["content"], "yo");
            assert_eq!(body["add_generation_prompt"], true);
            Ok(r#"{"tokens": [-1]}"#.into())
        });
        assert_eq!(engine.text("hi", true).unwrap(), [1, u32::MAX]);
        let chat = Chat::parse(r#"{"messages":[{"role":"user","content":"yo"}]}"#).unwrap();
        let error = engine.chat(&chat).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("32-bit"), "{error}");
    }

    #[test]
    fn the_keys_of_a_tool_stay_in_their_order() {
        let engine = EngineTokenizer::new("m", |body: &str| {
            assert!(
                body.contains(r#""parameters":{"type":"object","properties":{"n":1,"a":2}}"#),
                "{body}"
            );
            Ok(r#"{"tokens": [7]}"#.into())
        });
        let chat = r#"{"messages":[{"role":"user","content":"yo"}],"tools":[{"type":"function","function":
            {"name":"f","parameters":{"type":"object","properties":{"n":1,"a":2}}}}]}"#;
        assert_eq!(engine.chat(&Chat::parse(chat).unwrap()).unwrap(), [7]);
    }
}
