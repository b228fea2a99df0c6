//! The daemon: it serves, keeps what has to be kept up meanwhile, and ends when it is told to.

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{info, warn};

use crate::admission::Admission;
use crate::auth::Access;
use crate::config::Config;
use crate::ending::{End, Ending, ending};
use crate::http::{App, router};
use crate::listen::{Listener, Protocol, Tls};
use crate::service::Service;
use crate::{discover, grpc, http, pulse, store};

/// How often sources that could not be added are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often names are looked up that stand for nobody who answers.
const FOLLOW: Duration = Duration::from_secs(5);

/// How often files with secrets are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or SIGINT, and leaves a snapshot if there is a place for one.
pub(super) async fn daemon(config: Config, service: Service, doors: Doors) -> io::Result<()> {
    let listeners = Listeners::open(&doors, &config).await?;
    // Before anybody is told that we are there.
    let signals = Signals::expect()?;
    listeners.announce()?;
    let service = Arc::new(service);
    let (end, ending) = ending();
    pulse::start(&service, &config)?;
    // Whichever way this function is left, they end with it.
    let mut tasks = JoinSet::new();
    tasks.spawn(signals.end(end));
    let (tried, sources_tried) = watch::channel(false);
    discover::start(&service, &config, &sources_tried, &mut tasks);
    tasks.spawn(keep(Arc::clone(&service), config.state.interval));
    tasks.spawn(follow_names(Arc::clone(&service)));
    tasks.spawn(look(doors.clone()));
    if let Some(instead) = service.instead() {
        tasks.spawn(Arc::clone(instead).keep());
    }
    let behind = store::start(&service, ending.clone());
    tasks.spawn(add_sources(Arc::clone(&service), config.clone(), tried));
    let servers = listeners.serve(&service, &doors, &config, ending.clone());
    until_ended(servers, config.limits.drain, ending).await?;
    tasks.shutdown().await;
    // Behind the one that may be under way.
    spawn_blocking(move || service.save()).await.map_err(io::Error::other)?;
    // It has noticed the end itself, and takes no longer than a lease.
    behind.await.map_err(io::Error::other)?;
    info!("ended");
    Ok(())
}

/// Who may come in, and how.
#[derive(Clone, Debug)]
pub(super) struct Doors {
    pub(super) access: Arc<Access>,
    pub(super) tls: Option<Arc<Tls>>,
}

impl Doors {
    async fn listen(
        &self,
        address: SocketAddr,
        protocol: Protocol,
        config: &Config,
    ) -> io::Result<Listener> {
        let (most, idle) = (config.limits.connections.get(), config.limits.idle);
        Listener::bind(address, protocol, self.tls.clone(), most, idle).await
    }
}

/// Where clients come in.
struct Listeners {
    http: Listener,
    grpc: Option<Listener>,
}

impl Listeners {
    async fn open(doors: &Doors, config: &Config) -> io::Result<Listeners> {
        let http = doors.listen(config.listen, Protocol::Http, config).await?;
        let grpc = match config.grpc.listen {
            Some(address) => Some(doors.listen(address, Protocol::Grpc, config).await?),
            None => None,
        };
        Ok(Listeners { http, grpc })
    }

    /// Says where they are, for whoever started us with port 0.
    fn announce(&self) -> io::Result<()> {
        let address = self.http.address()?;
        let mut lines = format!("listening on {}://{address}\n", self.http.scheme());
        info!(%address, "listening");
        if let Some(grpc) = &self.grpc {
            let address = grpc.address()?;
            lines += &format!("listening on {}://{address}\n", grpc.scheme());
            info!(%address, "listening for gRPC");
        }
        // Nobody needs to read it.
        let _ = io::stdout().write_all(lines.as_bytes());
        Ok(())
    }

    /// Serves whoever comes, until the end begins.
    async fn serve(
        self,
        service: &Arc<Service>,
        doors: &Doors,
        config: &Config,
        ending: Ending,
    ) -> io::Result<()> {
        let (service, access) = (Arc::clone(service), Arc::clone(&doors.access));
        let admission = Arc::new(Admission::new(&config.limits, service.waits()));
        let app =
            App::new(Arc::clone(&service), Arc::clone(&access), Arc::clone(&admission), config);
        let app = router(Arc::new(app));
        let http = http::serve(self.http, app, config.limits.idle, ending.clone());
        let calls = async {
            match self.grpc {
                Some(grpc) => grpc::serve(grpc, service, access, admission, config, ending).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(http, calls).map(|_| ())
    }
}

/// What tells a daemon to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on they do not kill the process.
    fn expect() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one, and says so.
    async fn end(mut self, end: End) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        info!("ending");
        end.begin();
    }
}

/// Waits until the servers have ended: when told to they let requests in flight end, for which they have `drain` at
/// most.
async fn until_ended(
    servers: impl Future<Output = io::Result<()>>,
    drain: Duration,
    ending: Ending,
) -> io::Result<()> {
    let deadline = async {
        ending.begins().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        ended = servers => ended,
        () = deadline => {
            warn!(?drain, "requests in flight were cut off");
            Ok(())
        }
    }
}

/// Writes a snapshot in every interval, if there is a place for them.
async fn keep(service: Arc<Service>, interval: Duration) {
    while service.keeps_snapshots() {
        tokio::time::sleep(interval).await;
        let service = Arc::clone(&service);
        // What went wrong with it is counted there.
        let _ = spawn_blocking(move || service.save()).await;
    }
}

/// Looks where the names of workers that requests registered lead now.
async fn follow_names(service: Arc<Service>) {
    loop {
        let named = Arc::clone(&service);
        let _ = spawn_blocking(move || named.follow_names()).await;
        tokio::time::sleep(FOLLOW).await;
    }
}

/// Reads files with secrets again when they change.
async fn look(doors: Doors) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Doors { access, tls } = doors.clone();
        // A file system may let one wait.
        let _ = spawn_blocking(move || {
            access.refresh();
            tls.iter().for_each(|tls| tls.refresh());
        })
        .await;
    }
}

/// Adds the configured sources, again and again until all are there.
async fn add_sources(service: Arc<Service>, config: Config, tried: watch::Sender<bool>) {
    let config = Arc::new(config);
    let mut told = Default::default();
    loop {
        let (worker, settings) = (Arc::clone(&service), Arc::clone(&config));
        let all = spawn_blocking(move || worker.add_configured(&settings)).await;
        tried.send_replace(true);
        if matches!(all, Ok(true)) {
            info!(sources = config.sources.len(), "ready");
            return;
        }
        let pending = service.pending();
        if pending != told {
            for (name, reason) in &pending {
                warn!(name, reason, "not added yet");
            }
            told = pending;
        }
        tokio::time::sleep(RETRY).await;
    }
}
