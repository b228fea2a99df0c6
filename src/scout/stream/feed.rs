//! What comes to a stream from outside, and whose turn it is.

use std::time::Duration;

use super::{MAX_WAITING, Shared, Stream, Waiting};
use crate::error::Error;
use crate::event::{Batch, DecodeError};
use crate::ingest::sequencer::{Arrival, Ended, Flow, Step};
use crate::ingest::{Reason, ReplayOptions, Verdict};
use crate::scout::follow::{Ask, Progress};
use crate::scout::{Ingested, unknown_worker};

/// What happens on a stream beside batches.
#[derive(Clone, Copy, Debug)]
pub(in crate::scout) enum News {
    /// A round has ended.
    Ended(u64, Ended),
    /// The link is up or down.
    Link(bool),
    /// Time has passed.
    Time,
}

impl Stream {
    /// Takes in a batch that came live.
    pub(in crate::scout) fn apply(
        &mut self,
        shared: &Shared,
        seq: u64,
        payload: &[u8],
    ) -> Result<Ingested, Error> {
        self.check()?;
        self.silent = false;
        if self.anchor.is_some() && self.lane.stage().is_none() {
            // Nobody audits it.
            self.anchor = None;
        }
        let batch = Batch::parse(payload, &shared.limits);
        let arrival = arrival(seq, payload, &batch);
        self.lane.limit_held(self.may_hold_back(shared));
        let verdict = self.lane.live(self.now, arrival);
        let mut progress = Progress::default();
        if let (Verdict::Duplicate | Verdict::Late, Err(error)) = (verdict, &batch) {
            progress.error = Some(*error);
            progress.rejected += 1;
            self.events.rejected += 1;
        }
        self.obey(shared, Some((batch, payload)), &mut progress)?;
        let Progress { applied, rejected, error, ask, .. } = progress;
        Ok(Ingested { verdict, applied, rejected, error, ask })
    }

    /// Takes in a batch of a replay.
    pub(in crate::scout) fn replayed(
        &mut self,
        shared: &Shared,
        now: Duration,
        round: u64,
        seq: u64,
        payload: &[u8],
    ) -> Result<(Flow, Progress), Error> {
        self.check()?;
        self.now = now;
        let batch = Batch::parse(payload, &shared.limits);
        let flow = self.lane.replayed(now, round, arrival(seq, payload, &batch));
        let mut progress = Progress::default();
        self.obey(shared, Some((batch, payload)), &mut progress)?;
        Ok((flow, progress))
    }

    /// Tells the sequencer of something that is no batch.
    pub(in crate::scout) fn told(
        &mut self,
        shared: &Shared,
        now: Duration,
        news: News,
    ) -> Result<Progress, Error> {
        self.check()?;
        self.now = now;
        match news {
            News::Ended(round, how) => self.lane.replay_ended(now, round, how),
            News::Link(up) => {
                self.silent &= !up;
                self.lane.link(now, up);
            }
            News::Time => {
                self.lane.forbid_audits(self.is_beyond_audits(shared));
                self.lane.tick(now);
            }
        }
        let mut progress = Progress::default();
        self.obey(shared, None, &mut progress)?;
        Ok(progress)
    }

    pub(in crate::scout) fn follow(
        &mut self,
        options: ReplayOptions,
        seed: u64,
    ) -> Result<(), Error> {
        self.check()?;
        if options.audit.is_zero() {
            self.anchor = None;
        }
        self.lane.follow(options, seed);
        Ok(())
    }

    /// Says that nothing was heard for too long.
    pub(in crate::scout) fn fall_silent(&mut self) {
        self.silent = true;
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.retired {
            true => Err(unknown_worker(self.seat.worker)),
            false => Ok(()),
        }
    }

    /// Does what the sequencer says, all of it: an error keeps no later batch from its turn. It leaves the worker
    /// without a part of a batch.
    fn obey(
        &mut self,
        shared: &Shared,
        handed_in: Option<(Result<Batch<'_>, DecodeError>, &[u8])>,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let (mut handed_in, mut failed) = (handed_in, None);
        while let Some(step) = self.lane.next_step() {
            if matches!(step, Step::StartOver | Step::Apply { .. } | Step::Release(_)) {
                self.seat.post.open();
            }
            let done = match step {
                Step::StartOver => self.start_over(shared),
                Step::Apply { .. } => match handed_in.take() {
                    Some((batch, payload)) => self.take(shared, batch, payload, progress),
                    None => Ok(()),
                },
                Step::Release(held) => {
                    let batch = Batch::parse(&held.payload, &shared.limits);
                    self.take(shared, batch, &held.payload, progress)
                }
                Step::Ask { round, from } => {
                    (progress.ask, progress.audit) = (Some(Ask { round, from }), None);
                    Ok(())
                }
                Step::Audit { round, from } => {
                    progress.audit = Some(Ask { round, from });
                    Ok(())
                }
                Step::Shadow { seq } => {
                    if let Some((_, payload)) = handed_in.take() {
                        self.shade(shared, seq, payload);
                    }
                    Ok(())
                }
                Step::Anchor => {
                    self.anchor_here(shared);
                    Ok(())
                }
                Step::ShadowAnchor => {
                    self.shade_anchor(shared);
                    Ok(())
                }
                Step::ShadowHeld(held) => {
                    self.shade(shared, held.seq, &held.payload);
                    Ok(())
                }
                Step::Compare => {
                    self.compare(shared, progress);
                    Ok(())
                }
                Step::Discard => {
                    self.shadow = None;
                    Ok(())
                }
            };
            if let Err(error) = done {
                self.lane.degrade(Reason::Undecodable);
                failed.get_or_insert(error);
            }
        }
        if self.waiting.is_empty() {
            self.applied_to = self.lane.watermark();
        }
        self.tell_kept_back(shared);
        progress.wake_at = self.lane.wake_at();
        failed.map_or(Ok(()), Err)
    }

    /// Takes in a batch whose turn it is: applies it, or lets it wait for the contract.
    pub(super) fn take(
        &mut self,
        shared: &Shared,
        batch: Result<Batch<'_>, DecodeError>,
        payload: &[u8],
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                progress.error.get_or_insert(error);
                progress.rejected += 1;
                self.reject();
                return Ok(());
            }
        };
        let observed = self.observe(shared, &batch);
        if self.verifier.must_wait() {
            // Not less where others keep back a lot: what is taken for plain text stays so.
            if self.waiting_bytes + payload.len() <= MAX_WAITING {
                self.waiting_bytes += payload.len();
                let wrongs = self.lane.wrongs();
                self.waiting.push(Waiting { payload: payload.into(), wrongs });
                return observed;
            }
            self.verifier.give_up();
        }
        let waited = self.apply_waiting(shared, progress);
        let applied = self.apply_batch(shared, &batch, progress);
        observed.and(waited).and(applied)
    }
}

fn arrival<'a>(seq: u64, payload: &'a [u8], batch: &Result<Batch<'_>, DecodeError>) -> Arrival<'a> {
    let timestamp = batch.as_ref().ok().map(Batch::timestamp);
    Arrival { seq, timestamp, payload }
}
