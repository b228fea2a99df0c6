//! Limits of the daemon itself.

use std::num::NonZeroUsize;
use std::time::Duration;

/// What requests, connections and topics may cost.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Bytes of a request's body.
    pub(crate) max_body: NonZeroUsize,
    /// How long a body may take to arrive.
    pub(crate) read_timeout: Duration,
    /// Questions that are computed at a time.
    pub(crate) concurrency: Option<NonZeroUsize>,
    /// Questions that may wait for that.
    pub(crate) queue: usize,
    /// Bytes of all bodies at a time.
    pub(crate) body_memory: usize,
    /// Connections to each listener.
    pub(crate) connections: NonZeroUsize,
    /// How long one may rest.
    pub(crate) idle: Duration,
    /// How long requests in flight may go on after the signal to stop.
    pub(crate) drain: Duration,
    /// Workers that topics may register.
    pub(crate) topic_workers: usize,
    /// Workers that requests may register.
    pub(crate) registered_workers: usize,
    /// Adapters that they may.
    pub(crate) adapters: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // A million tokens of seven digits and a comma; Dynamo's limit, too. A zero would not
            // compile.
            max_body: const { NonZeroUsize::new(8 << 20).unwrap() },
            read_timeout: Duration::from_secs(10),
            concurrency: None,
            queue: 256,
            body_memory: 256 << 20,
            // A zero would not compile.
            connections: const { NonZeroUsize::new(1024).unwrap() },
            // Longer than routers' own pools keep a connection.
            idle: Duration::from_secs(120),
            drain: Duration::from_secs(10),
            topic_workers: 4096,
            registered_workers: 4096,
            adapters: 4096,
        }
    }
}
