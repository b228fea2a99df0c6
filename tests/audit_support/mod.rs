//! What tests of audits share: an engine whose buffer is what a test makes it, and the worker that follows it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::rc::Rc;
use std::time::Duration;

use kvscout::block::{Prompt, WorkerId};
use kvscout::ingest::ReplayOptions;
use kvscout::ingest::sequencer::{Comparison, Ended, Flow, Stage};
use kvscout::scout::{Ask, Audited, Progress, Registration, WorkerStatus};
use serde_json::Value;

use crate::failures_support::{Site, batch, stored};

pub(crate) const PERIOD: Duration = Duration::from_secs(600);
pub(crate) const TOKENS: [u32; 17] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];

/// An engine, and the worker that follows it; the engine's buffer is what a test makes it.
pub(crate) struct Pair {
    pub(crate) site: Rc<Site>,
    pub(crate) worker: WorkerId,
    pub(crate) now: Duration,
    pub(crate) buffer: Vec<(u64, Vec<u8>)>,
    pub(crate) next: u64,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        Pair::of(Site::new(), Registration::new("a", "m"))
    }

    pub(crate) fn of(site: impl Into<Rc<Site>>, registration: Registration) -> Pair {
        let site = site.into();
        let worker = site.register(registration);
        let options = ReplayOptions { audit: PERIOD, ..ReplayOptions::default() };
        site.scout.follow(worker, options, 7).unwrap();
        let mut pair = Pair { site, worker, now: Duration::ZERO, buffer: Vec::new(), next: 0 };
        let ask = pair.site.scout.link(worker, pair.now, true).unwrap().ask;
        pair.serve(ask.expect("where it stands"));
        pair
    }

    /// Publishes a batch; what is sent may be another one than what is kept.
    pub(crate) fn publish(&mut self, sent: &[Value], kept: &[Value]) {
        self.deliver(batch(sent), batch(kept));
    }

    pub(crate) fn deliver(&mut self, sent: Vec<u8>, kept: Vec<u8>) {
        let ask = self.site.scout.apply(self.worker, self.next, &sent).unwrap().ask;
        assert_eq!(ask, None);
        self.buffer.push((self.next, kept));
        self.next += 1;
    }

    /// A block and what follows it, as the engine stores them; all of it arrives.
    pub(crate) fn store(&mut self, hashes: &[u64], parent: Option<u64>, tokens: &[u32]) {
        self.same(stored(hashes, parent, tokens));
    }

    /// What is sent is what is kept.
    pub(crate) fn same(&mut self, event: Value) {
        let payload = batch(&[event]);
        self.deliver(payload.clone(), payload);
    }

    /// The engine answers.
    pub(crate) fn serve(&mut self, ask: Ask) -> Progress {
        self.serve_some(ask, usize::MAX, Ended::Marker)
    }

    pub(crate) fn serve_some(&mut self, ask: Ask, most: usize, how: Ended) -> Progress {
        let batches = self.buffer.iter().filter(|batch| batch.0 >= ask.from).take(most);
        for (seq, payload) in batches {
            let (flow, progress) =
                self.site.scout.replayed(self.worker, self.now, ask.round, *seq, payload).unwrap();
            if flow == Flow::Stop {
                return progress;
            }
        }
        self.site.scout.replay_ended(self.worker, self.now, ask.round, how).unwrap()
    }

    /// The engine answers until nothing more is asked.
    pub(crate) fn repair(&mut self, ask: Option<Ask>) {
        let mut ask = ask;
        while let Some(next) = ask {
            let progress = self.serve(next);
            ask = progress.ask;
            if let Some(at) = progress.wake_at
                && self.status().stage == Some(Stage::Waiting)
            {
                self.now = self.now.max(at);
                ask = self.site.scout.tick(self.worker, self.now).unwrap().ask;
            }
        }
    }

    /// A batch about something else, the same on both sides: the last one shows that it is the same publisher.
    pub(crate) fn go_on(&mut self) {
        let n = self.next as u32 + 100;
        self.store(&[u64::from(n)], None, &[n, n, n, n]);
    }

    /// Time passes until an audit is due; what it asks for.
    pub(crate) fn due(&mut self) -> Option<Ask> {
        self.now += PERIOD;
        self.site.scout.tick(self.worker, self.now).unwrap().audit
    }

    /// An audit to its end.
    pub(crate) fn audit(&mut self) -> Progress {
        self.audit_from(0)
    }

    pub(crate) fn audit_from(&mut self, from: u64) -> Progress {
        let ask = self.due().expect("an audit");
        assert_eq!(ask.from, from);
        self.serve(ask)
    }

    /// What comes of the audit that is due, which may only find where the next one begins.
    #[track_caller]
    pub(crate) fn attempt(&mut self) -> Progress {
        let ask = self.due().expect("an attempt");
        self.serve(ask)
    }

    pub(crate) fn status(&self) -> WorkerStatus {
        self.site.status(self.worker)
    }

    pub(crate) fn matched(&self) -> u32 {
        self.site.line("a", 0, Prompt::new(&TOKENS)).matched
    }
}

/// A pair whose buffer has left batch 0; what was held was kept, if there was room.
pub(crate) fn anchored(site: Rc<Site>, pod: &str) -> Pair {
    let mut pair = Pair::of(site, Registration::new(pod, "m"));
    let many: Vec<u64> = (1..=100).collect();
    let tokens: Vec<u32> = (0..400).collect();
    pair.store(&many, None, &tokens);
    pair.go_on();
    pair.buffer.remove(0);
    pair.attempt();
    pair
}

#[track_caller]
pub(crate) fn found(progress: &Progress) -> (Comparison, u64, u64) {
    let Audited { comparison, missing, surplus, .. } = progress.audited.expect("a comparison");
    (comparison, missing, surplus)
}
