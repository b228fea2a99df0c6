//! Following a stream whose missed batches can be asked for again.

use std::time::Duration;

use super::Scout;
use super::stream::audit::Audited;
use super::stream::feed::News;
use crate::block::WorkerId;
use crate::error::Error;
use crate::event::DecodeError;
use crate::index::Applied;
use crate::ingest::ReplayOptions;
use crate::ingest::sequencer::{Ended, Flow};

/// A round to be asked for: the past batches of a worker's engine, over a fresh connection, in place of
/// any round that was asked for before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Number of the round, to be given back with each of its batches and with its end.
    pub round: u64,
    /// The first batch wanted.
    pub from: u64,
}

/// What became of a worker that was told something other than a live batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What changed in the index.
    pub applied: Applied,
    /// Events left out as a whole because they could not be decoded or made no sense.
    pub rejected: u32,
    /// The first decoding error, with its offset in its payload.
    pub error: Option<DecodeError>,
    /// What to ask the worker's replay source.
    pub ask: Option<Ask>,
    /// What to ask it for an audit: likewise in place of any round before, but only when nobody's
    /// [`ask`](Progress::ask) waits, and to be cut when one comes.
    pub audit: Option<Ask>,
    /// What an audit has come to.
    pub audited: Option<Audited>,
    /// When to call [`Scout::tick`] for it; `None` if not before anything else happens.
    ///
    /// Only what is told beside live batches makes a wake-up, so whoever asks for replays can keep them
    /// alone. One that is due no more does no harm.
    pub wake_at: Option<Duration>,
}

/// Workers whose engine keeps past batches.
///
/// A followed worker holds back what comes too early and says what to ask for; what is asked for, and when,
/// is decided by [`ingest::Sequencer`](crate::ingest::Sequencer), which has the whole story. Whoever
/// embeds the scout asks, hands in what comes, and says how the round ended. Times are counted from any
/// moment of the caller's, the same for all calls.
///
/// ```
/// use std::time::Duration;
///
/// use kvscout::ingest::sequencer::Ended;
/// use kvscout::ingest::{ReplayOptions, Trust};
/// use kvscout::scout::{Ask, Options, Registration, Scout};
///
/// // Empty batches: [timestamp, [events]].
/// let batch = |n: u8| [0x92, n, 0x90];
/// let now = Duration::from_secs(1);
///
/// let scout = Scout::new(Options::default())?;
/// let engine = scout.register(Registration::new("engine-a", "tiny"))?;
/// scout.follow(engine, ReplayOptions::default(), 42)?;
/// scout.apply(engine, 0, &batch(0))?;
///
/// // Batch 1 is lost. Batch 2 waits for it.
/// let ask = scout.apply(engine, 2, &batch(2))?.ask;
/// assert_eq!(ask, Some(Ask { round: 1, from: 0 }));
/// assert_eq!(scout.worker(engine).unwrap().trust, Trust::Syncing);
///
/// // The engine repeats what it has, from what was applied last on.
/// for seq in 0..=2 {
///     scout.replayed(engine, now, 1, seq, &batch(seq as u8))?;
/// }
/// scout.replay_ended(engine, now, 1, Ended::Marker)?;
/// let status = scout.worker(engine).unwrap();
/// assert_eq!((status.trust, status.as_of, status.counters.missing), (Trust::Exact, Some(2), 0));
/// # Ok::<(), kvscout::Error>(())
/// ```
impl Scout {
    /// Gives a worker a replay source, whatever it was fed before: from now on what is missing is asked
    /// for. The seed, another one for each worker and each process, spreads waits in time.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn follow(&self, worker: WorkerId, options: ReplayOptions, seed: u64) -> Result<(), Error> {
        self.with_stream(worker, |stream| stream.follow(options, seed))
    }

    /// A batch of a round came. Where the answer is [`Flow::Stop`] nothing more of the round is of use,
    /// and its end need not be said.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn replayed(
        &self,
        worker: WorkerId,
        now: Duration,
        round: u64,
        seq: u64,
        payload: &[u8],
    ) -> Result<(Flow, Progress), Error> {
        self.with_stream(worker, |stream| stream.replayed(&self.shared, now, round, seq, payload))
    }

    /// A round has ended, or could not begin.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn replay_ended(
        &self,
        worker: WorkerId,
        now: Duration,
        round: u64,
        how: Ended,
    ) -> Result<Progress, Error> {
        self.tell(worker, now, News::Ended(round, how))
    }

    /// The link to a worker's engine was lost, or is up, for the first time or again. A batch that is
    /// handed in after that must have come over a connection that is no older.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn link(&self, worker: WorkerId, now: Duration, up: bool) -> Result<Progress, Error> {
        self.tell(worker, now, News::Link(up))
    }

    /// Time has passed; to be said at [`Progress::wake_at`].
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn tick(&self, worker: WorkerId, now: Duration) -> Result<Progress, Error> {
        self.tell(worker, now, News::Time)
    }

    /// Nothing was heard of a worker's engine for so long that it may be gone. Its trust is
    /// [`Trust::Silent`](crate::ingest::Trust::Silent) until a live batch comes or its link is up.
    ///
    /// What counts as too long is the caller's: an engine without traffic publishes nothing.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn silence(&self, worker: WorkerId) -> Result<(), Error> {
        self.with_stream(worker, |stream| {
            stream.fall_silent();
            Ok(())
        })
    }

    fn tell(&self, worker: WorkerId, now: Duration, news: News) -> Result<Progress, Error> {
        self.with_stream(worker, |stream| stream.told(&self.shared, now, news))
    }
}
