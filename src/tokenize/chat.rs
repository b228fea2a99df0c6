//! A chat as routers receive it, and its messages as an engine hands them to the template.

use minijinja::value::{Value, ValueKind};
use serde::{Deserialize, Serialize};

use super::format::ContentFormat;
use crate::error::Error;

/// The parts of a chat completion request that become the prompt.
#[derive(Clone)]
pub struct Chat {
    pub(super) fields: Fields,
    /// Bytes of the JSON that it was read from.
    pub(super) bytes: usize,
}

/// As vLLM's `/v1/chat/completions` and `/tokenize` name them; others have no effect on the prompt.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Fields {
    pub(super) messages: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tools: Option<Vec<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) documents: Option<Value>,
    #[serde(default = "yes")]
    pub(super) add_generation_prompt: bool,
    #[serde(default)]
    pub(super) continue_final_message: bool,
    #[serde(default)]
    pub(super) add_special_tokens: bool,
    /// The *name* of one of the model's templates: a request cannot bring one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chat_template: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chat_template_kwargs: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_effort: Option<String>,
}

/// Without the texts.
impl std::fmt::Debug for Chat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chat")
            .field("messages", &self.fields.messages.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

fn yes() -> bool {
    true
}

/// Keys of `chat_template_kwargs` that are not variables: vLLM refuses the first two, the others
/// have fields of their own.
const TAKEN: [&str; 5] = ["chat_template", "tokenize", "messages", "tools", "conversation"];

impl Chat {
    /// Reads a chat from the JSON of an OpenAI chat completion request, or of vLLM's `/tokenize`: `messages`,
    /// `tools`, `documents`, `add_generation_prompt` (default true), `continue_final_message`,
    /// `add_special_tokens` (default false), `chat_template_kwargs`, `reasoning_effort`, and `chat_template`, which
    /// names one of the model's templates. Other fields do not change the prompt and are passed over.
    ///
    /// # Errors
    ///
    /// No JSON, or a field has another type; the message names it. Contents are not in the message.
    pub fn parse(json: &str) -> Result<Chat, Error> {
        let fields: Fields = serde_json::from_str(json).map_err(|error| {
            // serde quotes what it found instead; a prompt's text must not get into a log by it.
            let what = error.to_string();
            let what = match what.split_once("invalid type: ") {
                Some((before, found)) => {
                    let expected = found.rsplit_once(", expected ").map_or("", |(_, e)| e);
                    format!("{before}expected {expected}")
                }
                None => what,
            };
            Error::invalid(format!("not a chat: {what}"))
        })?;
        if fields.messages.is_empty() {
            return Err(Error::invalid("messages: at least one is needed"));
        }
        for (n, message) in fields.messages.iter().enumerate() {
            if message.kind() != ValueKind::Map || text(message, "role").is_none() {
                return Err(Error::invalid(format!(
                    "messages[{n}]: has to be an object with a role"
                )));
            }
        }
        if fields.continue_final_message && fields.add_generation_prompt {
            return Err(Error::invalid(
                "continue_final_message and add_generation_prompt cannot both be true",
            ));
        }
        if let Some(kwargs) = &fields.chat_template_kwargs {
            if !matches!(kwargs.kind(), ValueKind::Map | ValueKind::None) {
                return Err(Error::invalid("chat_template_kwargs: has to be an object"));
            }
            for key in kwargs.try_iter().into_iter().flatten() {
                if let Some(taken) = key.as_str().filter(|key| TAKEN.contains(key)) {
                    return Err(Error::invalid(format!(
                        "chat_template_kwargs: {taken} is not a variable"
                    )));
                }
            }
        }
        Ok(Chat { fields, bytes: json.len() })
    }

    /// The messages as vLLM 0.33 hands them to transformers (`renderers/chat_utils/chat_message.py`,
    /// `parse_chat_message_content` and `_postprocess_messages`; 0.9 to 0.16 do the same for texts and tool calls) and
    /// transformers to the template.
    pub(super) fn conversation(
        &self,
        format: ContentFormat,
        template: &str,
    ) -> Result<Vec<Map>, Error> {
        let mut found = Vec::with_capacity(self.fields.messages.len());
        for (n, message) in self.fields.messages.iter().enumerate() {
            let at = |what: String| Error::invalid(format!("messages[{n}]{what}"));
            found.push(message_of(message, format).map_err(at)?);
        }
        let knows_developer =
            template.contains("\"developer\"") || template.contains("'developer'");
        if !knows_developer && found.iter().any(|message| is_role(message, "developer")) {
            found = with_one_system(found);
        }
        Ok(found)
    }

    /// The tools as vLLM hands them on: its own fields first, absent ones as `null`, unknown ones left out
    /// (`ChatCompletionToolsParam`, `FunctionDefinition`).
    pub(super) fn tools(&self) -> Result<Option<Vec<Value>>, Error> {
        let Some(tools) = &self.fields.tools else { return Ok(None) };
        // An empty list is refused by the chat route and dropped by /tokenize.
        if tools.is_empty() {
            return Ok(None);
        }
        let each = tools.iter().enumerate().map(|(n, tool)| {
            let function = attr(tool, "function").unwrap_or_default();
            let Some(name) = text(&function, "name") else {
                return Err(Error::invalid(format!(
                    "tools[{n}]: has to be a function with a name"
                )));
            };
            let mut inner = Map::default();
            inner.set("name", Value::from(name));
            for key in ["description", "parameters"] {
                inner.set(key, attr(&function, key).unwrap_or(Value::from(())));
            }
            for key in ["strict", "defer_loading"] {
                if let Some(value) = attr(&function, key).or_else(|| match key {
                    "defer_loading" => attr(tool, key),
                    _ => None,
                }) {
                    inner.set(key, value);
                }
            }
            let mut outer = Map::default();
            outer.set("type", Value::from("function"));
            outer.set("function", inner.into());
            if let Some(value) = attr(tool, "defer_loading") {
                outer.set("defer_loading", value);
            }
            Ok(outer.into())
        });
        each.collect::<Result<_, _>>().map(Some)
    }
}

/// An object whose keys keep their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Map(Vec<(String, Value)>);

impl Map {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub(super) fn set(&mut self, key: &str, value: Value) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    fn of(value: &Value) -> Map {
        let keys = value.try_iter().into_iter().flatten();
        Map(keys
            .filter_map(|key| Some((key.as_str()?.to_owned(), value.get_item(&key).ok()?)))
            .collect())
    }
}

impl From<Map> for Value {
    fn from(map: Map) -> Value {
        Value::from_pairs(map.0)
    }
}

/// A part of an object, `None` if it is not there or null.
fn attr(value: &Value, key: &str) -> Option<Value> {
    value.get_attr(key).ok().filter(|value| !value.is_undefined() && !value.is_none())
}

fn text(value: &Value, key: &str) -> Option<String> {
    attr(value, key)?.as_str().map(str::to_owned)
}

fn is_role(message: &Map, role: &str) -> bool {
    message.get("role").and_then(Value::as_str) == Some(role)
}

fn message_of(message: &Value, format: ContentFormat) -> Result<Map, String> {
    let role = text(message, "role").unwrap_or_default();
    let mut found = Map::default();
    found.set("role", Value::from(role.as_str()));
    let content = content(message, &role, format)?;
    found.set("content", content);
    match role.as_str() {
        "assistant" => {
            if let Some(calls) = attr(message, "tool_calls") {
                let calls = tool_calls(&calls)?;
                if !calls.is_empty() {
                    found.set("tool_calls", Value::from(calls));
                }
            }
            if let Some(reasoning) = attr(message, "reasoning") {
                found.set("reasoning", reasoning.clone());
                found.set("reasoning_content", reasoning.clone());
                // transformers fills in the name that gpt-oss templates read.
                found.set("thinking", reasoning);
            }
        }
        "tool" => {
            if let Some(id) = attr(message, "tool_call_id") {
                found.set("tool_call_id", id);
            }
        }
        "developer" => {
            if let Some(tools) = attr(message, "tools") {
                found.set("tools", tools);
            }
        }
        _ => {}
    }
    for key in ["name", "task"] {
        if let Some(value) = text(message, key) {
            found.set(key, Value::from(value));
        }
    }
    Ok(found)
}

fn content(message: &Value, role: &str, format: ContentFormat) -> Result<Value, String> {
    let parts = match attr(message, "content") {
        None => Vec::new(),
        Some(content) if content.as_str().is_some() => vec![content],
        Some(content) if content.kind() == ValueKind::Seq => {
            content.try_iter().into_iter().flatten().collect()
        }
        Some(_) => return Err(".content: has to be a text or a list of parts".to_owned()),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (n, part) in parts.iter().enumerate() {
        let text = match part.as_str() {
            Some(text) => text.to_owned(),
            None => part_text(part).map_err(|what| format!(".content[{n}]: {what}"))?,
        };
        match role {
            "system" => texts.extend(without_billing(text).map(|text| (text, part))),
            _ => texts.push((text, part)),
        }
    }
    // Tool results are one text for any template.
    if format == ContentFormat::Parts && role != "tool" {
        let wrap = |(text, part): (String, &Value)| {
            let mut wrapped = Map::default();
            wrapped.set("type", Value::from("text"));
            wrapped.set("text", Value::from(text));
            // vLLM keeps what it does not know of a part.
            let further = Map::of(part).0.into_iter();
            for (key, value) in further.filter(|_| part.kind() == ValueKind::Map) {
                if !matches!(key.as_str(), "type" | "text" | "refusal" | "thinking") {
                    wrapped.set(&key, value);
                }
            }
            Value::from(wrapped)
        };
        return Ok(Value::from(texts.into_iter().map(wrap).collect::<Vec<_>>()));
    }
    let texts: Vec<String> = texts.into_iter().map(|(text, _)| text).collect();
    Ok(Value::from(texts.join("\n")))
}

/// The text of a part of a content.
fn part_text(part: &Value) -> Result<String, String> {
    let kind = text(part, "type").unwrap_or_else(|| "text".to_owned());
    let key = match kind.as_str() {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        "thinking" => "thinking",
        // What an image becomes is known to the engine's processor alone.
        other => {
            return Err(format!(
                "a part of type {other:?} becomes tokens in the engine only; ask its /tokenize"
            ));
        }
    };
    text(part, key).ok_or_else(|| format!("a part of type {kind:?} needs {key}, a text"))
}

/// vLLM 0.33 takes a line out of system messages that a client changes with each request
/// (`_strip_claude_code_billing_header`).
fn without_billing(text: String) -> Option<String> {
    if !text.starts_with("x-anthropic-billing-header") {
        return Some(text);
    }
    let (_, rest) = text.split_once('\n')?;
    (!rest.is_empty()).then(|| rest.to_owned())
}

/// Arguments as an object, as templates expect them, whatever the client sent.
fn tool_calls(calls: &Value) -> Result<Vec<Value>, String> {
    let mut found = Vec::new();
    for (n, call) in calls.try_iter().into_iter().flatten().enumerate() {
        let Some(function) = attr(&call, "function").filter(|f| f.kind() == ValueKind::Map) else {
            return Err(format!(".tool_calls[{n}]: has to be a call of a function"));
        };
        let arguments = match attr(&function, "arguments") {
            Some(object) if object.kind() == ValueKind::Map => Some(object),
            Some(text) => text
                .as_str()
                .and_then(|text| serde_json::from_str::<Value>(text).ok())
                .filter(|parsed| parsed.kind() == ValueKind::Map),
            None => None,
        };
        let mut inner = Map::of(&function);
        inner.set("arguments", arguments.unwrap_or_else(|| Map::default().into()));
        let mut outer = Map::of(&call);
        outer.0.retain(|(_, value)| !value.is_undefined());
        outer.set("function", inner.into());
        found.push(Value::from(outer));
    }
    Ok(found)
}

/// vLLM 0.33 for templates without a developer role: such messages are system messages, and all of those one,
/// in front (`_convert_developer_to_system`, `_consolidate_system_messages`).
fn with_one_system(mut messages: Vec<Map>) -> Vec<Map> {
    for message in messages.iter_mut().filter(|message| is_role(message, "developer")) {
        message.set("role", Value::from("system"));
        message.0.retain(|(key, _)| key != "tools");
    }
    let is_system = |message: &Map| is_role(message, "system");
    let systems = messages.iter().filter(|message| is_system(message)).count();
    if systems <= 1 && messages.first().is_some_and(is_system) {
        return messages;
    }
    let mut texts = Vec::new();
    for message in messages.iter().filter(|message| is_system(message)) {
        let Some(content) = message.get("content") else { continue };
        let text = match content.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let parts = content.try_iter().into_iter().flatten();
                parts.filter_map(|part| self::text(&part, "text")).collect::<Vec<_>>().join("\n")
            }
        };
        if !text.is_empty() {
            texts.push(text);
        }
    }
    let mut merged = Map::default();
    merged.set("role", Value::from("system"));
    merged.set("content", Value::from(texts.join("\n\n")));
    let rest = messages.into_iter().filter(|message| !is_system(message));
    std::iter::once(merged).chain(rest).collect()
}
