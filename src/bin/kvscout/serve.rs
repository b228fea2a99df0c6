//! `kvscout serve`: from the command line to a daemon.

mod daemon;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Builder;
use tracing::warn;

use self::daemon::{Doors, daemon};
use crate::auth::Access;
use crate::config::{Config, Flags};
use crate::listen::Tls;
use crate::service::Service;
use crate::{Failure, logs};

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
    let outcome = runtime.block_on(daemon(config, service, doors));
    // A question on a blocking thread ends by itself within milliseconds; nothing waits for it.
    runtime.shutdown_background();
    outcome.map_err(|error| failed("serve", error))
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
