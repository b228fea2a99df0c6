//! What tests of the index need of a server beside its process.

use std::future::Future;

use tokio::runtime::{EnterGuard, Runtime};

use super::server::Server;

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

impl Server {
    /// The address of the server's Unix socket.
    pub fn socket_address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The contract's checks wait without a runtime; what they wait for needs one.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.runtime().enter()
    }

    /// In a runtime that goes on between calls and ends with the server.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime().block_on(future)
    }

    /// A connection without the crate under test in between.
    pub fn raw(&self) -> redis::Connection {
        redis::Client::open(self.socket_address()).unwrap().get_connection().unwrap()
    }
}
