//! `kvscout doctor`: looks at one engine's event stream and says what is wrong with it.

mod announced;
mod diagnosis;
mod engine;
mod heard;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvscout::block::{Prompt, TokenId, WorkerId};
use kvscout::event::{Batch, Limits};
use kvscout::hash::vllm::Version;
use kvscout::ingest::sequencer::{Ended, Flow};
use kvscout::ingest::zmq::{
    Endpoint, Mode, Options as ZmqOptions, Receiver, ReplaySink, Replays, RoundOptions, Sink,
    Source, SourceId,
};
use kvscout::scout::{Options, Registration, Request, Scout, Scratch};
use serde_json::json;

use self::diagnosis::{Facts, Finding, Level, Link, Replayed, Twice, diagnose};
use self::engine::Engine;
pub(crate) use self::engine::label;
use self::heard::Heard;
use crate::Failure;

/// How many messages may wait while something else is looked at.
const BACKLOG: usize = 4096;
/// How long the engine may take to answer a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long events may take to follow a probe.
const AFTER_PROBE: Duration = Duration::from_secs(5);

/// More data-parallel ranks than an engine on one host has.
const MOST_RANKS: i64 = 256;

const SOURCE: SourceId = SourceId(0);
const POD: &str = "engine";

/// Listens to an engine's events and says what is wrong and what to do about it: status 0 or 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvscout doctor --events tcp://10.0.0.7:5557 --replay tcp://10.0.0.7:5558 \\
                 --engine http://10.0.0.7:8000 --model Qwen/Qwen3-8B --probe")]
pub(crate) struct Args {
    /// Where the engine publishes its events
    #[arg(long, value_name = "ENDPOINT")]
    events: String,
    /// Listen there instead, for an engine that dials
    #[arg(long)]
    bind: bool,
    /// Its replay socket
    #[arg(long, value_name = "ENDPOINT")]
    replay: Option<String>,
    /// Base of its HTTP API
    #[arg(long, value_name = "URL")]
    engine: Option<String>,
    /// Its metrics [default: /metrics of --engine]
    #[arg(long, value_name = "URL", requires = "engine")]
    metrics: Option<String>,
    /// File with the API key of --engine
    #[arg(long, value_name = "FILE", requires = "engine")]
    key_file: Option<PathBuf>,
    /// The model that requests will name
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The block size that you expect
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,
    /// Data-parallel ranks, each at the port of --events plus its number
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true,
          value_parser = clap::value_parser!(u32).range(1..=MOST_RANKS))]
    ranks: u32,
    /// The engine's vLLM version
    #[arg(long, value_name = "X.Y.Z")]
    vllm: Option<String>,
    /// A PYTHONHASHSEED to try, beside unset, 0 and 42
    #[arg(long = "seed", value_name = "TEXT")]
    seeds: Vec<String>,
    /// Send it one prompt twice, one token each, and compare its answer with the prediction
    #[arg(long, requires = "engine")]
    probe: bool,
    /// A tokenizer (file, folder, cached model) to compare with its own
    #[arg(long, value_name = "SOURCE", requires = "engine")]
    tokenizer: Option<String>,
    /// How long to listen [default: 10]
    #[arg(long, value_name = "SECONDS", default_value_t = 10, hide_default_value = true)]
    seconds: u64,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let usage = |error: kvscout::Error| Failure::Usage(error.to_string());
    let endpoint: Endpoint = args.events.parse().map_err(usage)?;
    let replay = args.replay.as_deref().map(str::parse::<Endpoint>).transpose().map_err(usage)?;
    let vllm = args.vllm.as_deref().map(str::parse::<Version>).transpose().map_err(usage)?;
    let key = args.key_file.as_ref().map(|file| {
        std::fs::read_to_string(file)
            .map(|key| key.trim().to_owned())
            .map_err(|error| Failure::Usage(format!("--key-file {}: {error}", file.display())))
    });
    let key = key.transpose()?;
    let mut patient = Patient::new(args, vllm)?;
    let mode = if args.bind { Mode::Bind } else { Mode::Connect };
    let failed = |error: kvscout::Error| Failure::Failed(error.to_string());
    let (send, inbox) = mpsc::sync_channel(BACKLOG);
    let receiver = Receiver::start(ZmqOptions::default(), Tap(send)).map_err(failed)?;
    let at = receiver.add(SOURCE, Source::new(endpoint.clone(), mode)).map_err(usage)?;
    for rank in 1..args.ranks {
        let at = endpoint.for_rank(rank).map_err(usage)?;
        receiver.add(SourceId(rank), Source::new(at, mode)).map_err(usage)?;
    }

    let engine = args.engine.as_deref();
    let engine = engine.map(|base| Engine::new(base, args.metrics.as_deref(), key, PATIENCE));
    let said = engine.as_ref().map(Engine::ask).unwrap_or_default();
    let replayed = replay.map(|endpoint| patient.replay(&endpoint)).transpose()?;
    let begin = Instant::now();
    let end = begin + Duration::from_secs(args.seconds);
    patient.listen(&inbox, end);
    let twice = match &engine {
        Some(engine) if args.probe => Some(patient.probe(engine, &said, &inbox)),
        _ => None,
    };
    let link = receiver.status_of(SOURCE).map(|status| Link::from(&status));
    let facts = Facts {
        endpoint: at.to_string(),
        seconds: begin.elapsed().as_secs_f64(),
        ranks: (1..args.ranks).filter_map(|rank| receiver.status_of(SourceId(rank))).collect(),
        link: link.ok_or_else(|| Failure::Failed("the receiver has ended".to_owned()))?,
        live: patient.live,
        again: patient.ask_again(),
        workers: patient.scout.workers(),
        heard: &patient.heard,
        replay: replayed,
        later: engine.as_ref().and_then(|engine| engine.metrics().ok()),
        said,
        model: args.model.clone(),
        block_size: args.block_size,
        seeds: &args.seeds,
        twice,
    };
    let mut findings = diagnose(&facts);
    if let (Some(source), Some(engine)) = (&args.tokenizer, &engine) {
        let served = facts.said.models.as_ref().and_then(|models| models.as_ref().ok()?.first());
        let model = args.model.as_deref().or(served.map(String::as_str));
        findings.push(tokenizer::check(source, model, engine));
    }
    print(&findings, args.json).map_err(|error| Failure::Failed(error.to_string()))?;
    match findings.iter().any(|finding| finding.level == Level::Problem) {
        true => Err(Failure::Found),
        false => Ok(()),
    }
}

