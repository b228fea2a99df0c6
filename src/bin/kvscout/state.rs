//! `--state`: what is kept over a restart, and what a new replica begins with.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvscout::Error;
use kvscout::hash::content::DigestKey;
use kvscout::ingest::snapshot::{Snapshot, StateDirectory, WorkerState};
use kvscout::scout::{Options, Scout};
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::auth::first_token;
use crate::client::{self, Bounds, Client};
use crate::config::Config;

/// What a snapshot may take beyond the memory that its index may: registrations.
const BESIDE_INDEX: u64 = 256 << 20;
/// How much of an error answer is read.
const ERROR_ANSWER: u64 = 4096;

/// The state directory of this process.
#[derive(Debug)]
pub(crate) struct State {
    directory: StateDirectory,
    from: Vec<String>,
    from_token_file: Option<String>,
    most_fetched: u64,
    /// One snapshot is written at a time.
    saving: Mutex<()>,
    report: Mutex<Report>,
}

/// What became of snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Written.
    pub(crate) saved: u64,
    /// Not written.
    pub(crate) failed: u64,
    /// Index entries that this process began with.
    pub(crate) restored_entries: u64,
    /// The last one that was written.
    pub(crate) last: Option<Saved>,
}

/// A snapshot that was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved {
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// How long batches waited for it.
    pub(crate) took: Duration,
    /// How long it took to bring it to the disk.
    pub(crate) wrote: Duration,
    /// When it was taken.
    pub(crate) at: Instant,
}

impl State {
    /// Takes the configured directory for this process.
    ///
    /// # Errors
    ///
    /// It cannot be used, another process uses it, or its key is not for its owner alone.
    pub(crate) fn open(config: &Config) -> Result<Option<State>, Error> {
        let Some(path) = &config.state.dir else { return Ok(None) };
        Ok(Some(State {
            directory: StateDirectory::open(Path::new(path))?,
            from: config.state.replicas().cloned().collect(),
            from_token_file: config.state.from_token_file.clone(),
            most_fetched: most_bytes(config),
            saving: Mutex::default(),
            report: Mutex::default(),
        }))
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &StateDirectory {
        &self.directory
    }

    /// The scout to begin with, and its workers: from the directory's snapshot, else from that of the first
    /// replica that gives one; `None` if there is none.
    ///
    /// # Errors
    ///
    /// A snapshot that is refused cannot be set aside, or there is no memory or randomness.
    pub(crate) fn begin(&self, options: &Options, key: &DigestKey) -> Result<Option<Begun>, Error> {
        if let Some(begun) = self.own(options, key)? {
            return Ok(Some(begun));
        }
        for from in &self.from {
            let fetched = self.fetch(from, key);
            match fetched
                .and_then(|snapshot| restore(options, snapshot).map_err(|error| error.to_string()))
            {
                Ok(begun) => return Ok(Some(begun)),
                Err(reason) => warn!(from, reason, "no snapshot from there"),
            }
        }
        Ok(None)
    }

    /// Notes what this process began with, wherever that was from.
    pub(crate) fn began_with(&self, begun: &Begun) {
        self.report.lock().restored_entries = begun.entries;
    }

    /// From the directory, unless there is nothing that can be used.
    fn own(&self, options: &Options, key: &DigestKey) -> Result<Option<Begun>, Error> {
        let refused = match self.directory.load(key).map_err(Error::from) {
            Ok(None) => return Ok(None),
            Ok(Some(snapshot)) => match restore(options, snapshot) {
                Ok(begun) => return Ok(Some(begun)),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let kept = self.directory.set_aside()?;
        warn!(reason = %refused, kept = %kept.display(), "the snapshot is refused and set aside");
        Ok(None)
    }

    /// Another replica's snapshot. No more is read than an index of our size can need.
    fn fetch(&self, from: &str, key: &DigestKey) -> Result<Snapshot, String> {
        let url = format!("{}/snapshot", from.trim_end_matches('/'));
        let token = self.from_token_file.as_deref().map(first_token).transpose()?;
        let client = Client::new(Bounds::of_snapshot(self.most_fetched));
        let mut answer = client.get(&url, token.as_deref()).map_err(|error| error.to_string())?;
        let status = answer.status();
        if !status.is_success() {
            let mut said = String::new();
            // The status says enough where nothing readable comes.
            let _ = answer.reader().take(ERROR_ANSWER).read_to_string(&mut said);
            let said: String = said.chars().filter(|c| !c.is_control()).collect();
            return Err(format!("{} {said}", client::unexpected(status)).trim_end().to_owned());
        }
        Snapshot::read(&mut answer.reader(), key).map_err(|refused| refused.to_string())
    }

    /// Takes a snapshot and writes it; what goes wrong is counted and logged.
    pub(crate) fn save(&self, take: impl FnOnce() -> Snapshot) {
        let _one_at_a_time = self.saving.lock();
        let at = Instant::now();
        let snapshot = take();
        let took = at.elapsed();
        let kept = self.directory.save(&snapshot);
        let mut report = self.report.lock();
        match kept {
            Ok(kept) => {
                report.saved += 1;
                report.last = Some(Saved { bytes: kept.bytes, took, wrote: kept.took, at });
            }
            Err(error) => {
                report.failed += 1;
                warn!(%error, "the snapshot could not be written; the last one is still there");
            }
        }
    }

    /// What became of snapshots so far.
    pub(crate) fn report(&self) -> Report {
        *self.report.lock()
    }
}

/// A scout that goes on where another one was.
#[derive(Debug)]
pub(crate) struct Begun {
    /// The scout.
    pub(crate) scout: Scout,
    /// Its workers, as they were.
    pub(crate) workers: Vec<WorkerState>,
    /// Index entries that it has.
    entries: u64,
}

/// A scout from a snapshot.
///
/// # Errors
///
/// The snapshot cannot be used.
pub(crate) fn restore(options: &Options, snapshot: Snapshot) -> Result<Begun, Error> {
    let start = Instant::now();
    let scout = Scout::restore(options.clone(), &snapshot)?;
    let Snapshot { version, created, registrations, .. } = snapshot;
    let entries = scout.stats().entries;
    let workers = registrations.workers.len();
    let age = now().saturating_sub(created) / 1000;
    info!(workers, entries, age_seconds = age, by = version, took = ?start.elapsed(), "restored");
    Ok(Begun { scout, workers: registrations.workers, entries })
}

/// More bytes than a snapshot for this process can have.
pub(crate) fn most_bytes(config: &Config) -> u64 {
    (config.memory.budget as u64).saturating_add(BESIDE_INDEX)
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
