//! A store behind memory: what is applied here is kept there, and a start without a snapshot of its own begins with one
//! from there.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvscout::Error;
use kvscout::hash::content::DigestKey;
use kvscout::index::redis::RedisIndex;
use kvscout::ingest::snapshot::{Snapshot, StateDirectory};
use kvscout::scout::Mirror;
use kvscout::scout::shared::{Labelling, Outbox, Writer, WriterOptions, WriterReport, WriterWatch};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::Told;
use crate::Failure;
use crate::config::Config;
use crate::ending::Ending;
use crate::service::Service;

/// How often a store that is not there, or whose secret is another one, is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// How often what is wrong is said again.
const COMPLAINT: Duration = Duration::from_secs(60);

/// How long a snapshot in the store may take to be read.
const FETCH: Duration = Duration::from_secs(120);

/// A store that keeps what memory holds.
pub(crate) struct Behind {
    index: Arc<RedisIndex>,
    outbox: Arc<Outbox>,
    /// What digests here are made under.
    secret: [u8; 32],
    handle: Handle,
    options: WriterOptions,
    watch: OnceLock<WriterWatch>,
    kept: Mutex<Stowing>,
}

/// Leaves the secret out.
impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behind").field("index", &self.index).finish_non_exhaustive()
    }
}

/// What became of snapshots in the store.
#[derive(Clone, Copy, Debug, Default)]
struct Stowing {
    saved: u64,
    failed: u64,
    last: Option<Instant>,
    /// The store has another secret than this process began with.
    is_foreign: bool,
}

/// What there is to count.
#[derive(Clone, Debug)]
pub(crate) struct BehindReport {
    /// What the writer did; nothing before the store was there.
    pub(crate) writer: WriterReport,
    /// Steps and bytes that wait.
    pub(crate) queue: (usize, usize),
    /// Steps that were dropped because too much waited.
    pub(crate) dropped: u64,
    /// Snapshots that were left in the store, and that could not be.
    pub(crate) snapshots: (u64, u64),
    /// How old the last one is.
    pub(crate) snapshot_age: Option<Duration>,
    /// Whether nothing is kept there, because its secret is another one.
    pub(crate) is_foreign: bool,
}

/// A name that no other process has.
fn owner() -> Result<String, Error> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || ".-_".contains(*c);
    let host: String = host.trim().chars().filter(fits).take(64).collect();
    let id = RedisIndex::random_secret()?;
    let id: String = id[..6].iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{host}-{id}"))
}

impl Behind {
    /// The configured store, if there is one, with what digests are made under: the secret of the file, else the
    /// store's, which is waited for, else the one that the state directory knows, else a new one, which the store gets if it
    /// has none. Inside a runtime's context, outside of its tasks.
    ///
    /// # Errors
    ///
    /// An option or a file is wrong.
    pub(crate) fn open(
        config: &Config,
        state: Option<&StateDirectory>,
    ) -> Result<Option<Behind>, Failure> {
        let known = state.map(StateDirectory::secret).transpose()?.flatten();
        let mut offer = match known {
            Some(known) => known,
            None => RedisIndex::random_secret()?,
        };
        let owner = owner()?;
        let name = owner.clone();
        let opened = super::open(config, |options| {
            options.owner = Some(name);
            match options.secret {
                Some(secret) => offer = secret,
                None => options.offer = Some(offer),
            }
        });
        let Some(index) = opened? else { return Ok(None) };
        let handle = Handle::current();
        let mut secret = offer;
        if config.store.secret_file.is_none() {
            let theirs = handle
                .block_on(async { tokio::time::timeout(config.store.wait, asked(&index)).await });
            match theirs {
                Ok(theirs) => secret = theirs,
                Err(_) if known.is_some() => {
                    warn!("the store is not there: going on with the secret that it had last");
                }
                Err(_) => warn!(
                    "the store is not there: it gets a secret from here if it has none by then; with several kvscouts, \
                     set store.secret_file"
                ),
            }
            if let Some(state) = state.filter(|_| known != Some(secret)) {
                state.keep_secret(&secret)?;
            }
        }
        info!(owner, "keeping a store behind memory");
        Ok(Some(Behind {
            index: Arc::new(index),
            outbox: Arc::new(Outbox::new(config.store.max_queue)),
            secret,
            handle,
            options: WriterOptions {
                refresh: config.store.ttl / 4,
                lease: config.store.lease,
                ..WriterOptions::default()
            },
            watch: OnceLock::new(),
            kept: Mutex::default(),
        }))
    }

    /// What digests are made under.
    pub(crate) fn digest_key(&self) -> DigestKey {
        RedisIndex::digest_key_of(&self.secret)
    }

    /// Who is told of every batch.
    pub(crate) fn mirror(&self) -> Arc<dyn Mirror> {
        Arc::clone(&self.outbox) as Arc<dyn Mirror>
    }

    pub(crate) fn index(&self) -> &RedisIndex {
        &self.index
    }

