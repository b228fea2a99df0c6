//! What the user sees while the demo runs, on stderr.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::trial::Trial;

const INTERVAL: Duration = Duration::from_millis(100);

/// A line that follows the run on a terminal; four lines in a log.
pub(super) struct Progress {
    requests: usize,
    served: usize,
    live: bool,
    shown: Option<Instant>,
}

impl Progress {
    pub(super) fn new(requests: usize) -> Progress {
        Progress { requests, served: 0, live: io::stderr().is_terminal(), shown: None }
    }

    /// Shows how far the policies are, all of which have served equally many requests.
    pub(super) fn show(&mut self, trials: &[Trial]) {
        let before = self.served;
        self.served = trials.first().map_or(0, |trial| trial.tally().requests as usize);
        if self.live {
            let due = self.shown.is_none_or(|shown| shown.elapsed() >= INTERVAL);
            if due || self.served == self.requests {
                self.shown = Some(Instant::now());
                // A progress that cannot be shown is no reason to stop.
                let _ = write!(io::stderr(), "\r\x1b[K{}", self.line(trials));
            }
        } else if 4 * self.served / self.requests > 4 * before / self.requests {
            let _ = writeln!(io::stderr(), "{}", self.line(trials));
        }
    }

    /// Makes room for what comes next.
    pub(super) fn end(&self) {
        if self.live {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&self, trials: &[Trial]) -> String {
        let mut line = format!("{}/{} requests, cached:", self.served, self.requests);
        for trial in trials {
            let tally = trial.tally();
            let percent = 100 * tally.cached_tokens / tally.prompt_tokens.max(1);
            // Writing to a string does not fail.
            let _ = write!(line, "  {} {percent} %", trial.policy.as_str());
        }
        line
    }
}
