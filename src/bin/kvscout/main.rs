//! The `kvscout` command.

mod hash;
mod replay;

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (input, output) = (io::stdin().lock(), io::stdout().lock());
    let done = match std::env::args().nth(1).as_deref() {
        Some("hash") => hash::run(input, output),
        Some("replay") => replay::run(input, output, Vec::new()),
        _ => return ExitCode::from(2),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kvscout: {error}");
            ExitCode::FAILURE
        }
    }
}
