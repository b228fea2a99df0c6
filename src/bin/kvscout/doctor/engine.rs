//! What the engine says of itself over HTTP: version, models, metrics, and what two equal prompts
//! cost it.

use std::collections::BTreeSet;
use std::time::Duration;

use kvscout::block::TokenId;
use serde_json::{Value, json};

use crate::client::{Answer, Bounds, Client, unexpected};

/// The engine's HTTP side.
#[derive(Debug)]
pub(super) struct Engine {
    client: Client,
    base: String,
    metrics: String,
    key: Option<String>,
}

/// What it said; each an error text where it did not answer.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) version: Option<Result<String, String>>,
    pub(super) models: Option<Result<Vec<String>, String>>,
    pub(super) metrics: Option<Result<Metrics, String>>,
}

/// What its metrics say; `None` where the engine exports no such series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Metrics {
    pub(super) prompt_tokens: Option<f64>,
    pub(super) cache_queries: Option<f64>,
    pub(super) cache_hits: Option<f64>,
    pub(super) block_size: Option<u32>,
    pub(super) prefix_caching: Option<bool>,
    /// How many data-parallel ranks export series.
    pub(super) ranks: u32,
    pub(super) awake: Option<bool>,
}

impl Engine {
    pub(super) fn new(
        base: &str,
        metrics: Option<&str>,
        key: Option<String>,
        timeout: Duration,
    ) -> Engine {
        let client = Client::new(Bounds::of_engine(timeout));
        let base = base.trim_end_matches('/').to_owned();
        let metrics = metrics.map_or_else(|| format!("{base}/metrics"), str::to_owned);
        Engine { client, base, metrics, key }
    }

    /// Asks for everything that costs the engine nothing.
    pub(super) fn ask(&self) -> Said {
        let version = self.get(&format!("{}/version", self.base)).and_then(|text| {
            let found = parse(&text)?["version"].as_str().map(str::to_owned);
            found.ok_or_else(|| "the answer names no version".to_owned())
        });
        let models = self.get(&format!("{}/v1/models", self.base)).and_then(|text| {
            let answer = parse(&text)?;
            let models = answer["data"].as_array().ok_or("the answer lists no models")?;
            Ok(models.iter().filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
        });
        Said { version: Some(version), models: Some(models), metrics: Some(self.metrics()) }
    }

    pub(super) fn metrics(&self) -> Result<Metrics, String> {
        self.get(&self.metrics).map(|text| read_metrics(&text))
    }

    /// Sends a prompt with one token to generate; the prompt tokens that came from the cache, `None`
    /// where the engine does not tell.
    pub(super) fn complete(&self, model: &str, tokens: &[TokenId]) -> Result<Option<u64>, String> {
        let body = json!({ "model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0 });
        let url = format!("{}/v1/completions", self.base);
        let answer = parse(&self.post(&url, body.to_string())?)?;
        if answer["usage"].is_null() {
            return Err(format!("no usage in the answer: {}", shorten(&answer.to_string())));
        }
        Ok(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64())
    }

    /// Asks `/tokenize` with a JSON body, as it is: the order of its keys is part of the prompt.
    pub(super) fn tokenize(&self, body: &str) -> Result<String, kvscout::Error> {
        let url = format!("{}/tokenize", self.base);
        self.post(&url, body.to_owned()).map_err(kvscout::Error::unavailable)
    }

    fn get(&self, url: &str) -> Result<String, String> {
        read(url, self.client.get(url, self.key.as_deref()))
    }

    fn post(&self, url: &str, body: String) -> Result<String, String> {
        read(url, self.client.post(url, &body, self.key.as_deref()))
    }
}

fn read(url: &str, answer: Result<Answer, ureq::Error>) -> Result<String, String> {
    let answer = answer.map_err(|error| format!("{url}: {error}"))?;
    let status = answer.status();
    let text = answer.text().map_err(|error| format!("{url}: {error}"))?;
    if !status.is_success() {
        // A page for people says no more than the status.
        let text = if text.trim_start().starts_with('<') { String::new() } else { shorten(&text) };
        return Err(format!("{url}: {} {text}", unexpected(status)).trim_end().to_owned());
    }
    Ok(text)
}

fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|_| format!("no JSON: {}", shorten(text)))
}

/// The beginning of an answer, in one line.
fn shorten(text: &str) -> String {
    let line: String = text.chars().filter(|c| !c.is_control()).take(160).collect();
    if line.len() < text.len() { format!("{line}...") } else { line }
}

/// Adds up vLLM's series over engines and models; the names of 0.9 and of later versions.
fn read_metrics(text: &str) -> Metrics {
    let mut metrics = Metrics::default();
    let mut ranks = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let value = || line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        let sum = match name {
            "vllm:prompt_tokens_total" => {
                ranks.extend(label(line, "engine"));
                &mut metrics.prompt_tokens
            }
            "vllm:engine_sleep_state" => {
                if label(line, "sleep_state") == Some("awake") {
                    // One rank that sleeps is enough to look into.
                    let awake = value().is_some_and(|value| value != 0.0);
                    metrics.awake = Some(metrics.awake.unwrap_or(true) && awake);
                }
                continue;
            }
            "vllm:prefix_cache_queries_total" | "vllm:gpu_prefix_cache_queries_total" => {
                &mut metrics.cache_queries
            }
            "vllm:prefix_cache_hits_total" | "vllm:gpu_prefix_cache_hits_total" => {
                &mut metrics.cache_hits
            }
            "vllm:cache_config_info" => {
                metrics.block_size = label(line, "block_size").and_then(|size| size.parse().ok());
                metrics.prefix_caching =
                    label(line, "enable_prefix_caching").map(|on| on.eq_ignore_ascii_case("true"));
                continue;
            }
            _ => continue,
        };
        if let Some(value) = value() {
            *sum = Some(sum.unwrap_or(0.0) + value);
        }
    }
    metrics.ranks = ranks.len() as u32;
    metrics
}

