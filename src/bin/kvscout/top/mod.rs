//! `kvscout top`: a running daemon in a terminal, asked over HTTP.

mod ask;
mod board;
mod figures;
mod frame;
mod rates;
mod screen;
mod table;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::json;

use self::ask::Daemon;
use self::board::Board;
use crate::Failure;
use crate::config::duration;

/// Shows a running daemon live: workers and their trust, blocks, events, lag, hit ratio, latency.
///
/// Ends with q, Esc or Ctrl-C. What the figures mean: docs/top.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvscout top
  kvscout top --url http://10.0.0.5:13333 --every 2s
  kvscout top --once --json | jq '.workers[] | select(.trust != \"exact\")'")]
pub(crate) struct Args {
    /// Where the daemon listens
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:13333")]
    url: String,
    /// How often it is asked, such as 500ms, 2s or 1m
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    every: Duration,
    /// File with the token, if the daemon wants one
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print one frame as plain text, after two looks `--every` apart
    #[arg(long)]
    once: bool,
    /// Print it as JSON: what /v1/status says, and rates
    #[arg(long, requires = "once")]
    json: bool,
}

/// How often a daemon may be asked.
fn interval(text: &str) -> Result<Duration, String> {
    let every = duration(text)?;
    match (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&every) {
        true => Ok(every),
        false => Err("expected from 100ms to 60m".to_owned()),
    }
}

/// Shows a daemon until it is told to end, or once.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let daemon = Daemon::at(&args.url, args.token_file.as_deref())?;
    let board = Board::new(&args.url, args.every);
    if args.once {
        return once(&daemon, board, args);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "top needs a terminal for its input and output; --once prints one plain frame, --once \
             --json the same for programs"
                .to_owned(),
        ));
    }
    let terminal = std::env::var("TERM").unwrap_or_default();
    if terminal.is_empty() || terminal == "dumb" {
        return Err(Failure::Usage(format!(
            "the terminal TERM={terminal:?} cannot show a live view; --once prints one plain frame"
        )));
    }
    screen::run(daemon, board)
}

fn once(daemon: &Daemon, mut board: Board, args: &Args) -> Result<(), Failure> {
    let failed = |why: String| Failure::Failed(format!("{}: {why}", args.url));
    board.heard(Ok(daemon.ask().map_err(failed)?));
    thread::sleep(args.every);
    board.heard(Ok(daemon.ask().map_err(failed)?));
    let out = match args.json {
        true => {
            let mut document = json!(board.status);
            document["rates"] = json!(board.rates);
            format!("{document:#}\n")
        }
        false => frame::text(&board),
    };
    match io::stdout().write_all(out.as_bytes()) {
        // Whoever reads has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| Failure::Failed(format!("the frame: {error}"))),
    }
}
