//! `kvscout replay`: a recording in, the answers to its questions out, offline.
//!
//! The recording is JSON lines: `worker` (what is known of a worker from outside its stream; may be
//! left out), `events` (one batch as it came from the wire), `query` (a question, answered at once
//! from what came before).

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use kvscout::block::{BlockSize, Item, Lora, Prompt, WorkerId};
use kvscout::hash::vllm::Version;
use kvscout::scout::{Blocks, Options, Ranked, Registration, Request, Scout, Scratch};
use serde::{Deserialize, Serialize};

/// Reads a recording and writes an answer for each question.
///
/// A line that makes no sense is reported with its number on stderr and skipped; the result says
/// whether there was none.
pub(crate) fn run(
    input: impl BufRead,
    mut output: impl Write,
    seeds: Vec<String>,
) -> io::Result<bool> {
    let mut replay = match Replay::new(seeds) {
        Ok(replay) => replay,
        Err(error) => {
            eprintln!("kvscout replay: {error}");
            return Ok(false);
        }
    };
    let mut fine = true;
    for (number, line) in input.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        match replay.line(&line) {
            Ok(Some(answer)) => {
                serde_json::to_writer(&mut output, &answer)?;
                output.write_all(b"\n")?;
            }
            Ok(None) => {}
            Err(error) => {
                fine = false;
                eprintln!("kvscout replay: line {}: {error}", number + 1);
            }
        }
    }
    output.flush()?;
    Ok(fine)
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Line {
    Worker(WorkerLine),
    Events(EventsLine),
    Query(QueryLine),
}

#[derive(Deserialize)]
struct WorkerLine {
    worker: String,
    #[serde(default)]
    rank: u32,
    model: Option<String>,
    vllm: Option<String>,
    block_size: Option<u32>,
}

#[derive(Deserialize)]
struct EventsLine {
    worker: String,
    #[serde(default)]
    rank: u32,
    seq: u64,
    payload: String,
}

#[derive(Deserialize)]
struct QueryLine {
    id: serde_json::Value,
    model: Option<String>,
    token_ids: Vec<u32>,
    lora: Option<LoraField>,
    cache_salt: Option<String>,
    #[serde(default)]
    mm: Option<Vec<ItemField>>,
}

#[derive(Deserialize)]
struct LoraField {
    name: String,
    id: Option<i64>,
    path: Option<String>,
}

#[derive(Deserialize)]
struct ItemField {
    hash: String,
    offset: u32,
    length: u32,
}

#[derive(Serialize)]
struct Answer {
    id: serde_json::Value,
    workers: Vec<WorkerAnswer>,
}

#[derive(Serialize)]
struct WorkerAnswer {
    worker: String,
    rank: u32,
    matched_blocks: u32,
    expected_cached_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_unknown: Option<&'static str>,
    tiers: BTreeMap<&'static str, u32>,
    trust: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    as_of: Option<u64>,
}

impl From<&Ranked> for WorkerAnswer {
    fn from(ranked: &Ranked) -> WorkerAnswer {
        let expected = ranked.score.expected_cached_tokens;
        let tiers = kvscout::score::named_tiers(&ranked.score);
        WorkerAnswer {
            worker: ranked.pod.to_string(),
            rank: ranked.rank,
            matched_blocks: ranked.score.matched_blocks,
            expected_cached_tokens: expected.ok(),
            expected_unknown: expected.err().map(|reason| reason.as_str()),
            tiers: tiers.map(|(tier, tokens)| (tier.as_str(), tokens)).collect(),
            trust: ranked.trust.as_str(),
            reason: ranked.trust.reason().map(|reason| reason.as_str()),
            as_of: ranked.as_of,
        }
    }
}

struct Replay {
    scout: Scout,
    scratch: Scratch,
}

impl Replay {
    fn new(seeds: Vec<String>) -> Result<Replay, kvscout::Error> {
        let scout = Scout::new(Options { seeds, ..Options::default() })?;
        Ok(Replay { scout, scratch: Scratch::default() })
    }

    fn line(&mut self, line: &str) -> Result<Option<Answer>, String> {
        match serde_json::from_str(line).map_err(|e| e.to_string())? {
            Line::Worker(worker) => self.register(worker).map(|()| None),
            Line::Events(events) => self.events(&events).map(|()| None),
            Line::Query(query) => self.query(query).map(Some),
        }
    }

    fn register(&self, line: WorkerLine) -> Result<(), String> {
        let vllm = line.vllm.map(|v| v.parse::<Version>()).transpose();
        let block_size = match line.block_size {
            Some(n) => Some(BlockSize::new(n).ok_or("block_size 0 should be above 0")?),
            None => None,
        };
        let registration = Registration {
            pod: line.worker,
            rank: line.rank,
            tenant: Registration::DEFAULT_TENANT.to_owned(),
            model: line.model,
            vllm: vllm.map_err(|e| e.to_string())?,
            block_size,
        };
        self.scout.register(registration).map(drop).map_err(|e| e.to_string())
    }

    fn events(&self, line: &EventsLine) -> Result<(), String> {
        let payload = unhex(&line.payload)?;
        let worker = self.worker(&line.worker, line.rank)?;
        let ingested = self.scout.apply(worker, line.seq, &payload).map_err(|e| e.to_string())?;
        match ingested.error {
            Some(error) => Err(format!("batch {} of {}: {error}", line.seq, line.worker)),
            None => Ok(()),
        }
    }

    /// A worker that no `worker` line introduced answers for any model.
    fn worker(&self, pod: &str, rank: u32) -> Result<WorkerId, String> {
        if let Some(worker) = self.scout.find(Registration::DEFAULT_TENANT, pod, rank) {
            return Ok(worker);
        }
        let registration = Registration { rank, model: None, ..Registration::new(pod, "") };
        self.scout.register(registration).map_err(|e| e.to_string())
    }

    fn query(&mut self, line: QueryLine) -> Result<Answer, String> {
        let lora = line.lora.as_ref().map(|lora| Lora {
            name: &lora.name,
            id: lora.id,
            path: lora.path.as_deref(),
        });
        let items: Vec<Item<'_>> = line
            .mm
            .iter()
            .flatten()
            .map(|m| Item { identifier: &m.hash, offset: m.offset, length: m.length })
            .collect();
        let prompt = Prompt {
            lora,
            cache_salt: line.cache_salt.as_deref(),
            items: &items,
            ..Prompt::new(&line.token_ids)
        };
        let request = Request {
            tenant: Registration::DEFAULT_TENANT,
            model: line.model.as_deref(),
            blocks: Blocks::Prompt(prompt),
            candidates: None,
        };
        let mut workers: Vec<WorkerAnswer> = match self.scout.score(&request, &mut self.scratch) {
            Ok(ranked) => ranked.iter().map(WorkerAnswer::from).collect(),
            // A model that no worker serves has an answer, too: nobody.
            Err(error) if error.kind() == kvscout::ErrorKind::UnknownModel => Vec::new(),
            Err(error) => return Err(error.to_string()),
        };
        workers.sort_by(|a, b| (&a.worker, a.rank).cmp(&(&b.worker, b.rank)));
        Ok(Answer { id: line.id, workers })
    }
}

fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let pairs = text.as_bytes().chunks(2).enumerate();
    pairs
        .map(|(at, pair)| {
            match *pair {
                [high, low] => {
                    digit(high).zip(digit(low)).map(|(high, low)| (high * 16 + low) as u8)
                }
                _ => None,
            }
            .ok_or_else(|| format!("payload is not hex at character {}", at * 2))
        })
        .collect()
}
