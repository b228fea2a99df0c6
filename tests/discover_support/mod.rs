//! A name server (knot) with one zone, `test.`, whose records the tests change.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::zmq_support::eventually;

/// A running name server on a port or an address of its own, ended when dropped.
pub(crate) struct NameServer {
    child: Option<Child>,
    at: SocketAddrV4,
    directory: PathBuf,
    serial: u32,
}

impl NameServer {
    /// One that answers with these records, such as `engines 0 A 127.0.0.2`.
    pub(crate) fn start(records: &[&str]) -> NameServer {
        NameServer::start_at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port()), records)
    }

    /// The same on the port where systems ask, which only root may listen on.
    pub(crate) fn of_systems(records: &[&str]) -> NameServer {
        let [.., high, low] = std::process::id().to_be_bytes();
        NameServer::start_at(SocketAddrV4::new(Ipv4Addr::new(127, 83, high, low), 53), records)
    }

    fn start_at(at: SocketAddrV4, records: &[&str]) -> NameServer {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kvscout-names-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let mut server = NameServer { child: None, at, directory, serial: 0 };
        server.write(records);
        server.run();
        server
    }

    /// Its address, as `nameserver` takes it.
    pub(crate) fn address(&self) -> String {
        self.at.to_string()
    }

    /// A program as it runs on a machine that asks this name server and no other.
    pub(crate) fn for_the_system_of(&self, program: &Command) -> Command {
        let [resolver, sources] = ["resolv.conf", "nsswitch.conf"].map(|n| self.directory.join(n));
        fs::write(&resolver, format!("nameserver {}\n", self.at.ip())).unwrap();
        fs::write(&sources, "hosts: dns\n").unwrap();
        let script = "mount --bind \"$1\" /etc/resolv.conf && mount --bind \"$2\" /etc/nsswitch.conf\n\
                      shift 2 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", script, "sh"]).args([resolver, sources]);
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Answers with these records from now on.
    pub(crate) fn change(&mut self, records: &[&str]) {
        self.write(records);
        let id = self.child.as_ref().unwrap().id();
        let reload = format!("kill -HUP {id}");
        assert!(Command::new("sh").args(["-c", &reload]).status().unwrap().success());
    }

    /// Nobody answers any more.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Answers again, with these records.
    pub(crate) fn restart(&mut self, records: &[&str]) {
        self.stop();
        self.write(records);
        self.run();
    }

    /// Answers SERVFAIL from now on: the zone is configured and cannot be read.
    pub(crate) fn fail(&mut self) {
        self.stop();
        fs::remove_file(self.directory.join("test.zone")).unwrap();
        self.run();
    }

    fn write(&mut self, records: &[&str]) {
        self.serial += 1;
        let mut zone = format!(
            "$ORIGIN test.\n@ 0 SOA ns admin {} 3600 600 86400 0\n@ 0 NS ns\nns 0 A 127.0.0.1\n",
            self.serial
        );
        records.iter().for_each(|record| writeln!(zone, "{record}").unwrap());
        let written = self.directory.join("test.zone.new");
        fs::write(&written, zone).unwrap();
        fs::rename(written, self.directory.join("test.zone")).unwrap();
    }

    fn run(&mut self) {
        let at = self.directory.display();
        let configuration = format!(
            "server:\n  listen: {}@{}\n  rundir: {at}\n\
             database:\n  storage: {at}\n\
             log:\n- target: stderr\n  any: warning\n\
             zone:\n- domain: test\n  file: {at}/test.zone\n  zonefile-sync: -1\n  journal-content: none\n  \
             zonefile-load: whole\n",
            self.at.ip(),
            self.at.port()
        );
        let file = self.directory.join("knot.conf");
        fs::write(&file, configuration).unwrap();
        // Debian has it where only root looks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap());
        let mut command = Command::new("knotd");
        command.env("PATH", path).arg("-c").arg(file).stdout(Stdio::null());
        let log = fs::File::create(self.directory.join("log")).unwrap();
        let child = command.stderr(log).spawn();
        self.child = Some(child.expect("knotd is there; scripts/test installs it (package knot)"));
        eventually("the name server listens", || TcpStream::connect(self.at).is_ok());
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Whether a program may have files of `/etc` of its own and listen on any port, as root may, and as it has to be able to
/// where clients are required.
pub(crate) fn is_root() -> bool {
    let mounts = Command::new("unshare").args(["--mount", "true"]).output();
    let listens = UdpSocket::bind((Ipv4Addr::new(127, 83, 0, 0), 53));
    let is_root = mounts.is_ok_and(|done| done.status.success()) && listens.is_ok();
    assert!(is_root || std::env::var_os("KVSCOUT_TEST_CLIENTS").is_none(), "this wants root");
    if !is_root {
        eprintln!("skipped: this wants root");
    }
    is_root
}

/// A port that nothing listens on, below those that systems give to outgoing connections.
fn free_port() -> u16 {
    // Other processes' tests begin elsewhere.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (22_500 + (std::process::id().wrapping_mul(89) + step) % 2_400) as u16;
        let at = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return port;
        }
    }
}
