//! A fleet of simulated engines, an oracle that knows what each of them holds, and a router that checks
//! what kvscout says of them.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod cache;
pub(crate) mod checker;
pub(crate) mod client;
pub(crate) mod engine;
pub(crate) mod oracle;
pub(crate) mod prompts;
pub(crate) mod random;
pub(crate) mod router;
pub(crate) mod schedule;
pub(crate) mod wire;

use std::path::PathBuf;

/// A directory for the state of one run.
pub(crate) fn state_directory(test: &str) -> PathBuf {
    let name = format!("kvscout-{test}-{}", std::process::id());
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A number from the environment, for whoever wants another run than the usual one.
pub(crate) fn from_environment(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
        Err(_) => usual,
    }
}
