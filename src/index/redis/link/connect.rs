//! One connection: how it is made, secured and tried before it is used.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo,
    RedisConnectionInfo, TlsCertificates, Value,
};

use super::address::{Endpoint, StoreAddress};
use super::fault::Fault;
use super::options::StoreOptions;
use super::secret::Secret;
use crate::error::Error;

/// How to connect to any server of a store.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) options: StoreOptions,
    tls: bool,
    user: Option<Box<str>>,
    password: Option<Secret>,
    database: u32,
}

impl Profile {
    /// From what was configured.
    ///
    /// # Errors
    ///
    /// A value is out of range, or a file or variable that is named is not there.
    pub(super) fn new(address: &StoreAddress, options: StoreOptions) -> Result<Profile, Error> {
        let options = options.checked()?;
        let password = address.password.clone().or_else(|| options.password.clone());
        if address.user.is_some() && password.is_none() {
            return Err(Error::missing("the store's address has a user, but there is no password"));
        }
        let profile = Profile {
            tls: address.tls,
            user: address.user.clone(),
            password,
            database: address.database,
            options,
        };
        // What is wrong already is said now; a server that is not there yet is not.
        for secret in profile.password.iter().chain(&profile.options.sentinel_password) {
            secret.read()?;
        }
        if profile.tls {
            install_provider();
            profile.certificates()?;
        }
        Ok(profile)
    }

    /// The same for asking sentinels, who have users and passwords of their own.
    pub(super) fn for_sentinels(&self) -> Profile {
        Profile {
            tls: self.tls,
            user: None,
            password: self.options.sentinel_password.clone(),
            database: 0,
            options: self.options.clone(),
        }
    }

    fn certificates(&self) -> Result<TlsCertificates, Error> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| {
                Error::missing(format!("the certificate file {path:?} cannot be read: {e}"))
            })
        };
        Ok(TlsCertificates {
            root_cert: self.options.tls_ca.as_deref().map(read).transpose()?,
            client_tls: match &self.options.tls_client {
                Some((certificate, key)) => Some(ClientTlsConfig {
                    client_cert: read(certificate)?,
                    client_key: read(key)?,
                }),
                None => None,
            },
        })
    }

    /// Connects, logs in and asks for a sign of life, within the connect deadline. Returns the
    /// connection and how long the sign of life took.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(MultiplexedConnection, Duration), Fault> {
        let deadline = self.options.connect_deadline;
        let label = endpoint.to_string();
        match tokio::time::timeout(deadline, self.attempt(endpoint, &label)).await {
            Ok(result) => result,
            Err(_) => Err(Fault::Down(
                format!("no connection to {label}: nothing happened within {deadline:?}").into(),
            )),
        }
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        label: &str,
    ) -> Result<(MultiplexedConnection, Duration), Fault> {
        let client = self.client(endpoint)?;
        // Deadlines are kept by the callers, who know how long each call may take.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|e| Fault::connecting(label, &e))?;
        let start = Instant::now();
        ask(&mut connection, label, &redis::cmd("PING")).await?;
        Ok((connection, start.elapsed()))
    }

    fn client(&self, endpoint: &Endpoint) -> Result<Client, Fault> {
        let address = match endpoint {
            Endpoint::Unix(path) => ConnectionAddr::Unix(path.clone()),
            Endpoint::Tcp(host, port) if self.tls => ConnectionAddr::TcpTls {
                host: host.to_string(),
                port: *port,
                insecure: false,
                tls_params: None,
            },
            Endpoint::Tcp(host, port) => ConnectionAddr::Tcp(host.to_string(), *port),
        };
        // Not RESP3: its pushes are of no use here, and servers before 6 do not know it.
        let mut login = RedisConnectionInfo::default()
            .set_db(self.database.into())
            .set_lib_name("kvscout", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            let password = password.read().map_err(|e| Fault::Denied(e.to_string().into()))?;
            login = login.set_password(&*password);
        }
        let label = endpoint.to_string();
        let wrong = |e: redis::RedisError| Fault::connecting(&label, &e);
        let info = address
            .into_connection_info()
            .map_err(wrong)?
            // Off by default: a short pipeline would wait for the acknowledgement of the one before.
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(login);
        if self.tls {
            let files = self.certificates().map_err(|e| Fault::Down(e.to_string().into()))?;
            Client::build_with_tls(info, files).map_err(wrong)
        } else {
            Client::open(info).map_err(wrong)
        }
    }
}

