//! Who connects and says nothing does not keep its place, and each listener has as many places as are configured.
#![cfg(feature = "daemon")]

mod daemon_support;
mod redis_support;
mod zmq_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use daemon_support::Daemon;
use redis_support::Certificates;
use zmq_support::{PATIENCE, eventually};

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The beginning of a client's first message, and of no more.
const HALF_A_HELLO: [u8; 6] = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01];

#[test]
fn whoever_does_not_shake_hands_is_cut_and_gives_its_place_back() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let directory = directory.join(format!("connections-{}", std::process::id()));
    let made = Certificates::make(&directory);
    let (certificate, key) = made.server();
    // Neither the time of a connection that rests, nor that of a body.
    let config = format!(
        "[log]\nlevel = \"debug\"\n[limits]\nconnections = 2\nidle = \"10m\"\nread_timeout = \"10m\"\n\
         [tls]\ncertificate = {certificate:?}\nkey = {key:?}\n"
    );
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &config, &[]);
    let places = [daemon.address(), daemon.grpc()];
    let silent = places.into_iter().flat_map(|at| [&[][..], &HALF_A_HELLO].map(|said| (at, said)));
    let held: Vec<TcpStream> = silent
        .map(|(at, said)| {
            let mut stream = connect(at);
            stream.write_all(said).unwrap();
            stream
        })
        .collect();
    let asks = || {
        let url = format!("https://{}/workers", daemon.address());
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(made.ca());
        String::from_utf8(curl.arg(url).output().unwrap().stdout).unwrap()
    };
    let cut = "a TLS handshake took too long";
    // On a machine that is slower than that they are cut before anybody else has asked.
    eventually("they have all places", || asks() == "503" || daemon.stderr().contains(cut));
    // All at a time: each is cut after ten seconds.
    thread::scope(|scope| {
        for mut stream in held {
            scope.spawn(move || {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).expect("it is hung up on");
                assert!(said.is_empty(), "{said:?}");
            });
        }
    });
    eventually("there is a place again", || asks() == "200");
    let log = daemon.terminate();
    assert_eq!(log.matches(cut).count(), 4, "{log}");
}

/// The preface of HTTP/2, and settings of which all are as usual.
const HELLO: [u8; 33] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Begins to speak HTTP/2: whether the other end does so, too.
fn speaks(stream: &mut TcpStream) -> bool {
    let mut frame = [0; 9];
    // Settings, too, come first.
    stream.write_all(&HELLO).is_ok() && stream.read_exact(&mut frame).is_ok() && frame[3] == 4
}

/// The answer to a ping, behind whatever else was said before.
fn pong(stream: &mut TcpStream) -> Vec<u8> {
    let asked = *b"are you?";
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0], &asked[..]].concat();
    stream.write_all(&ping).unwrap();
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(&asked) {
        stream.read_exact(&mut byte).expect("it is still served");
        heard.extend(byte);
    }
    heard.split_off(heard.len() - ping.len())
}

#[test]
fn whoever_does_not_begin_to_speak_grpc_is_cut_and_whoever_did_may_rest() {
    let config = "[limits]\nconnections = 3\nidle = \"3s\"\nread_timeout = \"10m\"\n";
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], config, &[]);
    let mut served = connect(daemon.grpc());
    assert!(speaks(&mut served));
    let silent = [&[][..], &HELLO[..23]].map(|said| {
        let mut stream = connect(daemon.grpc());
        stream.write_all(said).unwrap();
        stream
    });
    for mut stream in silent {
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("it is hung up on");
        // Settings, which both ends send unasked.
        assert_eq!(said.get(3), Some(&4), "{said:?}");
    }
    let mut next = [connect(daemon.grpc()), connect(daemon.grpc())];
    eventually("there are places again", || {
        next.iter_mut().all(|stream| {
            let is_served = speaks(stream);
            if !is_served {
                *stream = connect(daemon.grpc());
            }
            is_served
        })
    });
    // It came before those that were cut, and has said nothing since.
    assert_eq!(pong(&mut served), [&[0, 0, 8, 6, 1, 0, 0, 0, 0], &b"are you?"[..]].concat());
}

#[test]
fn whoever_shakes_hands_and_then_does_not_speak_grpc_is_cut() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let directory = directory.join(format!("connections-silent-{}", std::process::id()));
    let made = Certificates::make(&directory);
    let (certificate, key) = made.server();
    let config = format!(
        "[limits]\nconnections = 1\nidle = \"3s\"\nread_timeout = \"10m\"\n\
         [tls]\ncertificate = {certificate:?}\nkey = {key:?}\n"
    );
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &config, &[]);
    // Twice, with the one place that there is.
    for said in [&[][..], &HELLO[..23]] {
        let mut silent = Command::new("openssl");
        silent.args(["s_client", "-quiet", "-alpn", "h2", "-connect", daemon.grpc(), "-CAfile"]);
        silent.arg(made.ca()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut silent = silent.spawn().unwrap();
        // Held, so that it is not this end that goes away.
        let mut stdin = silent.stdin.take().unwrap();
        stdin.write_all(said).unwrap();
        stdin.flush().unwrap();
        eventually("it is hung up on", || silent.try_wait().unwrap().is_some());
        let mut heard = Vec::new();
        silent.stdout.take().unwrap().read_to_end(&mut heard).unwrap();
        // Settings, within TLS: it had been let in.
        assert_eq!(heard.get(3), Some(&4), "{heard:?}");
    }
}

#[test]
fn the_grpc_listener_has_as_many_places_as_are_configured_and_http_has_its_own() {
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], "[limits]\nconnections = 3\n", &[]);
    let mut held: Vec<TcpStream> = (0..3).map(|_| connect(daemon.grpc())).collect();
    for (n, stream) in held.iter_mut().enumerate() {
        assert!(speaks(stream), "connection {n}");
    }
    for _ in 0..3 {
        let mut beyond = connect(daemon.grpc());
        assert!(!speaks(&mut beyond));
        assert_eq!(daemon.get("/workers").status, 200);
    }
    held.pop();
    let mut next = connect(daemon.grpc());
    eventually("a place is free", || {
        let is_served = speaks(&mut next);
        if !is_served {
            next = connect(daemon.grpc());
        }
        is_served
    });
    assert!(!speaks(&mut connect(daemon.grpc())), "the fourth at a time");
}