/// A message: topic, sequence number, payload.
type Message = (Vec<u8>, u64, Vec<u8>);

/// Hands messages to the thread that looks at them. When that lags, messages are dropped, which shows as a
/// gap: better than memory without bound.
struct Tap(mpsc::SyncSender<Message>);

impl Sink for Tap {
    fn batch(&mut self, source: SourceId, topic: &[u8], sequence: u64, payload: &[u8]) {
        if source != SOURCE {
            // Of the other ranks only whether they are there is looked at.
            return;
        }
        let _ = self.0.try_send((topic.to_vec(), sequence, payload.to_vec()));
    }
}

/// What a replay brings.
enum Brought {
    Batch(u64, Vec<u8>),
    Ended(Ended),
}

/// Hands on what a replay brings, as fast as it is looked at.
struct Round(mpsc::SyncSender<Brought>);

impl ReplaySink for Round {
    fn batch(&mut self, _: SourceId, _: u64, seq: u64, payload: &[u8]) -> Flow {
        match self.0.send(Brought::Batch(seq, payload.to_vec())) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Stop,
        }
    }

    fn ended(&mut self, _: SourceId, _: u64, how: Ended) {
        // Nobody waits for it any more.
        let _ = self.0.send(Brought::Ended(how));
    }
}

/// The engine under examination.
struct Patient {
    scout: Scout,
    ranks: BTreeMap<u32, WorkerId>,
    registration: Registration,
    heard: Heard,
    limits: Limits,
    live: u64,
    /// The last batch that the replay gave: live ones up to it were seen there.
    replayed_to: Option<u64>,
}

impl Patient {
    fn new(args: &Args, vllm: Option<Version>) -> Result<Patient, Failure> {
        let options = Options { seeds: args.seeds.clone(), ..Options::default() };
        let scout = Scout::new(options).map_err(|error| Failure::Failed(error.to_string()))?;
        let registration =
            Registration { model: args.model.clone(), vllm, ..Registration::new(POD, "") };
        Ok(Patient {
            scout,
            ranks: BTreeMap::new(),
            registration,
            heard: Heard::default(),
            limits: Limits::default(),
            live: 0,
            replayed_to: None,
        })
    }

    /// Asks the replay socket for everything, once. What an older engine drops from a long answer shows as
    /// holes.
    fn replay(&mut self, endpoint: &Endpoint) -> Result<Replayed, Failure> {
        let failed = |error: kvscout::Error| Failure::Failed(error.to_string());
        let options = RoundOptions { idle: PATIENCE / 2, ..RoundOptions::default() };
        let (send, inbox) = mpsc::sync_channel(BACKLOG);
        let replays = Replays::start(options, |_| Round(send)).map_err(failed)?;
        replays.asker().ask(SOURCE, endpoint, 1, 0);
        let mut replayed = Replayed::default();
        while let Ok(brought) = inbox.recv() {
            let (seq, payload) = match brought {
                Brought::Batch(seq, payload) => (seq, payload),
                Brought::Ended(how) => {
                    replayed.ended = how == Ended::Marker;
                    break;
                }
            };
            replayed.batches += 1;
            replayed.first.get_or_insert(seq);
            replayed.holes +=
                replayed.last.map_or(0, |last| seq.saturating_sub(last.saturating_add(1)));
            replayed.last = Some(seq);
            self.take(b"", seq, &payload);
        }
        if replayed.batches == 0 && !replayed.ended {
            replayed.error = Some(format!("{endpoint} does not answer a replay request"));
        }
        self.replayed_to = replayed.last;
        Ok(replayed)
    }

