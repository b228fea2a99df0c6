//! `kvscout record`: live traffic in, the recording that `kvscout replay` reads out.

mod output;
mod tape;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvscout::ingest::zmq::{Receiver, Replays, RoundOptions, Source, SourceId};
use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use self::output::Output;
use self::tape::{Deck, Tape, Track};
use crate::Failure;
use crate::config::source::SourceEntry;
use crate::config::{Config, Flags, duration};

/// How long past batches that were asked for may take after the end.
const GRACE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Writes what engines publish as a recording for `kvscout replay`, until SIGINT, SIGTERM or --for.
///
/// A recording holds the tokens of every prompt, and salts: keep it as you would keep the prompts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvscout record --source pod-1=tcp://10.0.0.7:5557,replay=tcp://10.0.0.7:5558 --for 5m -o a.jsonl
  echo '{\"op\": \"query\", \"id\": 1, \"token_ids\": [1, 2, 3]}' | cat a.jsonl - | kvscout replay

With replay= the recording begins at batch 0 and has no gaps, as far as the engine has kept them.")]
pub(crate) struct Args {
    /// An engine to receive from: NAME=tcp://host:port[,replay=tcp://host:port][,ranks=N]
    #[arg(long = "source", value_name = "NAME=ENDPOINT")]
    sources: Vec<String>,
    /// Model of the engines given by --source; without it they answer for any model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Configuration file (TOML) of the daemon, for its sources
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to write; must not exist, is readable by its owner only [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How long, such as 90s or 5m [default: until told to end]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    lasting: Option<Duration>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let flags =
        Flags { sources: args.sources.clone(), model: args.model.clone(), ..Flags::default() };
    let config = Config::load(args.config.as_deref(), &flags)?;
    let tracks = tracks(&config)?;
    let failed = |error: kvscout::Error| Failure::Failed(error.to_string());
    let output = Output::open(args.output.as_deref())?;
    for (track, (entry, _)) in tracks.iter().zip(workers(&config)) {
        output.line(track.registration(entry));
    }

    let tape = Arc::new(Mutex::new(Tape::new(tracks, output.pen(), config.events)));
    let rounds =
        RoundOptions { max_message_bytes: config.zmq.max_message_bytes, ..config.rounds.clone() };
    let replays = Replays::start(rounds, |asker| Deck::new(&tape, asker)).map_err(failed)?;
    let deck = Deck::new(&tape, replays.asker());
    let receiver = Receiver::start(config.zmq.clone(), deck).map_err(failed)?;
    for (n, (entry, rank)) in workers(&config).enumerate() {
        let endpoint = entry.endpoint.for_rank(rank).map_err(failed)?;
        receiver.add(SourceId(n as u32), Source::new(endpoint, entry.mode)).map_err(failed)?;
    }
    eprintln!(
        "kvscout record: receiving; the recording holds the tokens of every prompt, and salts"
    );
    let ended = wait(args.lasting, receiver, &tape, &output);
    drop(replays);
    let was_read = output.close();
    ended.map_err(|error| Failure::Failed(format!("waiting for the end: {error}")))?;
    let all_were_reached = report(&tape.lock());
    match was_read? && !all_were_reached {
        true => Err(Failure::Found),
        false => Ok(()),
    }
}

/// Receives until somebody says that it is enough; then waits for past batches that were asked for.
fn wait(
    time: Option<Duration>,
    receiver: Receiver,
    tape: &Mutex<Tape>,
    output: &Output,
) -> io::Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = output.has_failed() => {}
            () = lasting(time) => {}
        }
        // What is published from here on is no part of it.
        drop(receiver);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = output.has_failed() => {}
            () = settled(tape) => {}
        }
        Ok(())
    })
}

/// Each rank of each source.
fn workers(config: &Config) -> impl Iterator<Item = (&SourceEntry, u32)> {
    config.sources.iter().flat_map(|entry| (0..entry.ranks.get()).map(move |rank| (entry, rank)))
}

fn tracks(config: &Config) -> Result<Vec<Track>, Failure> {
    if config.sources.is_empty() {
        let none =
            "nothing to record: give --source NAME=tcp://host:port, or --config with [[source]]";
        return Err(Failure::Usage(none.to_owned()));
    }
    if config.trust_topics {
        eprintln!("kvscout record: topic_bind is not recorded, only sources are");
    }
    let tracks = workers(config).map(|(entry, rank)| {
        let replay = entry.replay.as_ref().map(|replay| replay.for_rank(rank)).transpose();
        let replay = replay.map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(Track::new(&entry.name, rank, replay, config.replay))
    });
    tracks.collect()
}

async fn lasting(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Waits until nothing is being asked for, but not for ever.
async fn settled(tape: &Mutex<Tape>) {
    let waiting = async {
        while !tape.lock().is_settled() {
            tokio::time::sleep(LOOK).await;
        }
    };
    // What has not come by then is said in the report.
    let _ = tokio::time::timeout(GRACE, waiting).await;
}

/// Says what the recording has of each worker; whether each was reached.
fn report(tape: &Tape) -> bool {
    let mut all_were_reached = true;
    for track in tape.tracks() {
        eprintln!("kvscout record: {}", track.summary());
        all_were_reached &= track.was_reached();
    }
    all_were_reached
}
