//! `kvscout demo`: what routing by cached prefix gains, on simulated engines.
//!
//! Simulated are the engines' block pools and the users. Everything between them is real: events in
//! vLLM's format over ZeroMQ sockets, the receiver, ingest, the index, scoring. Nothing sleeps; time
//! is virtual, so the outcome depends on the seed alone. Only what is measured does not: latencies,
//! and how often a question that does not wait for the index gets another answer.

mod engine;
mod fleet;
mod policy;
mod progress;
mod random;
mod report;
mod serving;
mod trial;
mod wire;
mod workload;

use std::error::Error;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use self::policy::Policy;
use self::progress::Progress;
use self::report::Report;
use self::trial::Trial;

/// What ended the demo.
type Failure = Box<dyn Error + Send + Sync>;

/// When the demo stops sending, so that it ends within a minute on any machine. All policies have
/// then served the same requests.
const DEADLINE: Duration = Duration::from_secs(45);

/// Requests that a policy serves before it is the next one's turn. They go side by side, so that they
/// stand comparison whenever time runs out.
const ROUND: usize = 20;

/// Compare routing policies on simulated engines; takes 10 to 20 seconds.
///
/// Starts simulated vLLM engines that publish KV events over ZeroMQ, lets the real index follow
/// them, sends the same conversations through four routing policies, and prints what part of the
/// prompt tokens was cached. Exits with 1 if a prediction was wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  kvscout demo --engines 8 --seed 7")]
pub(crate) struct DemoArgs {
    /// Makes another workload; the same seed gives the same counts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many engines each policy has
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    engines: u8,
    /// How many requests each policy serves; a slow machine stops after 45 s
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
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
}

/// Runs the demo and prints its result; whether every prediction was right.
pub(crate) fn run(args: &DemoArgs) -> io::Result<bool> {
    let setting = Setting {
        seed: args.seed,
        engines: usize::from(args.engines),
        requests: args.requests as usize,
        blocks: 4096,
    };
    let sound = compare(&setting, args.json).map_err(io::Error::other)?;
    if !sound {
        eprintln!("kvscout demo: not every prediction was exact and what the engine found");
    }
    Ok(sound)
}

/// Whether every prediction was right.
fn compare(setting: &Setting, json: bool) -> Result<bool, Failure> {
    let begun = Instant::now();
    let turns = workload::turns(setting.seed, setting.engines, setting.requests);
    let mut trials: Vec<Trial> = Policy::ALL
        .into_iter()
        .map(|policy| Trial::start(policy, setting.seed, setting.engines, setting.blocks))
        .collect::<Result<_, _>>()?;
    let mut progress = Progress::new(turns.len());
    let numbered: Vec<_> = (0..).zip(&turns).collect();
    for round in numbered.chunks(ROUND) {
        for trial in &mut trials {
            for &(id, turn) in round {
                trial.serve(id, turn)?;
            }
        }
        progress.show(&trials);
        if begun.elapsed() > DEADLINE {
            break;
        }
    }
    progress.end();
    for trial in &trials {
        trial.fleet().catch_up()?;
    }
    let report = Report::new(setting, &trials, begun.elapsed());
    let out = if json { format!("{:#}\n", report.json()) } else { report.text() };
    io::stdout().write_all(out.as_bytes())?;
    Ok(report.is_sound())
}
