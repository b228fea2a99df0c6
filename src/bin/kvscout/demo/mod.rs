//! `kvscout demo`: what routing by cached prefix gains, on simulated engines.
//!
//! Simulated are the engines' block pools and the users. Everything between them is real: events in
//! vLLM's format over ZeroMQ sockets, the receiver, ingest, the index, scoring. Nothing sleeps; time
//! is virtual, so the outcome depends on the seed alone. Only what is measured does not: latencies,
//! and how often a question that does not wait for the index gets another answer.

mod chart;
mod engine;
mod fleet;
mod page;
mod policy;
mod progress;
mod random;
mod report;
mod serving;
mod trace;
mod trial;
mod wire;
mod workload;

use std::error::Error;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::time::{Duration, Instant};

use kvscout::block::BlockSize;

use self::policy::Policy;
use self::progress::Progress;
use self::report::Report;
use self::trace::Trace;
use self::trial::Trial;
use self::workload::Turn;

/// What ended the demo.
type Failure = Box<dyn Error + Send + Sync>;

/// Requests that a policy serves before it is the next one's turn. They go side by side, so that they
/// stand comparison whenever time runs out.
const ROUND: usize = 20;

/// Blocks of an engine: 65,536 tokens, for chats; a million, for the long prompts of recorded traces.
const BLOCKS: u32 = 4096;
const BLOCKS_FOR_TRACES: u32 = 65_536;

/// Compare routing policies on simulated engines; takes 10 to 20 seconds.
///
/// Starts simulated vLLM engines that publish KV events over ZeroMQ, lets the real index follow
/// them, sends the same conversations through four routing policies, and prints what part of the
/// prompt tokens was cached. Exits with 1 if a prediction was wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvscout demo --engines 8 --seed 7 --report report.html
  kvscout demo --engines 8 --trace conversation_trace.jsonl")]
pub(crate) struct DemoArgs {
    /// Makes another workload; the same seed gives the same counts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many engines each policy has
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    engines: u8,
    /// Blocks of 16 tokens of each engine [default: 4096, with --trace 65536]
    #[arg(long, value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    blocks: Option<u32>,
    /// How many requests each policy serves
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    requests: u32,
    /// After which no more are sent: all policies have then served the same ones
    #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Replay the first requests of a recorded trace in Mooncake's format (JSON lines)
    #[arg(long, value_name = "FILE")]
    trace: Option<String>,
    /// Also write the result as a page with charts (HTML, without further files)
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What is simulated.
struct Setting {
    seed: u64,
    engines: usize,
    requests: usize,
    /// Blocks of each engine.
    blocks: u32,
    /// The file of the requests, if they were recorded.
    trace: Option<String>,
}

/// The requests, by time.
enum Requests {
    Made(Vec<Turn>),
    /// Their tokens are made when it is their turn: all together they may be more than fits into memory.
    Recorded(Trace),
}

impl Requests {
    fn of(setting: &Setting) -> Result<Requests, Failure> {
        let Setting { seed, engines, requests, blocks, trace } = setting;
        let Some(path) = trace else {
            return Ok(Requests::Made(workload::turns(*seed, *engines, *requests)));
        };
        let trace = Trace::read(path, *requests)?;
        trace.fits(*blocks, BlockSize::DEFAULT.tokens())?;
        Ok(Requests::Recorded(trace))
    }

    fn len(&self) -> usize {
        match self {
            Requests::Made(turns) => turns.len(),
            Requests::Recorded(trace) => trace.len(),
        }
    }

    fn turns(&self, some: Range<usize>) -> Vec<Turn> {
        match self {
            Requests::Made(turns) => turns[some].to_vec(),
            Requests::Recorded(trace) => some.map(|n| trace.turn(n)).collect(),
        }
    }
}

/// Runs the demo and prints its result; whether every prediction was right.
pub(crate) fn run(args: &DemoArgs) -> io::Result<bool> {
    let blocks = if args.trace.is_some() { BLOCKS_FOR_TRACES } else { BLOCKS };
    let setting = Setting {
        seed: args.seed,
        engines: usize::from(args.engines),
        requests: args.requests as usize,
        blocks: args.blocks.unwrap_or(blocks),
        trace: args.trace.clone(),
    };
    let sound = compare(setting, args).map_err(io::Error::other)?;
    if !sound {
        eprintln!("kvscout demo: not every prediction was exact and what the engine found");
    }
    Ok(sound)
}

/// Whether every prediction was right.
fn compare(mut setting: Setting, args: &DemoArgs) -> Result<bool, Failure> {
    let begun = Instant::now();
    let requests = Requests::of(&setting)?;
    if setting.trace.is_some() {
        setting.requests = requests.len();
    }
    // Before the work, so that nobody waits for a page that cannot be written.
    let page = args
        .report
        .as_ref()
        .map(|path| File::create(path).map_err(|error| format!("--report {path}: {error}")));
    let page = page.transpose()?;
    let mut trials: Vec<Trial> = Policy::ALL
        .into_iter()
        .map(|policy| Trial::start(policy, setting.seed, setting.engines, setting.blocks))
        .collect::<Result<_, _>>()?;
    let deadline = begun + Duration::from_secs(u64::from(args.seconds));
    serve(&requests, &mut trials, deadline)?;
    let report = Report::new(&setting, &trials, begun.elapsed());
    if let (Some(mut page), Some(path)) = (page, &args.report) {
        page.write_all(report.page().as_bytes())
            .map_err(|error| format!("--report {path}: {error}"))?;
    }
    let out = if args.json { format!("{:#}\n", report.json()) } else { report.text() };
    io::stdout().write_all(out.as_bytes())?;
    Ok(report.is_sound())
}

/// Lets every policy serve the requests, until time runs out.
fn serve(requests: &Requests, trials: &mut [Trial], deadline: Instant) -> Result<(), Failure> {
    let mut progress = Progress::new(requests.len());
    for first in (0..requests.len()).step_by(ROUND) {
        let round = first..(first + ROUND).min(requests.len());
        let turns = requests.turns(round.clone());
        for trial in trials.iter_mut() {
            for (n, turn) in round.clone().zip(&turns) {
                trial.serve(n as u64, turn)?;
            }
        }
        progress.show(trials);
        if Instant::now() > deadline {
            break;
        }
    }
    progress.end();
    trials.iter().try_for_each(|trial| trial.fleet().catch_up())
}
