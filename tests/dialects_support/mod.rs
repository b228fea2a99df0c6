//! A daemon that is asked in every form, and engines that it follows.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::daemon_support::{Batch, Daemon};
use crate::failures_support::batch;
use crate::zmq_support::{bound_publisher, eventually};

pub(crate) const MSGPACK: &str = "application/msgpack";

/// Two blocks and one token more.
pub(crate) const TOKENS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

/// A daemon with these lines in its configuration, and pods that dial nobody else.
pub(crate) struct Site {
    pub(crate) daemon: Daemon,
    pub(crate) pods: Vec<(String, zmq::Socket, u64)>,
}

impl Site {
    /// Pods by name, each with further keys of its `[[source]]`.
    pub(crate) fn new(pods: &[(&str, &str)], config: &str) -> Site {
        let mut file = config.to_owned();
        let mut publishers = Vec::new();
        for (name, keys) in pods {
            let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
            file += &format!(
                "\n[[source]]\nname = \"{name}\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n{keys}\n"
            );
            publishers.push(((*name).to_owned(), socket, 0));
        }
        let daemon = Daemon::start(&[], &file, &[]);
        eventually("the sources are added", || daemon.get("/ready").status == 200);
        Site { daemon, pods: publishers }
    }

    pub(crate) fn feed(&mut self, pod: &str, events: &[Value]) {
        let (name, socket, seq) = self.pods.iter_mut().find(|(name, ..)| name == pod).unwrap();
        self.daemon.feed(socket, "", &Batch { seq: *seq, payload: batch(events) }, name);
        *seq += 1;
    }

    /// A question's answer; `kind` is that of its body, `accept` what is asked for.
    pub(crate) fn send(
        &self,
        path: &str,
        kind: &str,
        accept: &str,
        body: &[u8],
    ) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.daemon.address()).unwrap();
        let accept =
            if accept.is_empty() { String::new() } else { format!("accept: {accept}\r\n") };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             {accept}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: "));
        (status, kind.unwrap_or_default().to_owned(), answer[end + 4..].to_vec())
    }

    pub(crate) fn msgpack(&self, path: &str, body: &Value) -> Value {
        let packed = rmp_serde::to_vec_named(body).unwrap();
        let (status, kind, answer) = self.send(path, MSGPACK, "", &packed);
        assert_eq!((status / 100, kind.as_str()), (2, MSGPACK), "{path}");
        rmp_serde::from_slice(&answer).unwrap()
    }
}

pub(crate) fn little_endian(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// A msgpack map of texts and numbers, with the tokens in binary.
pub(crate) fn with_binary_tokens(fields: &[(&str, &str)], tokens: &[u32]) -> Vec<u8> {
    let mut body = vec![0x80 + fields.len() as u8 + 1];
    let text = |body: &mut Vec<u8>, text: &str| {
        body.push(0xa0 + text.len() as u8);
        body.extend(text.as_bytes());
    };
    for (name, value) in fields {
        text(&mut body, name);
        text(&mut body, value);
    }
    text(&mut body, "token_ids");
    let bytes = little_endian(tokens);
    body.extend([0xc6]);
    body.extend((bytes.len() as u32).to_be_bytes());
    body.extend(bytes);
    body
}
