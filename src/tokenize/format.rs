//! Whether a template wants a message's content as a text or as a list of parts, as vLLM decides it.
//!
//! vLLM (0.9.2: `entrypoints/chat_utils.py`, 0.33: `renderers/hf.py`, `_detect_content_format`) walks the
//! syntax tree: a template that loops over the content of a message wants parts. The same is read off the
//! statements here.

use std::collections::HashSet;

/// How the contents of messages reach a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentFormat {
    /// As the template seems to want it, which is what engines do unless told otherwise.
    #[default]
    Auto,
    /// One text; several parts are joined with line breaks.
    Text,
    /// A list of `{"type": "text", "text": ...}`.
    Parts,
}

impl ContentFormat {
    /// What a template's source says.
    pub(super) fn detect(source: &str) -> ContentFormat {
        if wants_parts(&statements(source)) { ContentFormat::Parts } else { ContentFormat::Text }
    }
}

/// What stands between the delimiters of statements, and of expressions, in order, without white
/// space control.
fn statements(source: &str) -> Vec<(bool, &str)> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        rest = &rest[at + 1..];
        let (close, is_statement) = match rest.as_bytes().first() {
            Some(b'%') => ("%}", true),
            Some(b'{') => ("}}", false),
            Some(b'#') => {
                let end = rest.find("#}").unwrap_or(rest.len());
                rest = &rest[end..];
                continue;
            }
            _ => continue,
        };
        let end = rest.find(close).unwrap_or(rest.len());
        let inner = rest.get(1..end).unwrap_or("");
        found.push((is_statement, inner.trim_matches(['-', '+']).trim()));
        rest = &rest[end..];
    }
    found
}

fn wants_parts(statements: &[(bool, &str)]) -> bool {
    let assigned: Vec<(&str, &str)> = statements
        .iter()
        .filter(|(is_statement, _)| *is_statement)
        .filter_map(|(_, text)| text.strip_prefix("set ")?.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    // `messages`, and every name that stands for it or a part of it.
    let mut lists = HashSet::from(["messages"]);
    loop {
        let more: Vec<&str> = assigned
            .iter()
            .filter(|(name, value)| !lists.contains(name) && lists.iter().any(|l| is_of(value, l)))
            .map(|(name, _)| *name)
            .collect();
        if more.is_empty() {
            break;
        }
        lists.extend(more);
    }
    let loops = |text: &'_ str| -> Option<(String, String)> {
        let (name, list) = text.strip_prefix("for ")?.split_once(" in ")?;
        let list = list.split(" if ").next().unwrap_or(list);
        let list = list.trim().trim_end_matches(" recursive").trim();
        Some((name.trim().to_owned(), list.to_owned()))
    };
    let messages: HashSet<String> = statements
        .iter()
        .filter_map(|(_, text)| loops(text))
        .filter(|(_, list)| lists.iter().any(|name| is_of(list, name)))
        .map(|(name, _)| name)
        .collect();
    let is_content = |value: &str| messages.iter().any(|name| is_content_of(value, name));
    let mut parameters: HashSet<String> = HashSet::new();
    let mut in_macro = false;
    for (is_statement, text) in statements {
        if let Some(head) = text.strip_prefix("macro ").filter(|_| *is_statement) {
            in_macro = true;
            parameters = content_parameters(head, statements, &is_content);
            continue;
        }
        if *is_statement && *text == "endmacro" {
            in_macro = false;
            parameters.clear();
            continue;
        }
        let Some((_, list)) = loops(text).filter(|_| *is_statement) else { continue };
        if is_content(&list) || parameters.contains(&list) || (!in_macro && list == "content") {
            return true;
        }
    }
    false
}

/// The parameters of a macro that are given a message's content somewhere.
fn content_parameters(
    head: &str,
    statements: &[(bool, &str)],
    is_content: &impl Fn(&str) -> bool,
) -> HashSet<String> {
    let Some((name, list)) = head.split_once('(') else { return HashSet::new() };
    let name = name.trim();
    let names: Vec<&str> = arguments(list)
        .into_iter()
        .map(|argument| argument.split('=').next().unwrap_or("").trim())
        .collect();
    let mut found = HashSet::new();
    for (_, text) in statements {
        for (at, _) in text.match_indices(name) {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let Some(call) = text[at + name.len()..].strip_prefix('(') else { continue };
            if text[..at].ends_with(is_word) || text[..at].trim_end().ends_with("macro") {
                continue;
            }
            for (n, argument) in arguments(call).into_iter().enumerate() {
                let (key, value) = match argument.split_once('=') {
                    Some((key, value)) => (Some(key.trim()), value.trim()),
                    None => (names.get(n).copied(), argument.trim()),
                };
                if let Some(key) = key.filter(|_| is_content(value)) {
                    found.insert(key.to_owned());
                }
            }
        }
    }
    found
}

/// What is between a call's parentheses, the opening one taken off, divided at its commas.
fn arguments(list: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut depth, mut from) = (0usize, 0);
    for (at, c) in list.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => {
                found.push(&list[from..at]);
                return found;
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// Whether an expression is a name, or that name filtered, tested or sliced.
fn is_of(expression: &str, name: &str) -> bool {
    expression.strip_prefix(name).is_some_and(is_plain_rest)
}

fn is_content_of(expression: &str, message: &str) -> bool {
    let Some(rest) = expression.strip_prefix(message) else { return false };
    ["['content']", "[\"content\"]", ".content"]
        .iter()
        .any(|access| rest.strip_prefix(access).is_some_and(is_plain_rest))
}

/// Nothing, a filter, a test or a slice: no further part of the value.
fn is_plain_rest(rest: &str) -> bool {
    let rest = rest.trim_start();
    match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((inner, behind)) => inner.contains(':') && is_plain_rest(behind),
        None => rest.is_empty() || rest.starts_with('|') || rest.starts_with("is "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected: vLLM 0.33.0's `_detect_content_format` on the same templates.
    #[test]
    fn the_format_is_the_one_that_vllm_detects() {
        let text = [
            "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
            "{% for m in messages %}{% for c in m.tool_calls %}{{ c }}{% endfor %}{% endfor %}",
            "{% for t in tools %}{{ t }}{% endfor %}{# {% for c in content %} #}",
            "{% macro f(content) %}{% for c in content %}{% endfor %}{% endmacro %}{{ f(x) }}",
            "{% for m in messages[0].content %}{{ m }}{% endfor %}",
        ];
        for source in text {
            assert_eq!(ContentFormat::detect(source), ContentFormat::Text, "{source}");
        }
        let parts = [
            "{% for m in messages %}{% for c in m['content'] %}{{ c.text }}{% endfor %}{% endfor %}",
            "{%- for m in messages[1:] -%}{%- for c in m.content | selectattr('type') -%}{%- endfor -%}{%- endfor -%}",
            "{% set rest = messages[1:] %}{% for m in rest %}{% for c in m[\"content\"] %}{% endfor %}{% endfor %}",
            "{% for m in messages %}{% set content = m.content %}{% for c in content %}{% endfor %}{% endfor %}",
            "{% macro show(x, y) %}{% for c in x %}{% endfor %}{% endmacro %}\
             {% for m in messages %}{{ show(m['content'], 1) }}{% endfor %}",
            "{% macro show(a, body=none) %}{% for c in body %}{% endfor %}{% endmacro %}\
             {% for m in messages %}{{- show(1, body=m.content) }}{% endfor %}",
        ];
        for source in parts {
            assert_eq!(ContentFormat::detect(source), ContentFormat::Parts, "{source}");
        }
    }
}
