//! Commands that go to the store together.

use std::sync::OnceLock;

use redis::{Arg, Cmd};

use super::slot::slot;

/// A Lua script, sent by its hash.
#[derive(Debug)]
pub(in crate::index::redis) struct Script {
    source: &'static str,
    sha: OnceLock<String>,
}

impl Script {
    pub(in crate::index::redis) const fn new(source: &'static str) -> Script {
        Script { source, sha: OnceLock::new() }
    }

    pub(super) fn sha(&self) -> &str {
        self.sha.get_or_init(|| redis::Script::new(self.source).get_hash().to_owned())
    }

    pub(super) fn load(&self) -> Cmd {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(self.source);
        cmd
    }
}

/// One command and the slot of its key.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) slot: u16,
    pub(super) cmd: Cmd,
    pub(super) script: Option<&'static Script>,
}

impl Entry {
    /// The command with the script's text instead of its hash, for a server that forgot it.
    pub(super) fn with_source(&self, script: &Script) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(script.source);
        for arg in self.cmd.args_iter().skip(2) {
            if let Arg::Simple(bytes) = arg {
                cmd.arg(bytes);
            }
        }
        cmd
    }
}

/// Commands in order, each with the key that decides its slot.
///
/// In a cluster, commands for different slots run at the same time. Commands for one slot run in
/// order, with two exceptions: a script that the server had forgotten runs after the rest of the
/// batch, and so does a command whose slot is just being moved to another server.
#[derive(Debug)]
pub(in crate::index::redis) struct Batch {
    pub(super) entries: Vec<Entry>,
    pub(super) reads: bool,
}

impl Batch {
    /// An empty batch, with the deadline of a change.
    pub(in crate::index::redis) fn new() -> Batch {
        Batch { entries: Vec::new(), reads: false }
    }

    /// An empty batch that changes nothing, with the deadline of a lookup.
    pub(in crate::index::redis) fn reading() -> Batch {
        Batch { entries: Vec::new(), reads: true }
    }

    /// Adds a command. All its keys lie in the slot of `key`. It neither blocks nor subscribes.
    pub(in crate::index::redis) fn push(&mut self, key: &[u8], cmd: Cmd) {
        self.entries.push(Entry { slot: slot(key), cmd, script: None });
    }

    /// Adds a script. All its keys lie in one slot.
    pub(in crate::index::redis) fn script(
        &mut self,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) {
        debug_assert!(
            keys.windows(2).all(|two| slot(two[0]) == slot(two[1])),
            "keys of one script in two slots"
        );
        self.script_across(script, keys, args);
    }

    /// Adds a script whose keys lie in several slots, for a server that has all of them.
    pub(in crate::index::redis) fn script_across(
        &mut self,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) {
        let at = keys.first().map_or(0, |key| slot(key));
        let parts = keys.iter().chain(args);
        let size: usize = parts.clone().map(|part| part.len()).sum();
        let mut cmd = Cmd::with_capacity(keys.len() + args.len() + 3, size + 64);
        cmd.arg("EVALSHA").arg(script.sha()).arg(keys.len());
        for part in parts {
            cmd.arg(*part);
        }
        self.entries.push(Entry { slot: at, cmd, script: Some(script) });
    }

    /// How many commands it has.
    pub(in crate::index::redis) fn len(&self) -> usize {
        self.entries.len()
    }
}
