//! What went wrong on the way to the store, and what to do about it.

use std::fmt;
use std::time::Duration;

use redis::{RedisError, ServerError};

use crate::error::{Error, ErrorKind};

/// Why a call, or one command of it, has no result.
///
/// A change that failed with [`Late`](Fault::Late), or with [`Down`](Fault::Down) because the
/// connection broke, may have been made all the same.
#[derive(Clone, Debug)]
pub(in crate::index::redis) enum Fault {
    /// No connection: never had, lost, or the breaker is open. Why.
    Down(Box<str>),
    /// No reply at the deadline, from which server.
    Late(Late),
    /// Too many calls are in flight already: this many.
    Busy(usize),
    /// The server refuses this client: password, permission. What would be right.
    Denied(Box<str>),
    /// The server answered with another error.
    Server(Answer),
}

/// A missing reply.
#[derive(Clone, Debug)]
pub(in crate::index::redis) struct Late {
    pub(super) server: Box<str>,
    pub(super) deadline: Duration,
}

/// An error that a server answered.
#[derive(Clone, Debug)]
pub(in crate::index::redis) struct Answer {
    condition: Condition,
    code: Box<str>,
    text: Box<str>,
    server: Box<str>,
}

/// What an answered error says of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::index::redis) enum Condition {
    /// It is still reading its data.
    Loading,
    /// It is a replica, or became one.
    ReadOnly,
    /// `maxmemory` is reached and nothing may be evicted.
    OutOfMemory,
    /// The cluster does not serve this slot.
    ClusterDown,
    /// The slot is elsewhere, and following there did not end.
    Moved,
    /// The slot is just moving.
    TryAgain,
    /// Somebody's script keeps it busy.
    Occupied,
    /// It refuses changes because it cannot save them, or has too few replicas.
    RefusesWrites,
    /// A command's keys lie in several slots, and the server keeps these apart.
    CrossSlot,
    /// Anything else: wrong type, a script's own error, an unknown command.
    Other,
}

impl Answer {
    /// What it says of the server.
    #[cfg(test)]
    pub(in crate::index::redis) fn condition(&self) -> Condition {
        self.condition
    }

    /// The first word of the error, as `WRONGTYPE`, or as a script chose it.
    #[cfg(test)]
    pub(in crate::index::redis) fn code(&self) -> &str {
        &self.code
    }

    /// The rest of it.
    #[cfg(test)]
    pub(in crate::index::redis) fn text(&self) -> &str {
        &self.text
    }
}

/// What a server's error text may be shown of: no arguments of ours, no line ends, not too long.
fn shown(text: &str) -> Box<str> {
    // An unknown command is answered with its arguments.
    let text = text.split(", with args beginning with").next().unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(200).collect::<String>().into()
}

impl Fault {
    /// From an error that a server answered to a command.
    pub(super) fn answered(server: &str, error: &ServerError) -> Fault {
        Fault::from_words(server, error.code(), error.details().unwrap_or_default())
    }

    /// Whether the server keeps apart what one command touches.
    pub(in crate::index::redis) fn is_of_several_slots(&self) -> bool {
        matches!(self, Fault::Server(Answer { condition: Condition::CrossSlot, .. }))
    }

    /// From an error of connecting, logging in or the transport.
    pub(super) fn connecting(server: &str, error: &RedisError) -> Fault {
        if error.kind() == redis::ErrorKind::AuthenticationFailed {
            return Fault::from_words(server, "WRONGPASS", "");
        }
        match error.code() {
            Some(code) => Fault::from_words(server, code, error.detail().unwrap_or_default()),
            None => {
                let text = shown(&error.to_string());
                let hint = if text.contains("certificate") {
                    "; check tls_ca and the name that the certificate is for"
                } else {
                    ""
                };
                Fault::Down(format!("no connection to {server}: {text}{hint}").into())
            }
        }
    }

    fn from_words(server: &str, code: &str, text: &str) -> Fault {
        let text = shown(text);
        let condition = match code {
            "NOAUTH" => {
                let what = format!(
                    "{server} wants a password: give one as a file or an environment variable"
                );
                return Fault::Denied(what.into());
            }
            "WRONGPASS" => {
                let what = format!(
                    "{server} refuses the user and password (WRONGPASS): check the user in the address \
                     and what the password file or variable holds"
                );
                return Fault::Denied(what.into());
            }
            "NOPERM" | "DENIED" => {
                let what = format!(
                    "{server} refuses for want of permission ({code}): {text}; give the user the commands \
                     and key patterns that docs/redis.md lists"
                );
                return Fault::Denied(what.into());
            }
            "LOADING" => Condition::Loading,
            "READONLY" => Condition::ReadOnly,
            "OOM" => Condition::OutOfMemory,
            "CLUSTERDOWN" | "MASTERDOWN" => Condition::ClusterDown,
            "MOVED" | "ASK" => Condition::Moved,
            "CROSSSLOT" => Condition::CrossSlot,
            "TRYAGAIN" => Condition::TryAgain,
            "BUSY" => Condition::Occupied,
            "MISCONF" | "NOREPLICAS" => Condition::RefusesWrites,
            _ => Condition::Other,
        };
        Fault::Server(Answer { condition, code: code.into(), text, server: server.into() })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Down(why) | Fault::Denied(why) => f.write_str(why),
            Fault::Late(late) => {
                write!(f, "no reply from {} within {:?}", late.server, late.deadline)
            }
            Fault::Busy(limit) => {
                write!(
                    f,
                    "{limit} calls to the store are in flight already: raise in_flight, or ask less"
                )
            }
            Fault::Server(Answer { condition, code, text, server }) => {
                let advice = match condition {
                    Condition::Loading => "it is still loading its data and will answer later",
                    Condition::ReadOnly => {
                        "it is a replica: use the master's address, or redis+sentinel"
                    }
                    Condition::OutOfMemory => "maxmemory is reached: raise it",
                    Condition::ClusterDown => "the cluster misses a master: see CLUSTER INFO",
                    Condition::Moved => {
                        "it is a node of a cluster, or slots are moving: use redis+cluster"
                    }
                    Condition::CrossSlot => "it keeps slots apart: use redis+cluster",
                    Condition::TryAgain => "slots are just moving: try again",
                    Condition::Occupied => "a script keeps it busy: see SLOWLOG GET",
                    Condition::RefusesWrites => "it refuses changes: see its log",
                    Condition::Other => return write!(f, "{server} answered {code}: {text}"),
                };
                write!(f, "{server} answered {code}: {advice}")
            }
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        let kind = match fault {
            Fault::Denied(_) => ErrorKind::Denied,
            Fault::Down(_) | Fault::Late(_) | Fault::Busy(_) | Fault::Server(_) => {
                ErrorKind::Unavailable
            }
        };
        Error::new(kind, fault.to_string())
    }
}
