//! Prints sequence numbers and sizes of the messages from one publisher.
//!
//! `cargo run --features zmq --example subscribe -- tcp://127.0.0.1:5557`, or with `bind` as a
//! second argument to wait for a publisher that dials.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use kvscout::Error;
use kvscout::ingest::zmq::{Endpoint, Mode, Options, Receiver, Sink, Source, SourceId};

struct Print;

impl Sink for Print {
    fn batch(&mut self, _source: SourceId, topic: &[u8], sequence: u64, payload: &[u8]) {
        println!("{sequence}: topic of {} bytes, payload of {}", topic.len(), payload.len());
    }

    fn link(&mut self, _source: SourceId, up: bool) {
        println!("{}", if up { "connected" } else { "disconnected" });
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(endpoint) = arguments.next() else {
        eprintln!("usage: subscribe <endpoint> [bind]");
        return ExitCode::from(2);
    };
    let mode = if arguments.next().as_deref() == Some("bind") { Mode::Bind } else { Mode::Connect };
    match subscribe(&endpoint, mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("subscribe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn subscribe(endpoint: &str, mode: Mode) -> Result<(), Error> {
    let receiver = Receiver::start(Options::default(), Print)?;
    let endpoint = receiver.add(SourceId(0), Source::new(endpoint.parse::<Endpoint>()?, mode))?;
    println!("{endpoint}");
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}
