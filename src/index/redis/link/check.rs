//! What about a server will bite later, said when it is first met.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use redis::{Arg, Value};

use super::batch::{Batch, Entry};
use super::connect::text;
use super::fault::Fault;
use super::node::{Form, Limit, Node};
use super::{Link, Servers};

/// The oldest server that is tested against in principle: older ones are out of support.
const OLDEST: (u32, u32) = (6, 2);

/// What a [`StoreWarning`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WarningKind {
    /// The server may throw away any key of ours when its memory is full.
    Eviction,
    /// The user may not run a command, or not on our keys.
    Permission,
    /// The server is older than what is supported.
    Version,
    /// The address says one server and the server is part of a cluster.
    Cluster,
    /// One lost master would stop the whole cluster.
    Coverage,
    /// Something could not be looked at. Nothing need be wrong.
    Unknown,
}

/// Something about a server that will, or may, bite later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreWarning {
    /// What it is about.
    pub kind: WarningKind,
    /// The server, as host and port or path.
    pub server: Box<str>,
    /// What was found and what would be right.
    pub text: Box<str>,
}

impl fmt::Display for StoreWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.server, self.text)
    }
}

impl Link {
    /// Looks at every server that is connected, and tries `trials`: commands that the store will
    /// need, on keys that make them harmless. Only refusals count; other errors of theirs do not.
    pub(in crate::index::redis) async fn check(&self, trials: Batch) -> Vec<StoreWarning> {
        let mut warnings = Vec::new();
        for node in self.nodes() {
            self.examine(&node, &mut warnings).await;
        }
        let names: Vec<String> = trials.entries.iter().map(command_name).collect();
        // Without a reply there is nothing to warn of: the callers' own faults say it.
        for (name, reply) in names.iter().zip(self.send(trials).await.unwrap_or_default()) {
            if let Err(fault @ Fault::Denied(_)) = reply {
                let text = format!("the store needs {name}: {fault}");
                warnings.push(warning(WarningKind::Permission, "the store", text));
            }
        }
        warnings
    }

    async fn examine(&self, node: &Arc<Node>, warnings: &mut Vec<StoreWarning>) {
        let plain = |words: &[&str]| {
            let mut cmd = redis::cmd(words[0]);
            words[1..].iter().for_each(|word| {
                cmd.arg(*word);
            });
            Entry { slot: 0, cmd, script: None }
        };
        let entries = [
            plain(&["INFO"]),
            plain(&["CONFIG", "GET", "maxmemory-policy"]),
            plain(&["CONFIG", "GET", "cluster-require-full-coverage"]),
        ];
        let commands: Vec<_> = entries.iter().map(|entry| (entry, Form::Plain)).collect();
        let limit = Limit { start: Instant::now(), deadline: self.profile.options.write_deadline };
        let Ok((server, values)) = node.call(&commands, limit).await else { return };
        let mut found = Found::default();
        if let Some(info) = values.first().and_then(text) {
            found.read(info);
        } else {
            let text = "INFO is not allowed, so its version and memory limit are unknown here";
            warnings.push(warning(WarningKind::Unknown, &server, text));
        }
        let setting = |at: usize| match values.get(at) {
            Some(Value::Array(pair)) => pair.get(1).and_then(text),
            _ => None,
        };
        found.policy = found.policy.or_else(|| setting(1).map(str::to_owned));
        found.coverage = setting(2) == Some("yes");
        if found.policy.is_none() {
            let text = "INFO and CONFIG GET are not allowed, so its eviction policy is unknown here; \
                        right is maxmemory-policy noeviction";
            warnings.push(warning(WarningKind::Unknown, &server, text));
        }
        found.judge(&server, matches!(self.servers, Servers::Cluster(_)), warnings);
    }
}

/// What was found out about one server.
#[derive(Debug, Default)]
pub(super) struct Found {
    version: Option<String>,
    policy: Option<String>,
    /// `None` where unknown.
    maxmemory: Option<u64>,
    cluster: bool,
    coverage: bool,
}

impl Found {
    pub(super) fn read(&mut self, info: &str) {
        for (name, value) in info.lines().filter_map(|line| line.trim().split_once(':')) {
            match name {
                // Valkey keeps this at the version of Redis that it is compatible with.
                "redis_version" => self.version = Some(value.to_owned()),
                "maxmemory" => self.maxmemory = value.parse().ok(),
                "maxmemory_policy" => self.policy = Some(value.to_owned()),
                "cluster_enabled" => self.cluster = value == "1",
                _ => {}
            }
        }
    }

    pub(super) fn judge(&self, server: &str, as_cluster: bool, warnings: &mut Vec<StoreWarning>) {
        let mut warn = |kind, text: String| warnings.push(warning(kind, server, text));
        if let Some(policy) = self.policy.as_deref().filter(|&policy| policy != "noeviction") {
            // Every key has a time to live, so volatile-* may take any of them too.
            let when = match self.maxmemory {
                Some(0) => "as soon as maxmemory is set",
                Some(_) => "when maxmemory is reached",
                None => "if maxmemory is set and reached",
            };
            warn(
                WarningKind::Eviction,
                format!(
                    "maxmemory-policy {policy} throws away keys out of the middle of prompts {when}, and \
                     scores then stop there; right is maxmemory-policy noeviction"
                ),
            );
        }
        if let Some(version) = &self.version {
            let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
            if let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next())
                && (major, minor) < OLDEST
            {
                let (major, minor) = OLDEST;
                warn(
                    WarningKind::Version,
                    format!("version {version} is too old; right is {major}.{minor} or later"),
                );
            }
        }
        if self.cluster && !as_cluster {
            let text = "it is part of a cluster, where one server has some of the keys only; right is \
                        an address with redis+cluster";
            warn(WarningKind::Cluster, text.to_owned());
        }
        if as_cluster && self.coverage {
            let text = "cluster-require-full-coverage is yes, so one lost master stops all others; \
                        with no, the others go on";
            warn(WarningKind::Coverage, text.to_owned());
        }
    }
}

fn warning(kind: WarningKind, server: &str, text: impl Into<Box<str>>) -> StoreWarning {
    StoreWarning { kind, server: server.into(), text: text.into() }
}

/// The first word, and for `SCRIPT` and the like the second.
fn command_name(entry: &Entry) -> String {
    let words = entry.cmd.args_iter().map(|arg| match arg {
        Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    });
    let words: Vec<String> = words.take(2).collect();
    match words.first().map(|word| word.to_ascii_uppercase()).as_deref() {
        Some("SCRIPT" | "FUNCTION" | "CLUSTER" | "CLIENT" | "CONFIG" | "OBJECT" | "MEMORY") => {
            words.join(" ")
        }
        _ => words.into_iter().next().unwrap_or_default(),
    }
}
