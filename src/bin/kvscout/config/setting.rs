//! How one value is read from text and written back, the same in file, environment and flags.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::str::FromStr;
use std::time::Duration;

use kvscout::block::BlockSize;
use kvscout::hash::vllm::{Algorithm, Version};
use kvscout::ingest::zmq::{Endpoint, Mode};
use kvscout::scout::{Copies, OnClear};
use kvscout::tokenize::ContentFormat;
use toml::Value;

use super::OnGap;
use super::discover::{DnsAddress, Family};
use super::model::TokenizerSource;
use super::store::{Address, StoreMode};
use crate::auth::Class;
use crate::dial::Rule;
use crate::http::MooncakeAnswer;
use crate::logs::{Format, Level};
use crate::service::Labels;

/// A type of configuration values.
pub(super) trait Setting: Sized {
    /// What would be right, for error messages.
    const EXPECTED: &'static str;

    /// Reads the value; a list has any number of texts, everything else one.
    fn read(texts: &[String]) -> Option<Self>;

    /// The value as TOML; `None` where it is absent.
    fn write(&self) -> Option<Value>;
}

/// One key of a table: its name, and how it reaches its place in a `T`.
pub(crate) struct Key<T> {
    /// The dotted path in the file.
    pub(crate) path: &'static str,
    pub(super) set: fn(&mut T, &[String]) -> Result<(), &'static str>,
    pub(super) get: fn(&T) -> Option<Value>,
}

/// Puts a value in its place.
pub(super) fn assign<S: Setting>(place: &mut S, texts: &[String]) -> Result<(), &'static str> {
    *place = S::read(texts).ok_or(S::EXPECTED)?;
    Ok(())
}

/// A table of keys: the path in the file, and the field behind it.
macro_rules! keys {
    ($of:ty { $($path:literal => $($field:ident).+;)* }) => {
        &[$(Key::<$of> {
            path: $path,
            set: |all, texts| assign(&mut all.$($field).+, texts),
            get: |all| Setting::write(&all.$($field).+),
        }),*]
    };
}
pub(super) use keys;

fn parsed<T: FromStr>(texts: &[String]) -> Option<T> {
    match texts {
        [text] => text.trim().parse().ok(),
        _ => None,
    }
}

fn integer(value: impl TryInto<i64>) -> Value {
    // A value above i64::MAX, which TOML cannot write, acts like the largest one that it can.
    Value::Integer(value.try_into().unwrap_or(i64::MAX))
}

macro_rules! settings {
    ($($of:ty: $expected:literal, $write:expr;)*) => {
        $(impl Setting for $of {
            const EXPECTED: &'static str = $expected;

            fn read(texts: &[String]) -> Option<$of> {
                parsed(texts)
            }

            fn write(&self) -> Option<Value> {
                let write: fn(&$of) -> Value = $write;
                Some(write(self))
            }
        })*
    };
}

settings! {
    bool: "true or false", |value| Value::Boolean(*value);
    u32: "an integer from 0 to 4294967295", |value| integer(*value);
    u64: "an integer from 0", |value| integer(*value);
    usize: "an integer from 0", |value| integer(*value);
    NonZeroU16: "a port from 1 to 65535", |value| integer(value.get());
    NonZeroU32: "an integer from 1 to 4294967295", |value| integer(value.get());
    NonZeroUsize: "an integer from 1", |value| integer(value.get());
    SocketAddr: "ADDRESS:PORT such as 127.0.0.1:13333 or [::1]:13333", |value| text(value);
    Endpoint: "tcp://host:port, tcp://[v6]:port or ipc://path", |value| text(value);
    DnsAddress: "a name and a port such as vllm.default.svc:5557; an address is a source", |value| text(value);
    Family: "auto, ipv4, ipv6 or both", |value| text(value);
    Format: "text or json", |value| text(value);
    Level: "off, error, warn, info, debug or trace", |value| text(value);
    MooncakeAnswer: "doc or branch", |value| text(value);
    OnGap: "flag or exclude", |value| text(value);
    OnClear: "all or gpu", |value| text(value);
    Copies: "count or presence", |value| text(value);
    StoreMode: "memory or redis", |value| text(value);
    Address: "an address such as redis://host:6379, without a password (that is store.password_file or \
              store.password_env)", |value| text(value);
    Version: "a vLLM version such as 0.33.0", |value| text(value);
}

fn text(value: &impl ToString) -> Value {
    Value::String(value.to_string())
}

impl Setting for f64 {
    const EXPECTED: &'static str = "a number from 0";

