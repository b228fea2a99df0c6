//! The `kvscout` command.

mod hash;

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("hash") {
        eprintln!("usage: kvscout hash < requests.jsonl");
        return ExitCode::from(2);
    }
    match hash::run(io::stdin().lock(), io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kvscout hash: {error}");
            ExitCode::FAILURE
        }
    }
}
