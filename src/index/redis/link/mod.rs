//! The way to the server: one connection, one pipeline for each [`Batch`].

use std::fmt;
use std::sync::OnceLock;

use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, Value};

use crate::error::{Error, ErrorKind};

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

    fn sha(&self) -> &str {
        self.sha.get_or_init(|| redis::Script::new(self.source).get_hash().to_owned())
    }
}

/// Commands in order, each with the key that decides its slot.
#[derive(Debug)]
pub(in crate::index::redis) struct Batch {
    commands: Vec<(Cmd, Option<&'static Script>)>,
}

impl Batch {
    /// An empty batch.
    pub(in crate::index::redis) fn new() -> Batch {
        Batch { commands: Vec::new() }
    }

    /// An empty batch that changes nothing.
    pub(in crate::index::redis) fn reading() -> Batch {
        Batch::new()
    }

    /// Adds a command. All its keys lie in the slot of `key`.
    pub(in crate::index::redis) fn push(&mut self, _key: &[u8], cmd: Cmd) {
        self.commands.push((cmd, None));
    }

    /// Adds a script. All its keys lie in one slot.
    pub(in crate::index::redis) fn script(
        &mut self,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(script.sha()).arg(keys.len());
        for part in keys.iter().chain(args) {
            cmd.arg(*part);
        }
        self.commands.push((cmd, Some(script)));
    }

    /// How many commands it has.
    pub(in crate::index::redis) fn len(&self) -> usize {
        self.commands.len()
    }
}

/// Why a call, or one command of it, has no result.
#[derive(Clone, Debug)]
pub(in crate::index::redis) enum Fault {
    /// No connection.
    Down(Box<str>),
    /// The server answered with an error: its first word and the rest.
    Server(Box<str>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Fault::Down(text) | Fault::Server(text)) = self;
        f.write_str(text)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::new(ErrorKind::Unavailable, fault.to_string())
    }
}

/// The connection.
#[derive(Debug)]
pub(in crate::index::redis) struct Link {
    connection: MultiplexedConnection,
}

impl Link {
    /// Connects to the server at this URL.
    pub(in crate::index::redis) async fn open(url: &str) -> Result<Link, Fault> {
        let down = |e: redis::RedisError| Fault::Down(e.to_string().into());
        let client = Client::open(url).map_err(down)?;
        let connection = client.get_multiplexed_async_connection().await.map_err(down)?;
        Ok(Link { connection })
    }

    /// One round trip; replies in order.
    pub(in crate::index::redis) async fn send(
        &self,
        batch: Batch,
    ) -> Result<Vec<Result<Value, Fault>>, Fault> {
        let mut replies = self.pipeline(batch.commands.iter().map(|c| &c.0)).await?;
        for (reply, (command, script)) in replies.iter_mut().zip(&batch.commands) {
            if let (Err(Fault::Server(text)), Some(script)) = (&*reply, script)
                && text.starts_with("NOSCRIPT")
            {
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(script.source);
                let again = self.pipeline([&load, command].into_iter()).await?.pop();
                *reply = again.expect("a reply to each command");
            }
        }
        Ok(replies)
    }

    async fn pipeline(
        &self,
        commands: impl Iterator<Item = &Cmd>,
    ) -> Result<Vec<Result<Value, Fault>>, Fault> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let (mut connection, count) = (self.connection.clone(), pipeline.len());
        let values = connection.send_packed_commands(&pipeline, 0, count).await;
        let values = values.map_err(|e| Fault::Down(e.to_string().into()))?;
        let reply = |value| match value {
            Value::ServerError(error) => {
                let text = format!("{} {}", error.code(), error.details().unwrap_or_default());
                Err(Fault::Server(text.into()))
            }
            value => Ok(value),
        };
        Ok(values.into_iter().map(reply).collect())
    }
}
