//! kvscout measured against other KV-cache block indexes, all in one process.
//!
//! `check` measures every row, prints one line for each, and exits with 1 if one fails; see
//! `docs/benchmarks.md`.

mod alloc;
mod bench;
mod chain_index;
mod check;
mod clock;
mod dynamo;
mod limits;
mod ours;
mod peer;
mod pool;
mod query;
mod rng;
mod row;
mod wire;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use crate::bench::{Options, end_to_end, exactness, fleet, memory, names};
use crate::row::{ROWS, Row};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// Command line.
#[derive(Debug, Parser)]
#[command(about = "kvscout measured against other KV-cache block indexes")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    measure: Measure,
}

#[derive(Debug, Args)]
struct Measure {
    /// Repetitions of every figure; the median counts.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    reps: u16,
    /// A small fleet and short measurements, for work on the harness: no results.
    #[arg(long, global = true)]
    quick: bool,
    /// Write everything that was measured here, as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every row; exits with 1 if one fails.
    Check,
    /// Some rows, by name.
    Row {
        /// Names of rows.
        #[arg(required = true, value_name = "NAME", value_parser = ROWS.map(|row| row.name))]
        names: Vec<String>,
    },
    /// The rows of exact names.
    Exact,
    /// What the machine allows.
    Limits,
    /// One index in a process of its own; `check` starts it.
    #[command(hide = true)]
    Memory {
        /// The index.
        index: String,
        /// How many entries.
        entries: usize,
        /// `shared` or `unshared`.
        share: String,
    },
}

fn main() -> ExitCode {
    let Cli { command, measure } = Cli::parse();
    let wanted: Vec<&'static str> = match command {
        Command::Check => ROWS.iter().map(|row| row.name).collect(),
        Command::Row { names } => {
            names.iter().filter_map(|name| row::promise(name)).map(|row| row.name).collect()
        }
        Command::Exact => names::ROWS.to_vec(),
        Command::Limits => return print_limits(&measure),
        Command::Memory { index, entries, share } => {
            return match memory::child(&index, entries, share == "shared") {
                Some(figures) => {
                    println!("{figures}");
                    ExitCode::SUCCESS
                }
                None => ExitCode::FAILURE,
            };
        }
    };
    let start = Instant::now();
    let options = Options { reps: usize::from(measure.reps), quick: measure.quick, rows: wanted };
    let rows = complete(&options, measured(&options));
    let kept = rows.iter().filter(|row| row.ok()).count();
    println!("{}", Row::head());
    rows.iter().for_each(|row| println!("{}", row.line()));
    println!("{kept} of {} rows ok, {:.0} s", rows.len(), start.elapsed().as_secs_f64());
    if options.quick {
        println!("a quick run: these are no results");
    }
    if options.reps < 5 {
        println!("fewer than 5 repetitions: these are no results");
    }
    let results = json!({
        "machine": machine(), "repetitions": options.reps, "quick": options.quick,
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    if !write_json(&measure, &results) || kept < rows.len() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Measures what is wanted, the parts one after the other.
fn measured(options: &Options) -> Vec<Row> {
    let mut rows = exactness::rows(options);
    let of_64 = ROWS.iter().map(|row| row.name).filter(|row| {
        row.starts_with("ingest")
            || row.starts_with("mixed")
            || row.starts_with("tokens")
            || ["lookup-1024", "next-turn-64", "oracle-64"].contains(row)
    });
    if options.wants_any(&of_64.collect::<Vec<_>>()) {
        bench::progress("64 workers: simulate");
        let fleet = fleet::of_64(options);
        let stream = workload::simulate(&fleet);
        rows.extend(fleet::rows_64(options, &fleet, &stream));
        rows.extend(end_to_end::rows(options, &fleet, &stream));
    }
    rows.extend(fleet::rows_256(options));
    rows.extend(bench::wire::rows(options));
    rows.extend(memory::rows(options));
    rows.extend(names::rows(options));
    rows
}

/// The wanted rows in the table's order; one that no part gave fails.
fn complete(options: &Options, measured: Vec<Row>) -> Vec<Row> {
    let wanted = ROWS.iter().filter(|row| options.wants(row.name));
    wanted
        .map(|promise| {
            let row = measured.iter().find(|row| row.name() == promise.name);
            row.cloned().unwrap_or_else(|| Row::failed(promise.name, "was not measured"))
        })
        .collect()
}

fn print_limits(measure: &Measure) -> ExitCode {
    let limits = limits::all(measure.quick);
    for (what, nanoseconds) in &limits {
        println!("{what:<56} {nanoseconds:>9.2} ns");
    }
    let values: serde_json::Map<String, Value> =
        limits.into_iter().map(|(what, nanoseconds)| (what, json!(nanoseconds))).collect();
    let results = json!({"machine": machine(), "limits_ns": values});
    if write_json(measure, &results) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the results are where they were asked for.
fn write_json(measure: &Measure, results: &Value) -> bool {
    let Some(path) = &measure.json else { return true };
    match std::fs::write(path, format!("{results:#}\n")) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("cannot write {}: {error}", path.display());
            false
        }
    }
}

/// What the results were measured on.
fn machine() -> Value {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    json!({
        "commit": commit(),
        "cpu": model.map_or("unknown", |model| model.trim_start_matches([' ', '\t', ':'])),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "transparent_huge_pages": huge.unwrap_or_default().trim(),
    })
}

/// The commit that was built, if its repository is still there.
fn commit() -> String {
    let git = std::process::Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
        .output();
    let said = git.ok().filter(|output| output.status.success());
    said.map_or("unknown".to_owned(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