    fn listen(&mut self, inbox: &mpsc::Receiver<Message>, end: Instant) {
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match inbox.recv_timeout(left) {
                Ok(message) => self.hear(&message),
                Err(_) => break,
            }
        }
    }

    fn hear(&mut self, (topic, sequence, payload): &Message) {
        self.live += 1;
        if self.replayed_to.is_none_or(|last| *sequence > last) {
            self.take(topic, *sequence, payload);
        }
    }

    fn take(&mut self, topic: &[u8], sequence: u64, payload: &[u8]) {
        let rank = Batch::parse(payload, &self.limits).ok().and_then(|batch| batch.rank());
        let rank = rank.unwrap_or(0);
        self.heard.add(topic, payload, &self.limits);
        let worker = match self.ranks.get(&rank) {
            Some(&worker) => worker,
            None => {
                let registration = Registration { rank, ..self.registration.clone() };
                let Ok(worker) = self.scout.register(registration) else { return };
                self.ranks.insert(rank, worker);
                worker
            }
        };
        // What cannot be read is in what was heard, and in the worker's trust.
        let _ = self.scout.apply(worker, sequence, payload);
    }

    /// Asks for a prompt that the events stored: how many of its blocks match, and how many it has.
    fn ask_again(&self) -> Option<(u32, u32)> {
        let prompt = self.heard.prompt()?;
        let size = *self.heard.block_sizes.keys().next()?;
        let blocks = prompt.len() as u32 / size.max(1);
        self.best(prompt).map(|(matched, _)| (matched, blocks))
    }

    /// The most blocks of a prompt that a rank holds, and what the engine would answer.
    fn best(&self, tokens: &[TokenId]) -> Option<(u32, Option<u32>)> {
        let request = Request {
            model: self.registration.model.as_deref(),
            ..Request::new("", Prompt::new(tokens))
        };
        let mut scratch = Scratch::default();
        let ranked = self.scout.score(&request, &mut scratch).ok()?;
        let best = ranked.iter().max_by_key(|ranked| ranked.score.matched_blocks)?;
        Some((best.score.matched_blocks, best.score.expected_cached_tokens.ok()))
    }

    /// Sends one prompt twice and compares what the engine says of the second with the prediction.
    fn probe(
        &mut self,
        engine: &Engine,
        said: &engine::Said,
        inbox: &mpsc::Receiver<Message>,
    ) -> Twice {
        let size = self.heard.block_sizes.keys().next().copied();
        let told = said.metrics.as_ref().and_then(|m| m.as_ref().ok()?.block_size);
        let size = size.or(told).unwrap_or(16).clamp(1, 4096);
        let tokens = unlikely_prompt(4 * size as usize + 1);
        let mut twice = Twice { error: None, tokens: tokens.len(), expected: None, cached: None };
        let served = said.models.as_ref().and_then(|models| models.as_ref().ok()?.first().cloned());
        let Some(model) = self.registration.model.clone().or(served) else {
            twice.error = Some("which model to ask for is not known: give --model".to_owned());
            return twice;
        };
        if let Err(error) = engine.complete(&model, &tokens) {
            twice.error = Some(error);
            return twice;
        }
        let end = Instant::now() + AFTER_PROBE;
        while Instant::now() < end {
            self.listen(inbox, Instant::now() + Duration::from_millis(100));
            if let Some((1.., expected)) = self.best(&tokens) {
                twice.expected = expected;
                break;
            }
        }
        match engine.complete(&model, &tokens) {
            Ok(cached) => twice.cached = cached,
            Err(error) => twice.error = Some(error),
        }
        twice
    }
}

/// Small token ids that no one has sent before: every vocabulary has them.
fn unlikely_prompt(len: usize) -> Vec<TokenId> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut state = since.as_nanos() as u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        5 + (state >> 33) as u32 % 90
    };
    (0..len).map(|_| next()).collect()
}

fn print(findings: &[Finding], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        let rows = findings.iter().map(|finding| {
            json!({
                "check": finding.check, "level": finding.level.as_str(), "text": finding.text,
                "advice": finding.advice,
            })
        });
        let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
        let report = json!({ "findings": rows.collect::<Vec<_>>(), "problems": problems });
        return writeln!(out, "{report:#}");
    }
    for finding in findings {
        writeln!(out, "{:<8} {:<15} {}", finding.level.as_str(), finding.check, finding.text)?;
        if !finding.advice.is_empty() {
            writeln!(out, "{:<8} {:<15} -> {}", "", "", finding.advice)?;
        }
    }
    Ok(())
}
