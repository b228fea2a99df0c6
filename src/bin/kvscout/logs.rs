//! Log lines on stderr, as text or JSON. Tokens, salts and payloads are never logged.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

macro_rules! names {
    ($of:ident { $($name:literal => $variant:ident),* }) => {
        impl FromStr for $of {
            type Err = ();

            fn from_str(text: &str) -> Result<$of, ()> {
                match text {
                    $($name => Ok($of::$variant),)*
                    _ => Err(()),
                }
            }
        }

        impl fmt::Display for $of {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $($of::$variant => $name,)*
                })
            }
        }
    };
}

names! { Format { "text" => Text, "json" => Json } }
names! { Level {
    "off" => Off, "error" => Error, "warn" => Warn, "info" => Info, "debug" => Debug,
    "trace" => Trace
} }

impl From<Level> for LevelFilter {
    fn from(level: Level) -> LevelFilter {
        match level {
            Level::Off => LevelFilter::OFF,
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        }
    }
}

/// Sends this process's log lines to stderr from now on.
///
/// The level is that of our own lines. Libraries never speak below `warn`: what an HTTP library
/// traces includes what came over the wire.
pub(crate) fn start(format: Format, level: Level) {
    let level = LevelFilter::from(level);
    let filter =
        Targets::new().with_target("kvscout", level).with_default(level.min(LevelFilter::WARN));
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match format {
        Format::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        Format::Json => layer.json().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}
