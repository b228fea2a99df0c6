//! What an engine's own metrics say beside its events: that it sleeps, or works and publishes nothing.
//!
//! An engine that is put to sleep drops its cache and announces that with its next step, which may be
//! hours away. And one whose events are off, or go elsewhere, is as quiet as one without traffic.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use kvscout::block::WorkerId;
use tracing::{debug, info, warn};

use crate::client::{self, Client};
use crate::config::Config;
use crate::config::source::SourceEntry;
use crate::doctor::label;
use crate::service::Service;

/// Prompt tokens that no engine computes without filling a block; a few short prompts, such as those
/// that ask whether it is alive, may.
const TRAFFIC: f64 = 1000.0;

/// Asks the engines of configured and discovered sources that have metrics, until the service is gone.
pub(crate) fn start(service: &Arc<Service>, config: &Config) -> std::io::Result<()> {
    let discovers = config.discover.iter().any(|entry| entry.http.is_some());
    if !discovers && config.sources.iter().all(|source| source.metrics.is_none()) {
        return Ok(());
    }
    let (service, config) = (Arc::downgrade(service), config.clone());
    let run = move || watch(&service, &config);
    thread::Builder::new().name("kvscout-pulse".into()).spawn(run).map(drop)
}

fn watch(service: &Weak<Service>, config: &Config) {
    let client = Client::new(client::METRICS);
    let mut pulses: HashMap<WorkerId, Pulse> = HashMap::new();
    loop {
        let Some(discovered) = service.upgrade().map(|service| service.discovered_sources(config))
        else {
            return;
        };
        for source in config.sources.iter().chain(&discovered) {
            let SourceEntry { name: pod, tenant, ranks, metrics: Some(url), .. } = source else {
                continue;
            };
            let text = match metrics(&client, url) {
                Ok(text) => text,
                Err(error) => {
                    debug!(pod, %error, "no metrics");
                    continue;
                }
            };
            let Some(service) = service.upgrade() else { return };
            for rank in 0..ranks.get() {
                let Some(&worker) = service.workers_of(tenant, pod, Some(rank)).first() else {
                    continue;
                };
                let said = Said::read(&text, rank);
                let heard = service.messages_of(worker);
                let pulse = pulses.entry(worker).or_default();
                match pulse.judge(said, heard, Instant::now(), config.silent_after) {
                    Some(Finding::Sleeps) => {
                        info!(pod, rank, "the engine sleeps: what it held is gone");
                        service.clear_sleeping(worker);
                    }
                    Some(Finding::Mute) => {
                        warn!(pod, rank, "silent: the engine works and publishes nothing");
                        service.silence(worker);
                    }
                    None => {}
                }
            }
        }
        let Some(service) = service.upgrade() else { return };
        pulses.retain(|&worker, _| service.is_fed(worker));
        drop(service);
        thread::sleep(config.metrics_interval);
    }
}

fn metrics(client: &Client, url: &str) -> Result<String, String> {
    let answer = client.get(url, None).map_err(|error| error.to_string())?;
    let status = answer.status();
    match status.is_success() {
        true => answer.text().map_err(|error| error.to_string()),
        false => Err(client::unexpected(status)),
    }
}

/// What the metrics say of a rank; `None` where the engine exports no such series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Said {
    prompt_tokens: Option<f64>,
    awake: Option<bool>,
}

impl Said {
    /// Series without an engine's number are about every rank.
    fn read(text: &str, rank: u32) -> Said {
        let mut said = Said::default();
        for line in text.lines() {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            if !["vllm:prompt_tokens_total", "vllm:engine_sleep_state"].contains(&name)
                || label(line, "engine").is_some_and(|engine| engine != rank.to_string())
            {
                continue;
            }
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            match (name, value) {
                ("vllm:prompt_tokens_total", Some(value)) => {
                    said.prompt_tokens = Some(said.prompt_tokens.unwrap_or(0.0) + value);
                }
                (_, Some(value)) if label(line, "sleep_state") == Some("awake") => {
                    said.awake = Some(value != 0.0);
                }
                _ => {}
            }
        }
        said
    }
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Sleeps,
    Mute,
}

