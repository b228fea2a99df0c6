//! A server of one test: on a socket of its own, keeps nothing, ends with the test.
#![allow(dead_code)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::{EnterGuard, Runtime};

pub(crate) struct Server {
    child: Child,
    folder: PathBuf,
    runtime: Runtime,
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Server {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("kvscout-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = std::env::var("KVSCOUT_TEST_REDIS_SERVER");
        let child = Command::new(program.as_deref().unwrap_or("redis-server"))
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(folder.join("socket"))
            .arg("--dir")
            .arg(&folder)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed, or KVSCOUT_TEST_REDIS_SERVER names another");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let server = Server { child, folder, runtime };
        let until = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(server.socket()).is_err() {
            assert!(Instant::now() < until, "the server did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The contract's checks wait without a runtime; what they wait for needs one.
    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A connection without the crate under test in between.
    pub(crate) fn raw(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
