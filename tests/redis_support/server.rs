//! One server process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::hosted;

/// A server on a port of its own, with a directory that is removed with it.
pub struct Server {
    child: Option<Child>,
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
    /// Words of `AUTH` for [`Server::ask`].
    login: Option<Vec<String>>,
    runtime: OnceLock<Runtime>,
}

/// A port that nothing listens on, whose bus port (10,000 above) is free too. Both lie below the ports
/// that systems give to outgoing connections: who tries to connect to one of those before its server
/// listens may be connected to itself.
pub fn free_port() -> u16 {
    // Other processes' tests begin elsewhere.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 15_000 + (std::process::id().wrapping_mul(97) + step) % 7_000;
        let port = port as u16;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

impl Server {
    /// A server without persistence.
    pub fn start() -> Server {
        Server::with(&[])
    }

    /// The same with more arguments, as `["--maxmemory", "1mb"]`.
    pub fn with(arguments: &[&str]) -> Server {
        let mut server = Server::prepare(arguments);
        server.restart();
        server
    }

    /// A server that is not started yet: its port refuses connections.
    pub fn prepare(arguments: &[&str]) -> Server {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("kvs-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        let (port, runtime) = (free_port(), OnceLock::new());
        Server { child: None, port, directory, arguments, login: None, runtime }
    }

    /// What [`Server::ask`] logs in with: a password, or a user and a password.
    pub fn login(mut self, words: &[&str]) -> Server {
        self.login = Some(words.iter().map(|&word| word.to_owned()).collect());
        self
    }

    pub(super) fn runtime(&self) -> &Runtime {
        self.runtime.get_or_init(hosted::runtime)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    /// Starts the server, again after [`Server::kill`], on the same port with the same data.
    pub fn restart(&mut self) {
        let program = std::env::var("KVSCOUT_REDIS_SERVER").unwrap_or("redis-server".to_owned());
        let log = std::fs::File::create(self.directory.join("log")).unwrap();
        let sentinel = self.arguments.first().is_some_and(|word| word.ends_with(".conf"));
        let mut command = Command::new(&program);
        if sentinel {
            command.args(&self.arguments).args(["--port", &self.port.to_string()]);
        } else {
            command
                .args(["--port", &self.port.to_string(), "--save", "", "--appendonly", "no"])
                .args(["--bind", "127.0.0.1", "--unixsocket"])
                .arg(self.socket())
                .args(["--repl-diskless-sync-delay", "0", "--dir"])
                .arg(&self.directory)
                .args(&self.arguments);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| {
                panic!("{program} cannot be started (set KVSCOUT_REDIS_SERVER): {e}")
            });
        self.child = Some(child);
        let start = Instant::now();
        // It listens on its port first.
        let (port, socket) = (self.port, self.socket());
        let listens = || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && (sentinel || UnixStream::connect(&socket).is_ok())
        };
        while !listens() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < Duration::from_secs(20),
                "{program} does not listen ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it with other arguments.
    pub fn run_as(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        self.restart();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends the process a signal, as `STOP`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Sends one command over a connection of its own and returns the reply as text: bulk strings as
    /// they are, elements of arrays joined by spaces, errors with their `-`.
    pub fn ask(&self, words: &[&str]) -> String {
        self.try_ask(words).unwrap_or_else(|e| panic!("{words:?}: {e}; {}", self.log()))
    }

    /// The same for a server that may be down.
    pub fn try_ask(&self, words: &[&str]) -> std::io::Result<String> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut reader = BufReader::new(stream);
        if let Some(login) = &self.login {
            let mut auth = vec!["AUTH"];
            auth.extend(login.iter().map(String::as_str));
            exchange(&mut reader, &auth)?;
        }
        exchange(&mut reader, words)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn exchange(reader: &mut BufReader<TcpStream>, words: &[&str]) -> std::io::Result<String> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    reader.get_mut().write_all(request.as_bytes())?;
    reply(reader)
}

fn reply(reader: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    let count = || line[1..].parse::<i64>().unwrap();
    match line.as_bytes()[0] {
        b'$' if count() >= 0 => {
            let mut bytes = vec![0; count() as usize + 2];
            reader.read_exact(&mut bytes)?;
            bytes.truncate(bytes.len() - 2);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        b'$' => Ok(String::new()),
        b'*' => {
            let parts: Result<Vec<_>, _> = (0..count()).map(|_| reply(reader)).collect();
            Ok(parts?.join(" "))
        }
        b'-' => Ok(line.to_owned()),
        _ => Ok(line[1..].to_owned()),
    }
}
