//! Rewrites a template's operators that join texts, so that they do what Python's do and are counted.
//!
//! `a ~ b` joins the texts that *Python* makes of both (`True`, `None`, `1e-07`), and both `~` and `+`
//! can double a text with each step, so that a bound on steps alone does not bound memory. Operands are therefore given
//! to a filter: `(a)|_text ~ (b)|_text`, `(a)|_counted + (b)|_counted`.

use std::collections::BTreeMap;
use std::ops::Range;

/// Words that end an operand.
const WORDS: [&str; 12] =
    ["and", "or", "not", "in", "is", "if", "else", "elif", "set", "for", "do", "call"];

/// The template with its operands given to the filters.
pub(super) fn rewritten(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 256);
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|end| end + 2),
            Some(b'%') if word_of(tag) == "raw" => raw_end(tag),
            Some(b'%') => tag_end(tag, "%}"),
            Some(b'{') => tag_end(tag, "}}"),
            _ => Some(1),
        };
        // What is not closed is the compiler's to refuse.
        let (tag, behind) = tag.split_at(end.unwrap_or(tag.len()));
        let is_code = end.is_some()
            && (tag.starts_with("{{") || (tag.starts_with("{%") && word_of(tag) != "raw"));
        match is_code {
            true => out.push_str(&expression(tag)),
            false => out.push_str(tag),
        }
        rest = behind;
    }
    out + rest
}

/// The first word of a statement.
fn word_of(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    &inner[..end]
}

fn raw_end(tag: &str) -> Option<usize> {
    let at = tag.find("endraw")?;
    Some(at + tag[at..].find("%}")? + 2)
}

/// Where a tag ends, texts in it passed over.
fn tag_end(tag: &str, close: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = text_end(bytes, at, quote),
            _ if bytes[at..].starts_with(close.as_bytes()) => return Some(at + 2),
            _ => at += 1,
        }
    }
    None
}

fn text_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Operand,
    Dot,
    /// `~`, and `+` between operands.
    Join(char),
    /// What ends an operand at this depth.
    Border,
    Open,
    Close,
}

/// A tag with the operands of its joins wrapped.
fn expression(tag: &str) -> String {
    let tokens = tokens(tag);
    let mut wraps: BTreeMap<(usize, usize), &str> = BTreeMap::new();
    for (n, (kind, _)) in tokens.iter().enumerate() {
        let Kind::Join(join) = kind else { continue };
        let filter = if *join == '~' { "_text" } else { "_counted" };
        for side in [before(&tokens, n), behind(&tokens, n)] {
            if !side.is_empty() {
                let place = (tokens[side.start].1.start, tokens[side.end - 1].1.end);
                let entry = wraps.entry(place).or_insert(filter);
                // Between both kinds of joins: a text is counted too.
                if filter == "_text" {
                    *entry = filter;
                }
            }
        }
    }
    if wraps.is_empty() {
        return tag.to_owned();
    }
    let mut marks: Vec<(usize, bool, usize, String)> = Vec::new();
    for ((start, end), filter) in wraps {
        marks.push((start, true, usize::MAX - end, "(".to_owned()));
        marks.push((end, false, usize::MAX - start, format!(")|{filter}")));
    }
    // At one place ends come first, and inner ends before outer ones; outer starts before inner ones.
    marks.sort();
    let mut out = String::with_capacity(tag.len() + 16 * marks.len());
    let mut from = 0;
    for (at, _, _, mark) in marks {
        out.push_str(&tag[from..at]);
        out.push_str(&mark);
        from = at;
    }
    out + &tag[from..]
}

/// The tokens of the operand before the join `n`.
fn before(tokens: &[(Kind, Range<usize>)], n: usize) -> Range<usize> {
    let (mut depth, mut start) = (0usize, n);
    while start > 0 {
        match tokens[start - 1].0 {
            Kind::Close => depth += 1,
            Kind::Open if depth == 0 => break,
            Kind::Open => depth -= 1,
            Kind::Border | Kind::Join(_) if depth == 0 => break,
            _ => {}
        }
        start -= 1;
    }
    start..n
}

