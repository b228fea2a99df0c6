//! A store in the place of memory: this daemon follows no engine, and answers from what others keep there.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kvscout::Error;
use kvscout::index::redis::RedisIndex;
use kvscout::scout::shared::{Reader, ReaderOptions};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tracing::{error, info, warn};

use super::Told;
use crate::Failure;
use crate::config::Config;
use crate::config::adapter::AdapterEntry;

/// How many times the usual pause what is known of workers may grow old before answers say so.
const STALE: u32 = 20;

/// A store that answers.
#[derive(Debug)]
pub(crate) struct Instead {
    index: Arc<RedisIndex>,
    options: ReaderOptions,
    every: Duration,
    adapters: Vec<AdapterEntry>,
    handle: Handle,
    /// Once the store was there.
    reader: RwLock<Option<Arc<Reader>>>,
}

impl Instead {
    /// The configured store, if there is one. Inside a runtime's context.
    ///
    /// # Errors
    ///
    /// An option or a file is wrong.
    pub(crate) fn open(config: &Config) -> Result<Option<Instead>, Failure> {
        let opened = super::open(config, |options| options.only_reads = true)?;
        let Some(index) = opened else { return Ok(None) };
        let options = ReaderOptions {
            weights: config.weights,
            deadline: config.store.answer_deadline,
            stale_after: (config.store.refresh * STALE).max(Duration::from_secs(5)),
            chain_memory: config.chain_memory,
        };
        Ok(Some(Instead {
            index: Arc::new(index),
            options,
            every: config.store.refresh,
            adapters: config.adapters.clone(),
            handle: Handle::current(),
            reader: RwLock::default(),
        }))
    }

    pub(crate) fn index(&self) -> &RedisIndex {
        &self.index
    }

    /// How long ago workers were read.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.reader.read().as_ref()?.age()
    }

    /// Who answers.
    ///
    /// # Errors
    ///
    /// The store was never there.
    pub(crate) fn reader(&self) -> Result<Arc<Reader>, Error> {
        self.reader.read().clone().ok_or_else(|| {
            Error::unavailable(
                "the store was not reached yet, so nobody knows which workers there are",
            )
        })
    }

    /// Waits for something of the store. On a blocking thread.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle.block_on(future)
    }

    /// Why answers rest on nothing, or on what is old.
    ///
    /// # Errors
    ///
    /// That.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        let age = self.reader().map_err(|error| error.to_string())?.age();
        match age {
            None => Err("the store was not read yet".to_owned()),
            Some(age) if age > self.options.stale_after => {
                Err(format!("the store was read {} s ago", age.as_secs()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Reads again and again which workers there are.
    pub(crate) async fn keep(self: Arc<Self>) {
        let (mut told, mut checked) = (Told::default(), false);
        loop {
            let read = self.read().await;
            match &read {
                Err(wrong) if told.is_new(&wrong.to_string()) => {
                    warn!(%wrong, "the store is not read");
                }
                Ok(()) if told.is_over() => info!("the store is read again"),
                _ => {}
            }
            if read.is_ok() && !checked {
                super::warn_of(&self.index, true).await;
                checked = true;
            }
            tokio::time::sleep(self.every).await;
        }
    }

    async fn read(&self) -> Result<(), Error> {
        let known = self.reader.read().clone();
        let reader = match known {
            Some(reader) => reader,
            None => {
                let reader = Reader::open(Arc::clone(&self.index), self.options.clone()).await;
                let reader = Arc::new(reader.inspect_err(|wrong| {
                    if wrong.kind() == kvscout::ErrorKind::InvalidInput {
                        error!(%wrong, "the store cannot be read");
                    }
                })?);
                for entry in &self.adapters {
                    reader.register_adapter(&entry.tenant, &entry.name, entry.adapter());
                }
                *self.reader.write() = Some(Arc::clone(&reader));
                reader
            }
        };
        reader.refresh().await
    }
}