    fn read(texts: &[String]) -> Option<f64> {
        parsed(texts).filter(|number: &f64| number.is_finite() && *number >= 0.0)
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

impl Setting for String {
    const EXPECTED: &'static str = "a text that is not empty";

    fn read(texts: &[String]) -> Option<String> {
        match texts {
            [text] if !text.is_empty() => Some(text.clone()),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        Some(text(self))
    }
}

impl Setting for TokenizerSource {
    const EXPECTED: &'static str =
        "a tokenizer.json, its folder, a name in the Hugging Face cache, or \"engine\"";

    fn read(texts: &[String]) -> Option<TokenizerSource> {
        String::read(texts)?.parse().ok()
    }

    fn write(&self) -> Option<Value> {
        Some(text(self))
    }
}

/// The words of vLLM's `--chat-template-content-format`.
impl Setting for ContentFormat {
    const EXPECTED: &'static str = "auto, string or openai";

    fn read(texts: &[String]) -> Option<ContentFormat> {
        let [text] = texts else { return None };
        match text.as_str() {
            "auto" => Some(ContentFormat::Auto),
            "string" => Some(ContentFormat::Text),
            "openai" => Some(ContentFormat::Parts),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        Some(text(&match self {
            ContentFormat::Auto => "auto",
            ContentFormat::Text => "string",
            ContentFormat::Parts => "openai",
        }))
    }
}

impl Setting for Vec<String> {
    const EXPECTED: &'static str = "a list of texts";

    /// Commas divide, so that one environment variable holds a list.
    fn read(texts: &[String]) -> Option<Vec<String>> {
        let parts = texts.iter().flat_map(|text| text.split(','));
        Some(parts.map(|part| part.trim().to_owned()).collect())
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Array(self.iter().map(text).collect()))
    }
}

/// Lists of words of their own: commas divide, as for other lists; an empty text is none.
macro_rules! lists {
    ($($of:ty: $expected:literal;)*) => {
        $(impl Setting for Vec<$of> {
            const EXPECTED: &'static str = $expected;

            fn read(texts: &[String]) -> Option<Vec<$of>> {
                let parts = texts.iter().flat_map(|text| text.split(',')).map(str::trim);
                parts.filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
            }

            fn write(&self) -> Option<Value> {
                Some(Value::Array(self.iter().map(text).collect()))
            }
        })*
    };
}

lists! {
    Class: "a list of score, pick, read, change and admin";
    Rule: "a list of private, loopback, networks such as 10.0.0.0/8 and names such as *.svc.cluster.local:5557-5560";
}

/// Commas divide, as for other lists.
impl Setting for Labels {
    const EXPECTED: &'static str = "a list of texts such as \"role=prefill\"";

    fn read(texts: &[String]) -> Option<Labels> {
        let parts = texts.iter().flat_map(|text| text.split(',')).map(str::trim);
        let label = |part: &str| match part.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                Some((name.to_owned(), value.to_owned()))
            }
            _ => None,
        };
        parts.filter(|part| !part.is_empty()).map(label).collect()
    }

    fn write(&self) -> Option<Value> {
        let labels = self.iter().map(|(name, value)| text(&format!("{name}={value}")));
        Some(Value::Array(labels.collect()))
    }
}

/// A prefix of bytes; any text, also an empty one.
impl Setting for Vec<u8> {
    const EXPECTED: &'static str = "a text";

    fn read(texts: &[String]) -> Option<Vec<u8>> {
        match texts {
            [text] => Some(text.clone().into_bytes()),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        Some(Value::String(String::from_utf8_lossy(self).into_owned()))
    }
}

impl Setting for BlockSize {
    const EXPECTED: &'static str = "a number of tokens from 1";

    fn read(texts: &[String]) -> Option<BlockSize> {
        BlockSize::new(parsed(texts)?)
    }

    fn write(&self) -> Option<Value> {
        Some(integer(self.get()))
    }
}

impl Setting for Mode {
    const EXPECTED: &'static str = "connect or bind";

    fn read(texts: &[String]) -> Option<Mode> {
        match texts {
            [text] if text == "connect" => Some(Mode::Connect),
            [text] if text == "bind" => Some(Mode::Bind),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        match self {
            Mode::Connect => Some(text(&"connect")),
            Mode::Bind | Mode::BindShared => Some(text(&"bind")),
        }
    }
}

impl Setting for Duration {
    const EXPECTED: &'static str = "a duration such as 500ms, 5s or 2m";

    fn read(texts: &[String]) -> Option<Duration> {
        let [text] = texts else { return None };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        let millis = self.as_millis();
        Some(Value::String(match millis % 1000 {
            0 => format!("{}s", millis / 1000),
            _ => format!("{millis}ms"),
        }))
    }
}

impl Setting for Algorithm {
    const EXPECTED: &'static str = "a value of vLLM's --prefix-caching-hash-algo such as sha256";

    fn read(texts: &[String]) -> Option<Algorithm> {
        let [text] = texts else { return None };
        text.parse().ok()
    }

    fn write(&self) -> Option<Value> {
        Some(text(&self.as_str()))
    }
}

/// A duration as it is written everywhere.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    Setting::read(&[text.to_owned()]).ok_or_else(|| format!("expected {}", Duration::EXPECTED))
}

/// A value that need not be there; an empty text takes it away.
impl<S: Setting> Setting for Option<S> {
    const EXPECTED: &'static str = S::EXPECTED;

    fn read(texts: &[String]) -> Option<Option<S>> {
        match texts {
            [text] if text.is_empty() => Some(None),
            _ => S::read(texts).map(Some),
        }
    }

    fn write(&self) -> Option<Value> {
        match self {
            Some(value) => value.write(),
            // So that what is absent by choice stays absent when it is read back.
            None => Some(Value::String(String::new())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<S: Setting>(text: &str) -> Option<S> {
        S::read(&[text.to_owned()])
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(read("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read("2m"), Some(Duration::from_secs(120)));
        assert_eq!(read::<Duration>("5"), None);
        assert_eq!(Duration::from_millis(1500).write(), Some(Value::String("1500ms".into())));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(read::<f64>("-0.1"), None);
        assert_eq!(read::<f64>("NaN"), None);
        assert_eq!(read::<NonZeroUsize>("0"), None);
        assert_eq!(read::<BlockSize>("0"), None);
    }

    #[test]
    fn an_empty_text_takes_an_optional_value_away() {
        assert_eq!(read::<Option<Duration>>(""), Some(None));
        assert_eq!(read("5s"), Some(Some(Duration::from_secs(5))));
    }
}
