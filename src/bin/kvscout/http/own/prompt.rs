//! A question's prompt: token ids, a text or a chat.

use kvscout::block::TokenId;
use kvscout::tokenize::Chat;

use super::super::App;
use super::super::body::Fields;
use super::super::refusal::HttpError;
use crate::service::{Question, Refusal};

/// Every field of a prompt.
pub(super) const FIELDS: [&str; 11] = [
    "token_ids",
    "prompt",
    "messages",
    "add_special_tokens",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
];

/// What a prompt may be; a question has one of them.
const FORMS: [&str; 3] = ["token_ids", "prompt", "messages"];

/// The fields that go with a text, and those that go with a chat.
const OF_TEXT: &[&str] = &["add_special_tokens"];
const OF_CHAT: &[&str] = FIELDS.split_at(3).1;

/// Whether a question has to be tokenized, which takes longer than what else is to be done.
pub(in super::super) fn has_text(fields: &Fields<'_>) -> bool {
    fields.has("prompt") || fields.has("messages")
}

/// The tokens of a question's prompt.
pub(super) fn tokens(
    app: &App,
    fields: &Fields<'_>,
    question: &Question,
) -> Result<Vec<TokenId>, HttpError> {
    let mut given = FORMS.into_iter().filter(|name| fields.has(name));
    let form = given.next();
    if let (Some(first), Some(second)) = (form, given.next()) {
        let wrong = format!("given beside '{first}': give one of {}", FORMS.join(", "));
        return Err(HttpError::field(fields.place(second), wrong));
    }
    let goes_with: &[&str] = match form {
        Some("prompt") => OF_TEXT,
        Some("messages") => OF_CHAT,
        _ => &[],
    };
    let stray = |name: &&str| !goes_with.contains(name) && fields.has(name);
    if let (Some(form), Some(name)) = (form, OF_CHAT.iter().find(|name| stray(name))) {
        let wrong = format!("does not go with '{form}'");
        return Err(HttpError::field(fields.place(name), wrong));
    }
    let Some(form @ ("prompt" | "messages")) = form else {
        return match form {
            Some(_) => fields.tokens("token_ids"),
            None => Err(HttpError::field(
                fields.place("token_ids"),
                format!("missing; give one of {}", FORMS.join(", ")),
            )),
        };
    };
    if !question.media.is_empty() {
        let wrong =
            format!("does not go with '{form}': where an item is in a text only its engine knows");
        return Err(HttpError::field(fields.place("mm"), wrong));
    }
    let Some(model) = question.model.as_deref() else {
        let wrong = format!("missing; '{form}' needs the model whose tokenizer is asked");
        return Err(HttpError::field(fields.place("model"), wrong));
    };
    let wrong = |message: String| HttpError::field(fields.place(form), message);
    let tokens = if form == "prompt" {
        let special = fields.flag("add_special_tokens")?.unwrap_or(true);
        let text = fields.whole_text("prompt")?;
        app.service.tokens_of_text(question.tenant(), model, &text, special)
    } else {
        let chat = Chat::parse(&chat(fields)?).map_err(|error| wrong(error.to_string()))?;
        app.service.tokens_of_chat(question.tenant(), model, &chat)
    };
    tokens.map_err(|refusal| match refusal {
        Refusal::Invalid(message) => wrong(message),
        refusal => HttpError::from(refusal).within(fields),
    })
}

/// The JSON of a chat, each field of the type that it has to have.
fn chat(fields: &Fields<'_>) -> Result<String, HttpError> {
    for name in ["messages", "tools"] {
        fields.is_list(name)?;
    }
    for name in ["add_special_tokens", "add_generation_prompt", "continue_final_message"] {
        fields.flag(name)?;
    }
    for name in ["chat_template", "reasoning_effort"] {
        fields.text(name)?;
    }
    fields.json_of(&[&["messages"], OF_CHAT].concat())
}
