//! A TCP proxy that can swallow everything without closing anything.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Passes bytes to a port of this machine, until it is told not to.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    swallows: AtomicBool,
    ended: AtomicBool,
    accepted: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy { port: listener.local_addr().unwrap().port(), shared: Arc::default() };
        let shared = Arc::clone(&proxy.shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(near) = stream else { continue };
                if shared.ended.load(SeqCst) {
                    return;
                }
                shared.accepted.fetch_add(1, SeqCst);
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || pass(from, to, &shared));
                }
                shared.streams.lock().unwrap().extend([near, far]);
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// From now on connections are accepted and kept, and no byte passes either way.
    pub fn swallow(&self) {
        self.shared.swallows.store(true, SeqCst);
    }

    /// Bytes pass again; what was swallowed stays so.
    pub fn recover(&self) {
        self.shared.swallows.store(false, SeqCst);
    }

    /// How many connections were made so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(n) if n > 0 => {
                if shared.swallows.load(SeqCst) {
                    // A connection that lost bytes stays silent for ever, as behind a firewall that
                    // forgot it.
                    while !shared.ended.load(SeqCst)
                        && matches!(from.read(&mut buffer), Ok(n) if n > 0)
                    {
                        thread::sleep(Duration::from_millis(1));
                    }
                    break;
                }
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            _ => break,
        }
    }
    // A close is a packet too.
    if !shared.swallows.load(SeqCst) {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
