//! Chat templates, rendered as transformers renders them.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior};

use super::operators;
use super::python::{self, Dump};
use crate::error::Error;

/// Steps that any template may take, and further ones for each byte of what it renders: models' own take
/// a few hundred a message.
const STEPS: u64 = 1_000_000;
const STEPS_A_BYTE: u64 = 20;

/// The templates of one model.
#[derive(Debug)]
pub(super) struct Templates {
    env: Environment<'static>,
    /// Names, and texts as they were given.
    sources: Vec<(String, String)>,
}

impl Templates {
    /// Compiles them. `limit`: bytes that one rendering may write. `now` stands for the clock.
    ///
    /// # Errors
    ///
    /// A template is not Jinja; the message names it and the line.
    pub(super) fn new(
        templates: &[(String, String)],
        limit: usize,
        now: Option<SystemTime>,
    ) -> Result<Templates, Error> {
        let mut env = environment(limit, now)?;
        for (name, source) in templates {
            let source = operators::rewritten(&without_generation(source));
            env.add_template_owned(name.clone(), source).map_err(|error| {
                Error::invalid(format!("chat template {name:?}: {}", describe(&error)))
            })?;
        }
        Ok(Templates { env, sources: templates.to_vec() })
    }

    /// Which template a chat takes: the one it names, else `tool_use` if it has tools, else `default`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn pick(&self, name: Option<&str>, tools: bool) -> Result<&str, Error> {
        let names = || self.sources.iter().map(|(name, _)| name.as_str());
        let has = |wanted: &str| names().find(|name| *name == wanted);
        if self.sources.is_empty() {
            return Err(Error::invalid("the model has no chat template"));
        }
        let picked = match name {
            Some(name) => has(name),
            None => has("tool_use").filter(|_| tools).or_else(|| has("default")),
        };
        picked.ok_or_else(|| {
            let wanted = name.unwrap_or("default");
            Error::invalid(format!(
                "no chat template {wanted:?}; there are {:?}",
                Vec::from_iter(names())
            ))
        })
    }

    /// The text of a template.
    pub(super) fn source(&self, name: &str) -> &str {
        let found = self.sources.iter().find(|(found, _)| found == name);
        found.map_or("", |(_, source)| source.as_str())
    }

    /// Renders one. `size`: bytes of what the variables hold, which the steps grow with.
    ///
    /// # Errors
    ///
    /// The template refuses (`raise_exception`), fails, writes more than the limit, or takes too many steps.
    pub(super) fn render(
        &self,
        name: &str,
        variables: Value,
        size: usize,
        limit: usize,
    ) -> Result<String, Error> {
        let refuse = |what: String| Error::invalid(format!("chat template {name:?}: {what}"));
        // The steps belong to an environment; cloning one shares the compiled templates.
        let mut env = self.env.clone();
        env.set_fuel(Some(STEPS + STEPS_A_BYTE * size as u64));
        let template = env.get_template(name).map_err(|error| refuse(describe(&error)))?;
        let mut out = Bounded { bytes: Vec::new(), limit };
        template
            .render_captured_to(variables, &mut out)
            .map_err(|error| refuse(describe(&error)))?;
        String::from_utf8(out.bytes).map_err(|_| refuse("wrote no UTF-8".to_owned()))
    }
}

/// What went wrong, and where, without the template's variables.
fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("takes too many steps{line}"),
        (ErrorKind::WriteFailure, _) => "writes more than a prompt may have".to_owned(),
        (_, Some(detail)) => format!("{detail}{line}"),
        (kind, None) => format!("{kind}{line}"),
    }
}

struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// transformers 5.23, `utils/chat_template_utils.py`: `trim_blocks`, `lstrip_blocks`, loop controls, its own
/// `tojson`, `raise_exception`, `strftime_now`.
fn environment(limit: usize, now: Option<SystemTime>) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|error| Error::invalid(error.to_string()))?;
    env.set_syntax(syntax);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(move |out, state, value| {
        let text = python::text(value);
        charge(state, text.len(), limit)?;
        out.write_str(&text).map_err(minijinja::Error::from)
    });
    env.set_unknown_method_callback(move |state, value, method, args| {
        if let (Some(text), "replace") = (value.as_str(), method) {
            return replace(text, args, limit);
        }
        if let (Some(glue), "join", [list]) = (value.as_str(), method, args) {
            return join(list.clone(), Some(glue.to_owned()), None, limit).map(Value::from);
        }
        // A width in a format is a way to write a great deal.
        if method == "format" && value.as_str().is_some_and(has_wide_field) {
            return Err(invalid("a field of a format is too wide".to_owned()));
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    env.add_filter("tojson", move |value: Value, kwargs: Kwargs| {
        let text = tojson(&value, &kwargs)?;
        within(text.len(), limit).map(|()| text)
    });
    env.add_filter("_text", move |state: &mut State, value: Value| {
        let text = python::text(&value);
        charge(state, text.len(), limit).map(|()| text)
    });
    env.add_filter("_counted", move |state: &mut State, value: Value| {
        let bytes = value.as_str().map_or_else(|| 16 * value.len().unwrap_or(0), str::len);
        charge(state, bytes, limit).map(|()| value)
    });
    env.add_filter("indent", move |text: &str, width: Option<usize>, first: Option<bool>| {
        indent(text, width.unwrap_or(4), first.unwrap_or(false), limit)
    });
    env.add_filter("string", |value: Value| python::text(&value));
    env.add_filter("join", move |value: Value, glue: Option<String>, attribute: Option<String>| {
        join(value, glue, attribute, limit)
    });
    env.add_filter("replace", move |text: Value, from: Value, to: Value| {
        replace(&python::text(&text), &[from, to], limit)
    });
    env.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined
        )
    });
    env.add_test("iterable", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Undefined) || value.try_iter().is_ok()
    });
    env.add_function("raise_exception", |message: Value| -> Result<Value, minijinja::Error> {
        Err(invalid(python::text(&message)))
    });
    env.add_function("strftime_now", move |format: String| {
        let now = now.unwrap_or_else(SystemTime::now);
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        python::strftime(seconds, &format).map_err(invalid)
    });
    Ok(env)
}

fn invalid(what: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, what)
}

/// Counts what is written, into the answer or into a variable, over the whole rendering.
fn charge(state: &mut State, bytes: usize, limit: usize) -> Result<(), minijinja::Error> {
    #[derive(Debug, Default)]
    struct Written(usize);
    let written = state.get_or_insert_extension(Written::default());
    written.0 = written.0.saturating_add(bytes);
    // A text may be captured and written again, a few times over.
    within(written.0, limit.saturating_mul(4))
}

fn within(bytes: usize, limit: usize) -> Result<(), minijinja::Error> {
    if bytes <= limit {
        return Ok(());
    }
    Err(invalid(format!("makes a text of more than {limit} bytes")))
}

/// Whether a text has a number of more than four digits.
fn has_wide_field(text: &str) -> bool {
    text.as_bytes().windows(5).any(|digits| digits.iter().all(u8::is_ascii_digit))
}

fn replace(text: &str, args: &[Value], limit: usize) -> Result<Value, minijinja::Error> {
    let (from, to, count): (&str, &str, Option<i64>) = minijinja::value::from_args(args)?;
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = text.matches(from).count().min(count);
    within(text.len().saturating_add(found.saturating_mul(to.len())), limit)?;
    Ok(Value::from(text.replacen(from, to, count)))
}