    /// Hands the snapshots in the store to `begin`, the newest first, until it takes one.
    pub(crate) fn snapshots<T>(
        &self,
        most: u64,
        mut begin: impl FnMut(Snapshot) -> Result<T, Error>,
    ) -> Option<T> {
        let found = match self.handle.block_on(self.index.stowed()) {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "no snapshot from the store");
                return None;
            }
        };
        for stowed in found {
            if stowed.bytes > most {
                warn!(
                    owner = stowed.owner,
                    bytes = stowed.bytes,
                    "a snapshot in the store is too large for memory.budget"
                );
                continue;
            }
            let fetched = self
                .handle
                .block_on(async { tokio::time::timeout(FETCH, self.index.fetch(&stowed)).await });
            let begun = fetched
                .map_err(|_| Error::unavailable("it took too long"))
                .and_then(|bytes| bytes)
                .and_then(|bytes| Ok(Snapshot::read(&mut &bytes[..], &self.digest_key())?))
                .and_then(&mut begin);
            match begun {
                Ok(begun) => {
                    info!(owner = stowed.owner, "beginning with a snapshot from the store");
                    return Some(begun);
                }
                Err(error) => {
                    warn!(owner = stowed.owner, %error, "a snapshot in the store cannot be used");
                }
            }
        }
        None
    }

    /// Leaves a snapshot in the store. On a blocking thread.
    pub(crate) fn stow(&self, snapshot: Snapshot) {
        if self.watch.get().is_none() {
            // The store was not there yet, or is not ours to write to.
            return;
        }
        let created = snapshot.created;
        let bytes = snapshot.into_bytes();
        let done = self.handle.block_on(self.index.stow(&bytes, created));
        let mut kept = self.kept.lock();
        match done {
            Ok(()) => {
                kept.saved += 1;
                kept.last = Some(Instant::now());
            }
            Err(error) => {
                kept.failed += 1;
                warn!(%error, "the snapshot could not be left in the store; the last one is still there");
            }
        }
    }

    /// What there is to count.
    pub(crate) fn report(&self) -> BehindReport {
        let kept = *self.kept.lock();
        BehindReport {
            writer: self.watch.get().map(WriterWatch::report).unwrap_or_default(),
            queue: (self.outbox.len(), self.outbox.bytes()),
            dropped: self.outbox.dropped(),
            snapshots: (kept.saved, kept.failed),
            snapshot_age: kept.last.map(|last| last.elapsed()),
            is_foreign: kept.is_foreign,
        }
    }

    /// Waits until the store is there and has this process's secret.
    async fn joined(&self) {
        let (mut complained, mut told) = (None::<Instant>, Told::default());
        loop {
            let theirs = self.index.shared_secret().await;
            let wrong = match &theirs {
                Ok(secret) if *secret == self.secret => return,
                Ok(_) => Some(
                    "it has another secret than the one that this process began with".to_owned(),
                ),
                Err(error) if error.kind() == kvscout::ErrorKind::InvalidInput => {
                    Some(error.to_string())
                }
                Err(wrong) => {
                    if told.is_new(&wrong.to_string()) {
                        warn!(%wrong, "the store is not there");
                    }
                    None
                }
            };
            self.kept.lock().is_foreign = wrong.is_some();
            let is_time = complained.is_none_or(|at| at.elapsed() >= COMPLAINT);
            if let Some(wrong) = wrong.filter(|_| is_time) {
                error!(wrong, "nothing is kept in the store: start this kvscout again");
                complained = Some(Instant::now());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// The store's secret, once it is there.
async fn asked(index: &RedisIndex) -> [u8; 32] {
    loop {
        if let Ok(secret) = index.shared_secret().await {
            return secret;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Keeps the store up until the daemon ends, and a little longer.
pub(crate) fn start(service: &Arc<Service>, ending: Ending) -> JoinHandle<()> {
    let service = Arc::clone(service);
    tokio::spawn(async move {
        let Some(behind) = service.behind() else { return };
        tokio::select! {
            () = ending.begins() => return,
            () = behind.joined() => {}
        }
        info!("the store is there");
        super::warn_of(&behind.index, false).await;
        let labels = {
            let service = Arc::downgrade(&service);
            Labelling::new(move |worker| {
                service.upgrade().map(|service| service.labels_of(worker)).unwrap_or_default()
            })
        };
        let (scout, index) = (Arc::clone(service.scout()), Arc::clone(&behind.index));
        let writer = Writer::new(scout, index, Arc::clone(&behind.outbox), labels, behind.options);
        let watch = writer.watch();
        // It is set here only.
        let _ = behind.watch.set(watch.clone());
        let running = writer.run(ending.begins());
        tokio::select! {
            () = running => {}
            () = tell(watch) => {}
        }
    })
}

/// Logs when something begins to go wrong, and when it is well again.
async fn tell(watch: WriterWatch) {
    let mut told = Told::default();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let WriterReport { error, .. } = watch.report();
        match &error {
            Some(wrong) if told.is_new(wrong) => warn!(wrong, "the store is not kept up"),
            None if told.is_over() => info!("the store is kept up again"),
            _ => {}
        }
    }
}
