//! What is kept over a restart: where, how often, and whose to begin with.

use std::time::Duration;

use super::ConfigError;

/// What is kept over a restart.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The directory of snapshots and the digest key.
    pub(crate) dir: Option<String>,
    /// From one snapshot to the next.
    pub(crate) interval: Duration,
    /// Other replicas to begin with, where the directory has no snapshot: the first that has one.
    pub(crate) from: Vec<String>,
    /// The file with the token that they want.
    pub(crate) from_token_file: Option<String>,
    /// Whether others may begin with a snapshot of this one.
    pub(crate) share: bool,
}

impl Default for State {
    fn default() -> State {
        State {
            dir: None,
            interval: Duration::from_secs(60),
            from: Vec::new(),
            from_token_file: None,
            share: false,
        }
    }
}

impl State {
    /// The replicas to begin with. An empty text, as a variable of the environment may be, is none.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = &String> {
        self.from.iter().filter(|from| !from.is_empty())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let State { dir, interval, from_token_file, share, .. } = self;
        if interval.is_zero() {
            return Err(ConfigError::new("state.interval 0s: expected a duration above 0"));
        }
        if let Some(from) = self.replicas().find(|from| !from.starts_with("http://")) {
            return Err(ConfigError(format!("state.from {from:?}: expected http://host:port")));
        }
        let has_replicas = self.replicas().next().is_some();
        if from_token_file.is_some() && !has_replicas {
            return Err(ConfigError::new("state.from_token_file is set without state.from"));
        }
        for (key, is_set) in [("state.from", has_replicas), ("state.share", *share)] {
            if is_set && dir.is_none() {
                return Err(ConfigError(format!(
                    "{key} is set without state.dir, where the digest key is that both replicas need"
                )));
            }
        }
        Ok(())
    }
}