fn behind(tokens: &[(Kind, Range<usize>)], n: usize) -> Range<usize> {
    let (mut depth, mut end) = (0usize, n + 1);
    while end < tokens.len() {
        match tokens[end].0 {
            Kind::Open => depth += 1,
            Kind::Close if depth == 0 => break,
            Kind::Close => depth -= 1,
            Kind::Border | Kind::Join(_) if depth == 0 => break,
            _ => {}
        }
        end += 1;
    }
    n + 1..end
}

fn tokens(tag: &str) -> Vec<(Kind, Range<usize>)> {
    let bytes = tag.as_bytes();
    let end = bytes.len().saturating_sub(2);
    let mut found: Vec<(Kind, Range<usize>)> = Vec::new();
    let mut at = 2;
    // White space control of the tag.
    if matches!(bytes.get(2), Some(b'-' | b'+')) {
        at = 3;
    }
    let end = if end > at && matches!(bytes[end - 1], b'-' | b'+') { end - 1 } else { end };
    while at < end {
        let start = at;
        let after_operand = matches!(found.last(), Some((Kind::Operand | Kind::Close, _)));
        let kind = match bytes[at] {
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            quote @ (b'"' | b'\'') => {
                at = text_end(bytes, at, quote).min(end);
                Kind::Operand
            }
            b if b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80 => {
                let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
                at += bytes[at..end].iter().take_while(|b| is_word(b)).count();
                let attribute = matches!(found.last(), Some((Kind::Dot, _)));
                match WORDS.contains(&&tag[start..at]) && !attribute {
                    true => Kind::Border,
                    false => Kind::Operand,
                }
            }
            b'(' | b'[' | b'{' => {
                at += 1;
                Kind::Open
            }
            b')' | b']' | b'}' => {
                at += 1;
                Kind::Close
            }
            b'~' => {
                at += 1;
                Kind::Join('~')
            }
            b'+' if after_operand => {
                at += 1;
                Kind::Join('+')
            }
            b'-' if after_operand => {
                at += 1;
                Kind::Border
            }
            b',' | b':' | b'=' | b'<' | b'>' | b'!' => {
                at += 1;
                Kind::Border
            }
            // Filters, products and signs belong to their operand.
            _ => {
                at += 1;
                Kind::Dot
            }
        };
        found.push((kind, start..at));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_end_where_another_part_of_the_expression_begins() {
        let cases = [
            ("{{ a ~ b }}", "{{ (a)|_text ~ (b)|_text }}"),
            (
                "{{- a.b['~'] ~ 'x+y' + c|f(1) -}}",
                "{{- (a.b['~'])|_text ~ ('x+y')|_text + (c|f(1))|_counted -}}",
            ),
            (
                "{% set x = a + 1 if b + c == d else -1 %}",
                "{% set x = (a)|_counted + (1)|_counted if (b)|_counted + (c)|_counted == d else -1 %}",
            ),
            ("{{ f(a ~ b, c) ~ d }}", "{{ (f((a)|_text ~ (b)|_text, c))|_text ~ (d)|_text }}"),
            ("{{ (a + b) ~ c }}", "{{ (((a)|_counted + (b)|_counted))|_text ~ (c)|_text }}"),
            ("{{ {'k': a ~ b}['k'] }}", "{{ {'k': (a)|_text ~ (b)|_text}['k'] }}"),
            (
                "a ~ b {# {{ a ~ b }} #}{% raw %}{{ a ~ b }}{% endraw %}{{ x }}",
                "a ~ b {# {{ a ~ b }} #}{% raw %}{{ a ~ b }}{% endraw %}{{ x }}",
            ),
            ("{{ 'é' ~ '}}' }}{", "{{ ('é')|_text ~ ('}}')|_text }}{"),
            ("{{ +1 - a.in ~ b }}", "{{ +1 - (a.in)|_text ~ (b)|_text }}"),
            ("{{ a ~", "{{ a ~"),
        ];
        for (source, expected) in cases {
            assert_eq!(rewritten(source), expected);
        }
    }
}
