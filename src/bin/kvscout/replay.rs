//! `kvscout replay`: a recording in, the answers to its questions out, offline.
//!
//! The recording is JSON lines: `worker` (what is known of a worker from outside its stream; may be
//! left out), `events` (one batch as it came from the wire), `query` (a question, answered at once
//! from what came before).

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use kvscout::block::{Prompt, WorkerId};
use kvscout::hash::vllm::Version;
use kvscout::scout::{Blocks, Options, Ranked, Registration, Request, Scout, Scratch};
use serde::Serialize;
use serde_json::Value;

use crate::fields::Fields;
use crate::lines::Lines;

/// Reads a recording and writes an answer for each question.
///
/// A line that makes no sense is reported with its number on stderr and skipped; a question that
/// makes none is answered with its error, too. The result says whether there was no such line.
///
/// # Errors
///
/// The recording cannot be read, or an answer not be written.
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
    let mut lines = Lines::new(input);
    while let Some((number, line)) = lines.next()? {
        match line.map_err(Problem::from).and_then(|line| replay.line(line)) {
            Ok(Some(answer)) => write(&mut output, &answer)?,
            Ok(None) => {}
            Err(Problem { message, question }) => {
                fine = false;
                eprintln!("kvscout replay: line {number}: {message}");
                if let Some(id) = question {
                    write(&mut output, &Refused { id, error: message })?;
                }
            }
        }
    }
    output.flush()?;
    Ok(fine)
}

fn write(output: &mut impl Write, answer: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, answer)?;
    output.write_all(b"\n")
}

/// Why a line was skipped.
struct Problem {
    message: String,
    /// The id of the question that has no other answer; null where it has none.
    question: Option<Value>,
}

impl From<String> for Problem {
    fn from(message: String) -> Problem {
        Problem { message, question: None }
    }
}

#[derive(Serialize)]
struct Answer {
    id: Value,
    workers: Vec<WorkerAnswer>,
}

#[derive(Serialize)]
struct Refused {
    id: Value,
    error: String,
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

impl From<Ranked<'_>> for WorkerAnswer {
    fn from(ranked: Ranked<'_>) -> WorkerAnswer {
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

    fn line(&mut self, line: &str) -> Result<Option<Answer>, Problem> {
        let line: Value = serde_json::from_str(line).map_err(|e| format!("no JSON: {e}"))?;
        let fields = Fields::new(&line)?;
        match fields.required_text("op")? {
            "worker" => Ok(self.register(&fields).map(|()| None)?),
            "events" => Ok(self.events(&fields).map(|()| None)?),
            "query" => self
                .query(&line, &fields)
                .map(Some)
                .map_err(|message| Problem { message, question: Some(line["id"].clone()) }),
            op => Err(format!("`op` is {op:?}; it is one of worker, events, query").into()),
        }
    }

    fn register(&self, fields: &Fields<'_>) -> Result<(), String> {
        let vllm = fields.text("vllm")?.map(|version| version.parse::<Version>()).transpose();
        let registration = Registration {
            rank: fields.u32("rank")?.unwrap_or(0),
            model: fields.text("model")?.map(str::to_owned),
            vllm: vllm.map_err(|e| format!("`vllm`: {e}"))?,
            block_size: fields.block_size("block_size")?,
            ..Registration::new(fields.required_text("worker")?, "")
        };
        self.scout.register(registration).map(drop).map_err(|e| e.to_string())
    }

    fn events(&self, fields: &Fields<'_>) -> Result<(), String> {
        let pod = fields.required_text("worker")?;
        let rank = fields.u32("rank")?.unwrap_or(0);
        let seq = fields.required_u64("seq")?;
        let payload = unhex(fields.required_text("payload")?)?;
        let worker = self.worker(pod, rank)?;
        let ingested = self.scout.apply(worker, seq, &payload).map_err(|e| e.to_string())?;
        match ingested.error {
            Some(error) => Err(format!("batch {seq} of {pod}: {error}")),
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

    fn query(&mut self, line: &Value, fields: &Fields<'_>) -> Result<Answer, String> {
        // A null is an id like any other.
        let id = line.get("id").ok_or_else(|| fields.missing("id"))?;
        let (token_ids, items) = (fields.token_ids()?, fields.items()?);
        let prompt = Prompt {
            lora: fields.lora()?,
            cache_salt: fields.text("cache_salt")?,
            items: &items,
            ..Prompt::new(&token_ids)
        };
        let request = Request {
            tenant: Registration::DEFAULT_TENANT,
            model: fields.text("model")?,
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
        Ok(Answer { id: id.clone(), workers })
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
            .ok_or_else(|| format!("`payload` is not hex at character {}", at * 2))
        })
        .collect()
}
