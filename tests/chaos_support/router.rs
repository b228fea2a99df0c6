//! A router: asks kvscout all the time, checks what it is told, and starts kvscout anew.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::daemon_support::Daemon;

use super::checker::Checker;
use super::client::Client;
use super::engine::{Engine, Facts, Fleet};

pub(crate) struct Router {
    pub(crate) checker: Checker,
    facts: Vec<Arc<Facts>>,
    questions: usize,
    flags: Vec<String>,
    file: &'static str,
    daemon: Option<Daemon>,
    client: Client,
    /// All sources of this kvscout have been added: from then on everything is answered.
    ready: bool,
    next: usize,
    /// How many kvscouts were killed that had begun with a snapshot.
    pub(crate) restored: usize,
}

impl Router {
    /// Starts a kvscout with one source for each engine, and its state in a directory; `file` is the text
    /// of its configuration file.
    pub(crate) fn new(
        fleet: &Arc<Fleet>,
        engines: &[Engine],
        state: &Path,
        file: &'static str,
    ) -> Router {
        let facts: Vec<_> = engines.iter().map(|engine| Arc::clone(&engine.facts)).collect();
        let source = |(number, engine): (usize, &Engine)| {
            let (at, replay_at) = (&engine.publisher_at, &engine.replay_at);
            ["--source".to_owned(), format!("e{number}={at},replay={replay_at}")]
        };
        let sources = engines.iter().enumerate().flat_map(source);
        let flags = ["--model", "m", "--state", state.to_str().unwrap()].map(str::to_owned);
        let mut router = Router {
            checker: Checker::new(fleet, facts.clone()),
            facts,
            questions: fleet.questions.len(),
            flags: flags.into_iter().chain(sources).collect(),
            file,
            daemon: None,
            client: Client::new(""),
            ready: false,
            next: 0,
            restored: 0,
        };
        router.start();
        router
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Kills kvscout; it says no last word.
    pub(crate) fn kill(&mut self) {
        self.restored += usize::from(self.daemon().stderr().contains("restored"));
        self.daemon = None;
    }

    /// Starts it again.
    pub(crate) fn start(&mut self) {
        self.checker.starts();
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let daemon = Daemon::start(&flags, self.file, &[]);
        self.client = Client::new(daemon.address());
        self.daemon = Some(daemon);
        self.ready = false;
    }

    /// Asks the next question. Returns whether the answer says all there is to say, and how long it
    /// took.
    pub(crate) fn ask(&mut self) -> (bool, Duration) {
        let ready = self.ready || self.daemon().get("/ready").status == 200;
        self.next = (self.next + 1) % self.questions;
        let answer = self.checker.ask(&mut self.client, self.next);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                assert!(!self.ready, "{error}\n{}", self.daemon().stderr());
                (false, Duration::ZERO)
            }
        };
        self.ready = ready;
        answer
    }

    /// Lets all engines finish, and asks until the answers to all questions in a row say all there is to
    /// say. Returns whether it came to that.
    pub(crate) fn agree(&mut self, engines: &[Engine], patience: Duration) -> bool {
        engines.iter().for_each(Engine::finish);
        let deadline = Instant::now() + patience;
        let mut complete = 0;
        while complete < self.questions {
            if Instant::now() > deadline {
                return false;
            }
            let done = self.facts.iter().all(|facts| facts.done.load(SeqCst));
            complete = if self.ask().0 && done { complete + 1 } else { 0 };
        }
        true
    }

    /// What became of all that was published.
    pub(crate) fn totals(&self) -> String {
        let sum = |of: fn(&Facts) -> &AtomicU64| -> u64 {
            self.facts.iter().map(|facts| of(facts).load(SeqCst)).sum()
        };
        format!(
            "events sent {} ({} batches), lost {} ({}), replayed {} ({}, in {} replays)",
            sum(|facts| &facts.events),
            sum(|facts| &facts.batches),
            sum(|facts| &facts.lost_events),
            sum(|facts| &facts.lost),
            sum(|facts| &facts.replayed_events),
            sum(|facts| &facts.replayed),
            sum(|facts| &facts.replays),
        )
    }

    /// What was said of it.
    pub(crate) fn verdict(&self) -> String {
        let checker = &self.checker;
        format!(
            "wrong-while-exact {} of {} rows that said exact ({} of them of blocks held) in {} answers; \
             seconds degraded {:.1}, syncing {:.1}, exact {:.1}, summed over workers",
            checker.wrong_rows,
            checker.exact,
            checker.telling,
            checker.answers,
            checker.seconds("degraded"),
            checker.seconds("syncing"),
            checker.seconds("exact"),
        )
    }
}
