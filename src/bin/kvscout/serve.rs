//! `kvscout serve`: from the command line to a daemon that ends when it is told to.

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::auth::Access;
use crate::config::{Config, Flags};
use crate::http::{App, router};
use crate::listen::{Listener, Protocol, Tls};
use crate::service::Service;
use crate::{Failure, discover, grpc, http, logs, pulse, store};

/// How often sources that could not be added are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often names are looked up that stand for nobody who answers.
const FOLLOW: Duration = Duration::from_secs(5);

/// How often files with secrets are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Receives KV events from engines and answers which worker holds how much of a prompt
// In one paragraph, so that the help has a line for each option.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Flags win over the environment (KVSCOUT_LISTEN, ...), that over the file: docs/configuration.md.

Example:
  kvscout serve --model Qwen/Qwen3-8B --source pod-1=tcp://10.0.0.7:5557
  curl -s localhost:13333/v1/score -H 'content-type: application/json' \\
       -d '{\"model\": \"Qwen/Qwen3-8B\", \"token_ids\": [1, 2, 3]}'")]
pub(crate) struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the HTTP API; port 0 takes any [default: 127.0.0.1:13333]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address of the gRPC services; port 0 takes any [default: none]
    #[arg(long, value_name = "ADDRESS:PORT")]
    grpc: Option<String>,
    /// An engine to receive from: NAME=tcp://host:port[,replay=tcp://host:port][,ranks=N]
    #[arg(long = "source", value_name = "NAME=ENDPOINT")]
    sources: Vec<String>,
    /// A name behind whose addresses are engines: NAME=host:port[,replay=port][,ranks=N]
    #[arg(long, value_name = "NAME=HOST:PORT")]
    discover: Vec<String>,
    /// Model of the engines given by --source or --discover; without it they answer for any model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// A PYTHONHASHSEED to try, beside unset, 0 and 42
    #[arg(long = "seed", value_name = "TEXT")]
    seeds: Vec<String>,
    /// Tell pods apart by the topics they send to --topic-bind; any sender can speak for all
    #[arg(long)]
    trust_topics: bool,
    /// Where such pods connect to, such as tcp://*:5557
    #[arg(long, value_name = "ENDPOINT")]
    topic_bind: Option<String>,
    /// Directory for snapshots and the digest key: a restart goes on where the last run was
    #[arg(long, value_name = "DIR")]
    state: Option<String>,
    /// A Redis or Valkey server that is shared with other kvscouts, such as redis://host:6379
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// memory, with the store behind it, or redis: answers from the store, without sources [default: memory]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// off, error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Print the effective configuration as TOML and end
    #[arg(long)]
    print_config: bool,
}

impl Args {
    fn flags(&self) -> Flags {
        let mut flags = Flags {
            sources: self.sources.clone(),
            discover: self.discover.clone(),
            model: self.model.clone(),
            ..Flags::default()
        };
        let single = [
            ("listen", &self.listen),
            ("grpc.listen", &self.grpc),
            ("topic_bind", &self.topic_bind),
            ("state.dir", &self.state),
            ("store.address", &self.store),
            ("store.mode", &self.mode),
            ("log.format", &self.log_format),
            ("log.level", &self.log_level),
        ];
        for (key, value) in single {
            flags.keys.extend(value.iter().map(|value| (key, vec![value.clone()])));
        }
        if !self.seeds.is_empty() {
            flags.keys.push(("seeds", self.seeds.clone()));
        }
        if self.trust_topics {
            flags.keys.push(("trust_topics", vec!["true".to_owned()]));
        }
        flags
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), &args.flags())?;
    if args.print_config {
        return match io::stdout().write_all(config.to_toml().as_bytes()) {
            Ok(()) => Ok(()),
            Err(error) => Err(Failure::Failed(format!("the configuration: {error}"))),
        };
    }
    logs::start(config.log_format, config.log_level);
    warn_of(&config);
    let access = Access::new(&config).map_err(Failure::Usage)?;
    let tls = Tls::open(&config.tls).map_err(Failure::Usage)?;
    let doors = Doors { access: Arc::new(access), tls: tls.map(Arc::new) };
    let failed = |what: &str, error: io::Error| Failure::Failed(format!("{what}: {error}"));
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name("kvscout-http")
        .build()
        .map_err(|error| failed("the runtime", error))?;
    let service = {
        // Connections to a store live in it.
        let _entered = runtime.enter();
        Service::start(&config)?
    };
    let outcome = daemon(&runtime, config, service, doors);
    // A question on a blocking thread ends by itself within milliseconds; nothing waits for it.
    runtime.shutdown_background();
    outcome.map_err(|error| failed("serve", error))
}

/// Who may come in, and how.
#[derive(Clone, Debug)]
struct Doors {
    access: Arc<Access>,
    tls: Option<Arc<Tls>>,
}

