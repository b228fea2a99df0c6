//! What values must not be together, whatever each may be alone.

use super::discover::DiscoverEntry;
use super::model::TokenizerSource;
use super::{Config, ConfigError, caller};

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.state.check()?;
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
}