fn indent(text: &str, width: usize, first: bool, limit: usize) -> Result<String, minijinja::Error> {
    let lines = text.split('\n').count();
    within(text.len().saturating_add(lines.saturating_mul(width)), limit)?;
    let space = " ".repeat(width);
    let mut out = String::new();
    for (n, line) in text.split('\n').enumerate() {
        if n > 0 {
            out.push('\n');
        }
        if !line.is_empty() && (n > 0 || first) {
            out.push_str(&space);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn join(
    value: Value,
    glue: Option<String>,
    attribute: Option<String>,
    limit: usize,
) -> Result<String, minijinja::Error> {
    let mut out = String::new();
    for (n, item) in value.try_iter()?.enumerate() {
        if n > 0 {
            out.push_str(glue.as_deref().unwrap_or(""));
        }
        let item = match &attribute {
            Some(attribute) => item.get_attr(attribute)?,
            None => item,
        };
        out.push_str(&python::text(&item));
        within(out.len(), limit)?;
    }
    Ok(out)
}

fn tojson(value: &Value, kwargs: &Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent {
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_usize() {
            Some(spaces) => " ".repeat(spaces.min(64)),
            None => python::text(&indent),
        }),
        None => None,
    };
    let separators: Option<Value> = kwargs.get("separators")?;
    let separators = separators.filter(|pair| !pair.is_none());
    let part = |n: usize| {
        separators
            .as_ref()
            .and_then(|pair| pair.get_item_by_index(n).ok())
            .map(|v| python::text(&v))
    };
    let how = Dump {
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        item: part(0),
        key: part(1),
        sorted: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    python::dumps(value, &how).map_err(invalid)
}

/// `{% generation %}` marks what an assistant wrote, which is of use in training only. What is left
/// is its scope.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, behind) = tag.split_at(end + 2);
        let inner = tag[2..end].trim_matches(['-', '+']).trim();
        match inner {
            "generation" | "endgeneration" => {
                let word = if inner == "generation" { "with" } else { "endwith" };
                out.push_str(&tag.replace(inner, word));
            }
            _ => out.push_str(tag),
        }
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, variables: &str) -> Result<String, Error> {
        let templates = [("default".to_owned(), source.to_owned())];
        let templates = Templates::new(&templates, 10_000, Some(UNIX_EPOCH))?;
        templates.render("default", serde_json::from_str(variables).unwrap(), 0, 10_000)
    }

    // Expected texts: jinja2 3.1.6 as transformers 5.23 sets it up.
    #[test]
    fn values_and_blocks_come_out_as_with_transformers() {
        let cases = [
            ("{{ x }} {{ y }} {{ n }} {{ f }}", r#"{"x":true,"n":null,"f":1.0}"#, "True  None 1.0"),
            ("{{ l }}{{ l|string }}{{ l|join('-') }}", r#"{"l":["a",1]}"#, "['a', 1]['a', 1]a-1"),
            (
                "{{ t|tojson }}{{ t|tojson(indent=2) }}",
                r#"{"t":{"b":1,"a":"<"}}"#,
                "{\"b\": 1, \"a\": \"<\"}{\n  \"b\": 1,\n  \"a\": \"<\"\n}",
            ),
            ("a\n  {% if true %}\n b\n  {% endif %}\nc\n", "{}", "a\n b\nc"),
            ("{% generation %}x{% set y = 1 %}{%- endgeneration %}\n{{ y }}", "{}", "x"),
            (
                "{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
                "{}",
                "13",
            ),
            ("{{ strftime_now('%d %b %Y') }}", "{}", "01 Jan 1970"),
            (
                "{{ 'a' is sequence }}{{ 'a' is iterable }}{{ {} is iterable }}",
                "{}",
                "TrueTrueTrue",
            ),
            (
                "{{ x ~ n ~ f }}|{{ [1] + [2] }}",
                r#"{"x":true,"n":null,"f":1e-7}"#,
                "TrueNone1e-07|[1, 2]",
            ),
            ("{{ 'a\nb\n\nc'|indent(2) }}", "{}", "a\n  b\n\n  c"),
            ("{{ 'x,y'.replace(',', ';') }}{{ ','.join(['a', 'b']) }}", "{}", "x;ya,b"),
        ];
        for (source, variables, expected) in cases {
            assert_eq!(render(source, variables).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn a_template_that_refuses_says_why() {
        let error = render("\n{{ raise_exception('roles must alternate') }}", "{}").unwrap_err();
        assert_eq!(error.to_string(), "chat template \"default\": roles must alternate (line 2)");
    }

    #[test]
    fn a_template_that_would_run_on_or_grow_without_end_is_stopped() {
        let ten = "[1,2,3,4,5,6,7,8,9,10]";
        let deep = (0..9).map(|n| format!("{{% for x{n} in {ten} %}}")).collect::<String>()
            + "{% set y = 1 %}"
            + &"{% endfor %}".repeat(9);
        assert!(render(&deep, "{}").unwrap_err().to_string().contains("too many steps"));
        let wide = "{% for x in range(9999) %}12345678{% endfor %}";
        assert!(render(wide, "{}").unwrap_err().to_string().contains("more than"));
        let caught = "{% set ns = namespace(s='abcdefgh') %}{% for x in range(60) %}\
            {% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}";
        assert!(render(caught, "{}").unwrap_err().to_string().contains("more than"));
        for join in ["ns.s ~ ns.s", "ns.s + ns.s"] {
            let doubled = format!(
                "{{% set ns = namespace(s='ab') %}}{{% for x in range(60) %}}{{% set ns.s = {join} %}}{{% endfor %}}"
            );
            assert!(render(&doubled, "{}").unwrap_err().to_string().contains("more than"));
        }
        let indented = "{% set x = 'a\nb'|indent(1000000000) %}";
        assert!(render(indented, "{}").unwrap_err().to_string().contains("more than"));
        let replaced = "{% set ns = namespace(s='aa') %}{% for x in range(60) %}\
            {% set ns.s = ns.s.replace('a', 'aaaa') %}{% endfor %}";
        assert!(render(replaced, "{}").unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn what_is_no_jinja_is_refused_with_its_line() {
        let error = render("a\n{% for %}", "{}").unwrap_err().to_string();
        assert!(error.contains("default") && error.contains("line 2"), "{error}");
    }
}
