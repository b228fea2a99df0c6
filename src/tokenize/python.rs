//! Values as Python writes them: `str`, `repr`, `json.dumps`, `strftime`.

use std::fmt::Write as _;

use minijinja::value::{Value, ValueKind};

/// How `json.dumps` is asked to write.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) ascii: bool,
    pub(super) indent: Option<String>,
    pub(super) item: Option<String>,
    pub(super) key: Option<String>,
    pub(super) sorted: bool,
}

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let mut out = String::new();
            repr(value, &mut out);
            out
        }
    }
}

fn repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quoted(value.as_str().unwrap_or(""), out),
        ValueKind::Seq => list(value, out),
        ValueKind::Map => map(value, out),
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

fn list(value: &Value, out: &mut String) {
    let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
    out.push(open);
    for (n, item) in value.try_iter().into_iter().flatten().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        repr(&item, out);
    }
    if value.is_tuple() && value.len() == Some(1) {
        out.push(',');
    }
    out.push(close);
}

fn map(value: &Value, out: &mut String) {
    out.push('{');
    for (n, key) in value.try_iter().into_iter().flatten().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        repr(&key, out);
        out.push_str(": ");
        repr(&value.get_item(&key).unwrap_or_default(), out);
    }
    out.push('}');
}

/// Python takes double quotes only for a text with single ones and no double ones.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c == ' ' || !(c.is_control() || c.is_whitespace() || is_format(c)) => out.push(c),
            c if (c as u32) < 0x100 => drop(write!(out, "\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => drop(write!(out, "\\u{:04x}", c as u32)),
            c => drop(write!(out, "\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
}

/// The common characters that Python does not call printable beside controls and spaces.
fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{e000}'..='\u{f8ff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{10ffff}')
}

fn number(value: &Value, out: &mut String) {
    if value.is_integer() {
        let _ = write!(out, "{value}");
    } else if let Ok(float) = f64::try_from(value.clone()) {
        out.push_str(&float_text(float));
    }
}

/// `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float_text(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let Some((digits, exponent)) = text.split_once('e') else { return text };
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{float:?}")
}

/// `json.dumps(value)`.
///
/// # Errors
///
/// The value has no JSON form.
pub(super) fn dumps(value: &Value, how: &Dump) -> Result<String, String> {
    let mut out = String::new();
    dump(value, how, 0, &mut out)?;
    Ok(out)
}

fn dump(value: &Value, how: &Dump, depth: usize, out: &mut String) -> Result<(), String> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let at = out.len();
            number(value, out);
            let name = match &out[at..] {
                "nan" => "NaN",
                "inf" => "Infinity",
                "-inf" => "-Infinity",
                _ => return Ok(()),
            };
            out.replace_range(at.., name);
        }
        ValueKind::String => escaped(value.as_str().unwrap_or(""), how.ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().map_err(|error| error.to_string())?;
            container(how, depth, out, ['[', ']'], items, |item, out| {
                dump(&item, how, depth + 1, out)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<(String, Value)> = Vec::new();
            for key in value.try_iter().map_err(|error| error.to_string())? {
                let name = match key.kind() {
                    ValueKind::String => text(&key),
                    // As JSON writes them, not as Python does.
                    _ => dumps(&key, &Dump::default())?,
                };
                keys.push((name, key));
            }
            if how.sorted {
                keys.sort_by(|a, b| a.0.cmp(&b.0));
            }
            container(how, depth, out, ['{', '}'], keys.into_iter(), |(name, key), out| {
                escaped(&name, how.ascii, out);
                out.push_str(how.key.as_deref().unwrap_or(": "));
                dump(&value.get_item(&key).unwrap_or_default(), how, depth + 1, out)
            })?;
        }
        other => return Err(format!("a value of type {other} has no JSON form")),
    }
    Ok(())
}

fn container<T>(
    how: &Dump,
    depth: usize,
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = T>,
    mut each: impl FnMut(T, &mut String) -> Result<(), String>,
) -> Result<(), String> {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = &how.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    let mut some = false;
    for item in items {
        if some {
            let default = if how.indent.is_some() { "," } else { ", " };
            out.push_str(how.item.as_deref().unwrap_or(default));
        }
        some = true;
        line(depth + 1, out);
        each(item, out)?;
    }
    if some {
        line(depth, out);
    }
    out.push(close);
    Ok(())
}

fn escaped(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ascii && !c.is_ascii()) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A moment (seconds since 1970, UTC) as `datetime.strftime` writes it.
///
/// # Errors
///
/// A directive that is not known.
pub(super) fn strftime(seconds: u64, format: &str) -> Result<String, String> {
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, of_year) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = DAYS[(days % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        // glibc: no padding.
        let bare = directive == Some('-');
        if bare {
            directive = rest.next();
        }
        let mut padded = |value: u64, width: usize| {
            let _ = if bare { write!(out, "{value}") } else { write!(out, "{value:0width$}") };
        };
        match directive {
            Some('Y') => padded(year, 4),
            Some('y') => padded(year % 100, 2),
            Some('m') => padded(month, 2),
            Some('d') => padded(day, 2),
            Some('j') => padded(of_year, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded((hour + 11) % 12 + 1, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('%') => out.push('%'),
            other => {
                let other = other.map_or(String::new(), String::from);
                return Err(format!("strftime_now does not know %{other}"));
            }
        }
    }
    Ok(out)
}

/// Year, month, day and day of the year of a number of days since 1970, Gregorian.
fn civil(mut days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 400 years have 146,097 days; what is left is at most that many steps of a year.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let of_year = days + 1;
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    // Expected texts: CPython 3.11.
    #[test]
    fn a_value_is_printed_as_python_prints_it() {
        let cases = [
            (
                r#"[1, 1.0, true, null, "it's", "a\"b", "\n\u00e9\u200b"]"#,
                "[1, 1.0, True, None, \"it's\", 'a\"b', '\\né\\u200b']",
            ),
            (r#"{"a": {"b": []}, "c": -0.5}"#, "{'a': {'b': []}, 'c': -0.5}"),
            (
                "[1e16, 1e15, 0.0001, 0.00001, 1.5e300, 123456789.125]",
                "[1e+16, 1000000000000000.0, 0.0001, 1e-05, 1.5e+300, 123456789.125]",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(text(&value(json)), expected);
        }
        assert_eq!(text(&Value::from("plain")), "plain");
    }

    #[test]
    fn json_has_pythons_spaces_and_escapes() {
        let json = value(r#"{"b": [1, {"x": "\u0001é\"/"}], "a": {}, "n": 1.0}"#);
        let plain = dumps(&json, &Dump::default()).unwrap();
        assert_eq!(plain, r#"{"b": [1, {"x": "\u0001é\"/"}], "a": {}, "n": 1.0}"#);
        let how = Dump { indent: Some("  ".into()), sorted: true, ascii: true, ..Dump::default() };
        let pretty = dumps(&json, &how).unwrap();
        assert_eq!(
            pretty,
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    {\n      \"x\": \"\\u0001\\u00e9\\\"/\"\n    }\n  ],\n  \"n\": 1.0\n}"
        );
    }

    #[test]
    fn dates_are_those_of_the_gregorian_calendar() {
        let cases = [
            (0, "%A %d %B %Y %j", "Thursday 01 January 1970 001"),
            (951_782_400, "%a %-d %b %y", "Tue 29 Feb 00"),
            (1_735_689_599, "%Y-%m-%d %H:%M:%S %I %p %j %%", "2024-12-31 23:59:59 11 PM 366 %"),
            (4_107_542_400, "%d %b %Y", "01 Mar 2100"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(seconds, format).unwrap(), expected);
        }
        assert!(strftime(0, "%Q").unwrap_err().contains("%Q"));
    }
}