/// The value of a label in a line of metrics.
pub(crate) fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let at = line.match_indices(name).find(|(at, _)| {
        line[..*at].ends_with(['{', ',']) && line[at + name.len()..].starts_with("=\"")
    });
    let rest = &line[at?.0 + name.len() + 2..];
    rest.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_old_and_new_engines_are_read() {
        let text = "# HELP x\n\
            vllm:prompt_tokens_total{engine=\"0\",model_name=\"m\"} 120.0\n\
            vllm:prompt_tokens_total{engine=\"1\",model_name=\"m\"} 30.0\n\
            vllm:gpu_prefix_cache_queries_total{model_name=\"m\"} 7\n\
            vllm:prefix_cache_hits_total{model_name=\"m\"} 5e1\n\
            vllm:cache_config_info{cpu_block_size=\"8\",block_size=\"16\",enable_prefix_caching=\"True\"} 1.0\n\
            vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 1.0\n\
            vllm:engine_sleep_state{engine=\"1\",sleep_state=\"awake\"} 0.0\n";
        let metrics = read_metrics(text);
        assert_eq!(metrics.prompt_tokens, Some(150.0));
        assert_eq!((metrics.cache_queries, metrics.cache_hits), (Some(7.0), Some(50.0)));
        assert_eq!((metrics.block_size, metrics.prefix_caching), (Some(16), Some(true)));
        assert_eq!((metrics.ranks, metrics.awake), (2, Some(false)));
        assert_eq!(read_metrics("no metrics\n"), Metrics::default());
    }

    #[test]
    fn a_long_answer_is_cut_to_one_line() {
        assert_eq!(shorten("a\nb"), "ab...");
        assert!(shorten(&"x".repeat(9999)).len() < 200);
    }
}