impl Doors {
    async fn listen(
        &self,
        address: SocketAddr,
        protocol: Protocol,
        config: &Config,
    ) -> io::Result<Listener> {
        let most = config.limits.connections.get();
        Listener::bind(address, protocol, self.tls.clone(), most).await
    }
}

fn daemon(runtime: &Runtime, config: Config, service: Service, doors: Doors) -> io::Result<()> {
    runtime.block_on(async {
        let listener = doors.listen(config.listen, Protocol::Http, &config).await?;
        let address = listener.address()?;
        let grpc = match config.grpc.listen {
            Some(listen) => Some(doors.listen(listen, Protocol::Grpc, &config).await?),
            None => None,
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // For whoever started us with port 0; nobody needs to read it.
        let mut lines = format!("listening on {}://{address}\n", listener.scheme());
        info!(%address, "listening");
        if let Some(grpc) = &grpc {
            let address = grpc.address()?;
            lines += &format!("listening on {}://{address}\n", grpc.scheme());
            info!(%address, "listening for gRPC");
        }
        let _ = io::stdout().write_all(lines.as_bytes());
        let service = Arc::new(service);
        let admission = Arc::new(Admission::new(&config.limits));
        let app = Arc::new(App::new(
            Arc::clone(&service),
            Arc::clone(&doors.access),
            Arc::clone(&admission),
            &config,
        ));
        let drain = config.limits.drain;
        pulse::start(&service, &config)?;
        discover::start(&service, &config);
        let keeping = tokio::spawn(keep(Arc::clone(&service), config.state.interval));
        let following = tokio::spawn(follow_names(Arc::clone(&service)));
        let looking = tokio::spawn(look(doors.clone()));
        let (end, ending) = watch::channel(false);
        let behind = store::start(&service, ending.clone());
        if let Some(instead) = service.instead() {
            tokio::spawn(Arc::clone(instead).keep());
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("ending");
            // Fails when nobody serves any more.
            let _ = end.send(true);
        });
        let idle = config.limits.idle;
        let http = http::serve(listener, router(app), idle, ending.clone());
        let calls = {
            let (service, config, ending) = (Arc::clone(&service), config.clone(), ending.clone());
            async move {
                match grpc {
                    Some(listener) => {
                        grpc::serve(listener, service, doors.access, admission, &config, ending)
                            .await
                    }
                    None => Ok(()),
                }
            }
        };
        let adding = tokio::spawn(add_sources(Arc::clone(&service), config));
        let both = async { tokio::try_join!(http, calls).map(|_| ()) };
        serve(both, drain, ending).await?;
        adding.abort();
        keeping.abort();
        looking.abort();
        following.abort();
        // Behind the one that may be under way.
        let last = tokio::task::spawn_blocking(move || service.save());
        last.await.map_err(io::Error::other)?;
        // It has noticed the end itself, and takes no longer than a lease.
        behind.await.map_err(io::Error::other)?;
        info!("ended");
        Ok(())
    })
}

async fn ended(mut ending: watch::Receiver<bool>) {
    // Fails when whoever says so is gone, which is an end, too.
    let _ = ending.wait_for(|ends| *ends).await;
}

/// Waits until the servers have ended: when told to they let requests in flight end, for which they have `drain` at
/// most.
async fn serve(
    servers: impl Future<Output = io::Result<()>>,
    drain: Duration,
    ending: watch::Receiver<bool>,
) -> io::Result<()> {
    let deadline = async {
        ended(ending).await;
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
        let _ = tokio::task::spawn_blocking(move || service.save()).await;
    }
}

/// Looks where the names of workers that requests registered lead now.
async fn follow_names(service: Arc<Service>) {
    loop {
        let named = Arc::clone(&service);
        let _ = tokio::task::spawn_blocking(move || named.follow_names()).await;
        tokio::time::sleep(FOLLOW).await;
    }
}

/// Reads files with secrets again when they change.
async fn look(doors: Doors) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Doors { access, tls } = doors.clone();
        // A file system may let one wait.
        let _ = tokio::task::spawn_blocking(move || {
            access.refresh();
            tls.iter().for_each(|tls| tls.refresh());
        })
        .await;
    }
}

/// Adds the configured sources, again and again until all are there.
async fn add_sources(service: Arc<Service>, config: Config) {
    let config = Arc::new(config);
    let mut told = Default::default();
    loop {
        let (worker, settings) = (Arc::clone(&service), Arc::clone(&config));
        let all = tokio::task::spawn_blocking(move || worker.add_configured(&settings)).await;
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

/// What an operator should know before it matters.
fn warn_of(config: &Config) {
    let addresses = [Some(config.listen), config.grpc.listen];
    let closed = config.auth.token_file.is_some() || !config.callers.is_empty();
    for address in addresses.into_iter().flatten().filter(|at| !at.ip().is_loopback() && !closed) {
        warn!(%address, "everyone who reaches this address can ask, register and unregister");
    }
    if config.trust_topics {
        warn!("trust_topics: every sender on topic_bind can speak for every pod there");
    }
}
