//! `kvscout`: the KV-cache block index as a command.

mod admission;
mod auth;
mod client;
mod config;
mod demo;
mod dial;
mod discover;
mod doctor;
mod ending;
mod fields;
mod follow;
mod grpc;
mod hash;
mod heap;
mod http;
mod intake;
mod lines;
mod listen;
mod logs;
mod metrics;
mod pulse;
mod record;
mod replay;
mod serve;
mod service;
mod state;
mod status;
mod store;
mod top;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kvscout::ErrorKind;

/// KV-cache block index for LLM routers: which engine already holds how much of a prompt?
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = false, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Serve(serve::Args),
    Doctor(doctor::Args),
    Top(top::Args),
    /// The block hashes that a vLLM engine gives its requests: JSON lines in, JSON lines out
    #[command(after_help = "\
Example:
  echo '{\"algorithm\": \"sha256_cbor\", \"seed\": \"0\", \"block_size\": 2, \"token_ids\": [1, 2]}' |
    kvscout hash")]
    Hash,
    /// Feeds a recording to a fresh index and answers the questions in it, offline
    #[command(after_help = "\
Example:
  kvscout replay < recording.jsonl")]
    Replay {
        /// A PYTHONHASHSEED to try, beside unset, 0 and 42
        #[arg(long = "seed", value_name = "TEXT")]
        seeds: Vec<String>,
    },
    Record(record::Args),
}

/// Why a command ends with another status than 0.
#[derive(Debug)]
enum Failure {
    /// Wrong usage: status 2.
    Usage(String),
    /// It could not do its work: status 1.
    Failed(String),
    /// It found a problem and has said so: status 1.
    Found,
}

impl From<kvscout::Error> for Failure {
    fn from(error: kvscout::Error) -> Failure {
        match error.kind() {
            ErrorKind::InvalidInput => Failure::Usage(error.to_string()),
            _ => Failure::Failed(error.to_string()),
        }
    }
}

fn main() -> ExitCode {
    heap::keep_little();
    let outcome = match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(error) if !error.use_stderr() => {
            // Help and version; a closed pipe is the reader's choice.
            let _ = error.print();
            Ok(())
        }
        Err(error) => Err(Failure::Usage(one_line(&error.to_string()))),
    };
    let (message, status) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Found) => return ExitCode::from(1),
        Err(Failure::Failed(message)) => (message, 1),
        Err(Failure::Usage(message)) => (message, 2),
    };
    eprintln!("kvscout: {message}");
    ExitCode::from(status)
}

fn run(command: Command) -> Result<(), Failure> {
    let (input, output) = (io::stdin, || io::stdout().lock());
    match command {
        Command::Demo(args) => filtered(demo::run(&args)),
        Command::Serve(args) => serve::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Hash => filtered(hash::run(input().lock(), output())),
        Command::Record(args) => record::run(&args),
        Command::Replay { seeds } => filtered(replay::run(input().lock(), output(), seeds)),
    }
}

/// How a command ended that says whether all was fine.
fn filtered(ended: io::Result<bool>) -> Result<(), Failure> {
    match ended {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Found),
        Err(error) => Err(Failure::Failed(error.to_string())),
    }
}

/// The first paragraph of clap's message; what follows is tips and usage.
fn one_line(message: &str) -> String {
    let first = message.lines().take_while(|line| !line.is_empty());
    let text = first.map(str::trim).collect::<Vec<_>>().join(" ");
    format!("{}; see --help", text.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_fits_a_screen_and_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            // As it is printed: in the long form only where an option has more to say.
            let help = Cli::try_parse_from(["kvscout", name, "--help"]).unwrap_err().to_string();
            assert!(help.starts_with(&command.get_about().unwrap().to_string()), "{name}: {help}");
            assert!(help.lines().count() <= 50, "{name}: {}", help.lines().count());
            let widest = help.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(100), "{name}: {widest:?}");
            assert!(help.contains("Example"), "{name}");
        }
    }

    #[test]
    fn a_usage_error_is_one_line_that_names_the_wrong_value() {
        let error = Cli::try_parse_from(["kvscout", "serve", "--lisen", "x"]).unwrap_err();
        let line = one_line(&error.to_string());
        assert!(line.contains("--lisen") && !line.contains('\n'), "{line}");
    }
}
