//! What values must not be together, whatever each may be alone.

use super::discover::DiscoverEntry;
use super::model::TokenizerSource;
use super::{Config, ConfigError, State, caller};

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.check_state()?;
        self.store.check(self)?;
        self.check_models()?;
        caller::check(&self.callers, &self.auth, &self.tls)?;
        if self.metrics_interval.is_zero() {
            return Err(ConfigError::new("metrics_interval \"0s\" never rests; at least 1ms"));
        }
        if self.replay.rebuild.is_zero() {
            return Err(ConfigError::new(
                "replay.rebuild \"0s\" asks without end for what an engine no longer has; at least 1ms",
            ));
        }
        if self.ready.workers > 1.0 {
            let share = self.ready.workers;
            return Err(ConfigError(format!(
                "ready.workers {share}: expected a share from 0 to 1"
            )));
        }
        match (self.trust_topics, &self.topic_bind) {
            (true, None) => Err(ConfigError::new(
                "trust_topics is true without an endpoint: set topic_bind, such as tcp://*:5557",
            )),
            (false, Some(bind)) => Err(ConfigError(format!(
                "topic_bind {bind} lets every sender speak for every pod: set trust_topics = true \
                 if that is acceptable",
            ))),
            _ => Ok(()),
        }
    }

    fn check_models(&self) -> Result<(), ConfigError> {
        for entry in &self.models {
            let Some(engine) = (entry.tokenizer == TokenizerSource::Engine).then_some(&entry.name)
            else {
                continue;
            };
            let serves = |entry: &DiscoverEntry| {
                entry.http.is_some() && entry.model.as_ref().is_none_or(|served| served == engine)
            };
            if self.engines_of(engine).next().is_none() && !self.discover.iter().any(serves) {
                return Err(ConfigError(format!(
                    "models.{engine:?}, tokenizer \"engine\": no source of this model says where its HTTP API \
                     is; set http = \"http://host:port\", or the port where it is discovered"
                )));
            }
        }
        Ok(())
    }

    fn check_state(&self) -> Result<(), ConfigError> {
        let State { dir, interval, from_token_file, share, .. } = &self.state;
        if interval.is_zero() {
            return Err(ConfigError::new("state.interval 0s: expected a duration above 0"));
        }
        if let Some(from) = self.state.replicas().find(|from| !from.starts_with("http://")) {
            return Err(ConfigError(format!("state.from {from:?}: expected http://host:port")));
        }
        let has_replicas = self.state.replicas().next().is_some();
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