/// What was last known of a worker.
#[derive(Debug, Default)]
struct Pulse {
    asleep: bool,
    /// Messages and prompt tokens when a message was last seen to have come, and when that was.
    last: Option<(u64, f64, Instant)>,
}

impl Pulse {
    fn judge(
        &mut self,
        said: Said,
        heard: u64,
        now: Instant,
        silent_after: Duration,
    ) -> Option<Finding> {
        let asleep = said.awake == Some(false);
        let fell_asleep = asleep && !self.asleep;
        self.asleep = asleep;
        let Some(tokens) = said.prompt_tokens else {
            return fell_asleep.then_some(Finding::Sleeps);
        };
        match self.last {
            // A counter that fell is another engine's.
            Some((messages, before, since)) if messages == heard && tokens >= before => {
                let worked = tokens - before >= TRAFFIC;
                let mute = worked && now.duration_since(since) >= silent_after;
                if mute && !fell_asleep {
                    return Some(Finding::Mute);
                }
            }
            _ => self.last = Some((heard, tokens, now)),
        }
        fell_asleep.then_some(Finding::Sleeps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(300);

    fn awake(prompt_tokens: f64) -> Said {
        Said { prompt_tokens: Some(prompt_tokens), awake: Some(true) }
    }

    #[test]
    fn an_engine_that_says_nothing_of_its_work_is_still_heard_to_fall_asleep() {
        let (mut pulse, asleep) =
            (Pulse::default(), Said { prompt_tokens: None, awake: Some(false) });
        let now = Instant::now();
        assert_eq!(pulse.judge(asleep, 0, now, AFTER), Some(Finding::Sleeps));
        assert_eq!(pulse.judge(asleep, 0, now, AFTER), None, "once");
    }

    #[test]
    fn each_rank_is_told_from_the_others() {
        let text = "# HELP x\n\
            vllm:prompt_tokens_total{engine=\"0\",model_name=\"m\"} 120.0\n\
            vllm:prompt_tokens_total{engine=\"1\",model_name=\"m\"} 30.0\n\
            vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 1.0\n\
            vllm:engine_sleep_state{engine=\"0\",sleep_state=\"discard_all\"} 0.0\n\
            vllm:engine_sleep_state{engine=\"1\",sleep_state=\"awake\"} 0.0\n";
        assert_eq!(Said::read(text, 0), awake(120.0));
        let asleep = Said { prompt_tokens: Some(30.0), awake: Some(false) };
        assert_eq!(Said::read(text, 1), asleep);
        assert_eq!(Said::read("vllm:prompt_tokens_total 7\n", 3).prompt_tokens, Some(7.0));
        assert_eq!(Said::read("nothing\n", 0), Said::default());
    }

    #[test]
    fn sleep_is_found_once() {
        let (mut pulse, now) = (Pulse::default(), Instant::now());
        let asleep = Said { awake: Some(false), ..awake(5.0) };
        assert_eq!(pulse.judge(awake(5.0), 1, now, AFTER), None);
        assert_eq!(pulse.judge(asleep, 1, now, AFTER), Some(Finding::Sleeps));
        assert_eq!(pulse.judge(asleep, 1, now, AFTER), None);
        assert_eq!(pulse.judge(awake(5.0), 1, now, AFTER), None);
        assert_eq!(pulse.judge(asleep, 1, now, AFTER), Some(Finding::Sleeps));
    }

    #[test]
    fn who_works_without_a_word_for_too_long_is_mute() {
        let (mut pulse, now) = (Pulse::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(pulse.judge(awake(0.0), 1, at(0), AFTER), None);
        assert_eq!(pulse.judge(awake(900.0), 1, at(900), AFTER), None, "too little to tell");
        assert_eq!(pulse.judge(awake(5000.0), 2, at(901), AFTER), None, "a message came");
        assert_eq!(pulse.judge(awake(9000.0), 2, at(1200), AFTER), None, "not for long enough");
        assert_eq!(pulse.judge(awake(9000.0), 2, at(1201), AFTER), Some(Finding::Mute));
        assert_eq!(pulse.judge(awake(0.0), 2, at(1300), AFTER), None, "another engine");
    }
}
