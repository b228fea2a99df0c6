//! An engine with an HTTP API, events and a replay socket, as vLLM 0.33 has them: it caches what it is sent and, unless
//! it is mute, says so. Its blocks have 16 tokens, its memory does not end.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use kvscout::block::{BlockSize, Name, Prompt, Shape};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use kvscout::tokenize::{Chat, Options, Tokenize, Tokenizer};
use serde_json::{Value, json};

use crate::tokenize_support;
use crate::zmq_support::engine::{self, Buffer};
use crate::zmq_support::publish;

/// Where an engine is; it runs until the test ends.
pub(crate) struct Engine {
    /// Base of its HTTP API.
    pub(crate) base: String,
    /// Where it publishes.
    pub(crate) events: String,
    /// Where it answers for past batches.
    pub(crate) replay: String,
    past: Buffer,
}

impl Engine {
    /// One that serves a model.
    pub(crate) fn start(context: &zmq::Context, model: &str, mute: bool) -> Engine {
        let wire = engine::Engine::start(context, engine::Shape::WithTopic, Vec::new());
        let (events, replay) = (wire.at.clone(), wire.replay_at.to_string());
        let past = wire.buffer.clone();
        let root = Root::Seed("0");
        let mut serving = Serving {
            model: model.to_owned(),
            contract: Contract::new(Version::NEWEST, Algorithm::Sha256Cbor, root).unwrap(),
            held: HashSet::new(),
            wire,
            tokens: 0,
            mute,
            tokenizer: tokenize_support::load("llama3", Options::default()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            listener.incoming().map_while(Result::ok).for_each(|stream| serving.serve(stream));
        });
        Engine { base, events, replay, past }
    }

    /// The number of its last batch.
    pub(crate) fn last(&self) -> Option<u64> {
        self.past.lock().unwrap().last().map(|(seq, _)| *seq)
    }
}

struct Serving {
    model: String,
    contract: Contract,
    held: HashSet<Name>,
    wire: engine::Engine,
    tokens: usize,
    mute: bool,
    tokenizer: Tokenizer,
}

impl Serving {
    fn serve(&mut self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
        let lower = head.to_ascii_lowercase();
        let length = lower.split("content-length: ").nth(1).and_then(|l| l.lines().next());
        let mut body = vec![0; length.map_or(0, |l| l.trim().parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let answer = match head.split(' ').nth(1).unwrap() {
            "/version" => json!({ "version": "0.33.0" }).to_string(),
            "/v1/models" => json!({ "data": [{ "id": self.model }] }).to_string(),
            "/metrics" => format!(
                "vllm:prompt_tokens_total{{engine=\"0\"}} {}\n\
                 vllm:cache_config_info{{block_size=\"16\",enable_prefix_caching=\"True\"}} 1\n",
                self.tokens
            ),
            "/v1/completions" => self.complete(&serde_json::from_slice(&body).unwrap()).to_string(),
            "/tokenize" => self.tokenize(&String::from_utf8(body).unwrap()).to_string(),
            other => panic!("{other}"),
        };
        let length = answer.len();
        let status = if answer.starts_with("{\"error\"") { "400 Bad Request" } else { "200 OK" };
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        stream.write_all((head + &answer).as_bytes()).unwrap();
    }

    fn tokenize(&self, request: &str) -> Value {
        let fields: Value = serde_json::from_str(request).unwrap();
        assert_eq!(fields["model"], self.model);
        let ids = match fields["prompt"].as_str() {
            Some(text) => self.tokenizer.text(text, fields["add_special_tokens"] == true),
            None => Chat::parse(request).and_then(|chat| self.tokenizer.chat(&chat)),
        };
        match ids {
            Ok(ids) => json!({ "count": ids.len(), "tokens": ids }),
            Err(error) => json!({ "error": { "message": error.to_string() } }),
        }
    }

    fn complete(&mut self, request: &Value) -> Value {
        assert_eq!(request["model"], self.model);
        let tokens: Vec<u32> = match request["prompt"].as_str() {
            Some(text) => self.tokenizer.text(text, true).unwrap(),
            None => serde_json::from_value(request["prompt"].clone()).unwrap(),
        };
        self.tokens += tokens.len();
        let shape = Shape::plain(BlockSize::DEFAULT);
        let mut chain = self.contract.chain(shape, &Prompt::new(&tokens)).unwrap();
        let names: Vec<Name> = chain.extend(&tokens).map(|hash| hash.name()).collect();
        let held = names.iter().take_while(|name| self.held.contains(name)).count();
        let cached = held.min((tokens.len() - 1) / 16) * 16;
        if !self.mute && held < names.len() {
            let hashes: Vec<u64> = names[held..].iter().map(|name| name.0).collect();
            let event = json!({
                "type": "BlockStored", "block_hashes": hashes,
                "parent_block_hash": held.checked_sub(1).map(|at| names[at].0),
                "token_ids": &tokens[16 * held..16 * names.len()], "block_size": 16,
                "lora_id": null, "medium": "GPU", "lora_name": null,
                "extra_keys": vec![Value::Null; hashes.len()], "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            });
            let payload = rmp_serde::to_vec(&json!([1.0, [event], 0])).unwrap();
            let (seq, payload) = self.wire.lose_batch(payload);
            let topic = format!("kv@pod@{}", self.model);
            publish(&self.wire.publisher, topic.as_bytes(), seq, &payload);
        }
        self.held.extend(names);
        json!({ "usage": { "prompt_tokens": tokens.len(),
                           "prompt_tokens_details": { "cached_tokens": cached } } })
    }
}