/// Without a provider, the first TLS connection panics. A program that chose one keeps it.
fn install_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Lost only to a provider that somebody installed since, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// One command on a connection that nobody else uses yet.
pub(super) async fn ask(
    connection: &mut MultiplexedConnection,
    label: &str,
    cmd: &Cmd,
) -> Result<Value, Fault> {
    match connection.send_packed_command(cmd).await {
        Ok(Value::ServerError(error)) => Err(Fault::answered(label, &error)),
        Ok(value) => Ok(value),
        Err(error) => Err(Fault::connecting(label, &error)),
    }
}

/// Which server a node is.
#[derive(Debug)]
pub(super) enum Target {
    Fixed(Endpoint),
    /// Whoever the sentinels say is the master.
    Master {
        sentinels: Vec<Endpoint>,
        master: Box<str>,
        profile: Arc<Profile>,
    },
}

impl Target {
    /// Where the server is now. `turn` chooses which sentinel is asked first.
    pub(super) async fn find(&self, turn: usize) -> Result<Endpoint, Fault> {
        let (sentinels, master, profile) = match self {
            Target::Fixed(endpoint) => return Ok(endpoint.clone()),
            Target::Master { sentinels, master, profile } => (sentinels, master, profile),
        };
        let mut fault = Fault::Down("no sentinel is known".into());
        for i in 0..sentinels.len() {
            let sentinel = &sentinels[(turn + i) % sentinels.len()];
            match ask_sentinel(profile, sentinel, master).await {
                Ok(endpoint) => return Ok(endpoint),
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    /// Whether the server at the other end is the one that is meant.
    pub(super) async fn confirm(
        &self,
        connection: &mut MultiplexedConnection,
        label: &str,
    ) -> Result<(), Fault> {
        if let Target::Fixed(_) = self {
            return Ok(());
        }
        // A sentinel may be behind, and a former master does not know yet that it is one.
        match ask(connection, label, &redis::cmd("ROLE")).await? {
            Value::Array(parts) if parts.first().and_then(text) == Some("master") => Ok(()),
            _ => Err(Fault::Down(
                format!("{label} is not the master that the sentinels say it is: not yet").into(),
            )),
        }
    }
}

async fn ask_sentinel(
    profile: &Profile,
    sentinel: &Endpoint,
    master: &str,
) -> Result<Endpoint, Fault> {
    let label = sentinel.to_string();
    let (mut connection, _) = profile.connect(sentinel).await?;
    let mut cmd = redis::cmd("SENTINEL");
    cmd.arg("get-master-addr-by-name").arg(master);
    let answer = ask(&mut connection, &label, &cmd);
    let deadline = profile.options.connect_deadline;
    let answer = tokio::time::timeout(deadline, answer).await.map_err(|_| {
        Fault::Down(format!("no answer from the sentinel {label} within {deadline:?}").into())
    })??;
    match answer {
        Value::Array(parts) => {
            let host = parts.first().and_then(text);
            let port = parts.get(1).and_then(text).and_then(|port| port.parse().ok());
            match (host, port) {
                (Some(host), Some(port)) => Ok(Endpoint::Tcp(host.into(), port)),
                _ => Err(Fault::Down(
                    format!("the sentinel {label} answered no address for {master:?}").into(),
                )),
            }
        }
        _ => Err(Fault::Down(
            format!("the sentinel {label} watches no master named {master:?}").into(),
        )),
    }
}

/// A text that a server answered.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}
