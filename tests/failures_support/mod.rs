//! What the catalogue's tests share: a scout with a bystander, and events written by hand in every
//! form that engines have used.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

#[path = "../event_support/mod.rs"]
mod event_support;

use std::cell::RefCell;
use std::collections::HashMap;

pub(crate) use event_support::{SIZE, removed, stored, with};
use kvscout::block::{BlockSize, Lora, Prompt, Shape, Tier, WorkerId};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use kvscout::ingest::Trust;
use kvscout::scout::{
    Ingested, Options, Ranked, Registration, Request, Scout, Scratch, WorkerStatus,
};
use serde_json::{Value, json};

/// One worker's line of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) pod: String,
    pub(crate) rank: u32,
    pub(crate) matched: u32,
    pub(crate) expected: Option<u32>,
    /// Why there is no `expected`.
    pub(crate) unknown: Option<&'static str>,
    pub(crate) weighted: f64,
    pub(crate) miss: Option<&'static str>,
    pub(crate) trust: Trust,
    pub(crate) tiers: [u32; 4],
}

/// Asks; the only place that knows what an answer looks like.
pub(crate) fn ask(scout: &Scout, request: &Request<'_>) -> Vec<Line> {
    let mut scratch = Scratch::default();
    let ranking = scout.score(request, &mut scratch).unwrap();
    let line = |ranked: Ranked<'_>| Line {
        pod: ranked.pod.to_string(),
        rank: ranked.rank,
        matched: ranked.score.matched_blocks,
        expected: ranked.score.expected_cached_tokens.ok(),
        unknown: ranked.score.expected_cached_tokens.err().map(|why| why.as_str()),
        weighted: ranked.score.weighted,
        miss: ranked.score.miss.map(|why| why.as_str()),
        trust: ranked.trust,
        tiers: ranked.score.tier_tokens,
    };
    ranking.iter().map(line).collect()
}

/// A scout in which one worker, the bystander, must score the same whatever happens to others.
pub(crate) struct Site {
    pub(crate) scout: Scout,
    next: RefCell<HashMap<WorkerId, u64>>,
}

const BYSTANDER: &str = "bystander";
const ITS_TOKENS: [u32; 13] = [91, 92, 93, 94, 95, 96, 97, 98, 99, 90, 89, 88, 87];

/// Under names that no test uses.
fn its_blocks() -> Value {
    stored(&[u64::MAX - 3, u64::MAX - 2, u64::MAX - 1], None, &ITS_TOKENS[..12])
}

impl Site {
    pub(crate) fn new() -> Site {
        Site::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Site {
        let site = Site { scout: Scout::new(options).unwrap(), next: RefCell::default() };
        let bystander = site.worker(BYSTANDER);
        site.apply(bystander, &[its_blocks()]);
        site.bystander_is_unchanged();
        site
    }

    /// Asserts that what others went through left the bystander's score alone.
    #[track_caller]
    pub(crate) fn bystander_is_unchanged(&self) {
        let line = self.line(BYSTANDER, 0, Prompt::new(&ITS_TOKENS));
        let expected = (3, Some(12), Trust::Exact);
        assert_eq!((line.matched, line.expected, line.trust), expected, "the bystander's score");
    }

    /// The bystander's engine repeats its batch to a scout that was restored.
    pub(crate) fn bystander_goes_on(&self) {
        self.scout.apply(self.worker(BYSTANDER), 0, &batch(&[its_blocks()])).unwrap();
    }

    /// Registers rank 0 of a pod that serves `m`.
    pub(crate) fn worker(&self, pod: &str) -> WorkerId {
        self.register(Registration::new(pod, "m"))
    }

    pub(crate) fn register(&self, registration: Registration) -> WorkerId {
        self.scout.register(registration).unwrap()
    }

    /// Applies events as the worker's next batch.
    pub(crate) fn apply(&self, worker: WorkerId, events: &[Value]) -> Ingested {
        self.apply_payload(worker, &batch(events))
    }

    pub(crate) fn apply_payload(&self, worker: WorkerId, payload: &[u8]) -> Ingested {
        let mut next = self.next.borrow_mut();
        let seq = next.entry(worker).or_default();
        let ingested = self.scout.apply(worker, *seq, payload).unwrap();
        *seq += 1;
        ingested
    }

    /// The next batch is number 0 again.
    pub(crate) fn restart(&self, worker: WorkerId) {
        self.next.borrow_mut().insert(worker, 0);
    }

    pub(crate) fn ask(&self, prompt: Prompt<'_>) -> Vec<Line> {
        ask(&self.scout, &Request::new("m", prompt))
    }

    #[track_caller]
    pub(crate) fn line(&self, pod: &str, rank: u32, prompt: Prompt<'_>) -> Line {
        let lines = self.ask(prompt);
        lines.into_iter().find(|line| line.pod == pod && line.rank == rank).expect("the pod's line")
    }

    /// Leading blocks of plain text that a pod's rank 0 holds.
    #[track_caller]
    pub(crate) fn matched(&self, pod: &str, tokens: &[u32]) -> u32 {
        self.line(pod, 0, Prompt::new(tokens)).matched
    }

    /// Tokens of plain text that a pod's rank 0 holds in a tier or a faster one.
    #[track_caller]
    pub(crate) fn held(&self, pod: &str, tier: Tier, tokens: &[u32]) -> u32 {
        self.line(pod, 0, Prompt::new(tokens)).tiers[tier.rank().unwrap()]
    }

    #[track_caller]
    pub(crate) fn status(&self, worker: WorkerId) -> WorkerStatus {
        self.scout.worker(worker).unwrap()
    }

    pub(crate) fn warnings(&self, worker: WorkerId) -> Vec<&'static str> {
        self.status(worker).warnings().map(|warning| warning.as_str()).collect()
    }

    #[track_caller]
    pub(crate) fn trust(&self, worker: WorkerId) -> Trust {
        self.status(worker).trust
    }
}

/// Every scenario ends with the bystander as it was.
impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.bystander_is_unchanged();
        }
    }
}

/// A batch as vLLM writes it.
pub(crate) fn batch(events: &[Value]) -> Vec<u8> {
    encode(&json!([1.5, events, 0]))
}

/// A placeholder as offloading connectors write it: names, no tokens.
pub(crate) fn stored_by_name(hashes: &[u64], medium: &str) -> Value {
    let fields = [("medium", json!(medium)), ("block_size", json!(0)), ("extra_keys", Value::Null)];
    with(stored(hashes, None, &[]), &fields)
}

pub(crate) fn cleared() -> Value {
    json!({ "type": "AllBlocksCleared" })
}

/// A store of an adapter's blocks.
pub(crate) fn of_adapter(event: Value, name: &str) -> Value {
    let blocks = event["block_hashes"].as_array().unwrap().len();
    let keys = vec![json!([name]); blocks];
    with(event, &[("lora_name", json!(name)), ("lora_id", json!(1)), ("extra_keys", json!(keys))])
}

pub(crate) fn lora(name: &str) -> Option<Lora<'_>> {
    Some(Lora { name, id: None, path: None })
}

/// A plain store in the form of a vLLM version, `hashes` and `parent` being JSON as
/// [`encode`] takes it.
pub(crate) fn stored_as(
    version: &str,
    hashes: &[Value],
    parent: Value,
    tokens: &[u32],
    size: u32,
) -> Value {
    let plain = vec![Value::Null; hashes.len()];
    let fields = [
        json!("BlockStored"),
        json!(hashes),
        parent,
        json!(tokens),
        json!(size),
        Value::Null,
        json!("GPU"),
        Value::Null,
        json!(plain),
        json!(0),
        json!("full_attention"),
        Value::Null,
    ];
    let version: Version = version.parse().unwrap();
    let since = |minor, patch| version >= Version::new(0, minor, patch);
    let count = match () {
        () if since(24, 0) => {
            let names = [
                "type",
                "block_hashes",
                "parent_block_hash",
                "token_ids",
                "block_size",
                "lora_id",
                "medium",
                "lora_name",
                "extra_keys",
                "group_idx",
                "kv_cache_spec_kind",
            ];
            let pairs = names.iter().map(|name| name.to_string()).zip(fields);
            return Value::Object(pairs.collect());
        }
        () if since(22, 0) => 12,
        () if since(20, 0) => 10,
        () if since(17, 0) => 9,
        () if since(14, 0) => 8,
        () if since(10, 2) => 7,
        () => 6,
    };
    json!(fields[..count])
}

/// A byte string, for [`encode`].
pub(crate) fn bytes(bytes: &[u8]) -> Value {
    json!({ "$bytes": bytes })
}

/// Msgpack of a JSON value, written here and not by a library that the reader could share a mistake
/// with; `{"$bytes": [..]}` is a byte string.
pub(crate) fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    let length = |out: &mut Vec<u8>, tag: u8, len: usize| {
        out.push(tag);
        out.extend(u32::try_from(len).unwrap().to_be_bytes());
    };
    match value {
        Value::Null => out.push(0xc0),
        Value::Bool(value) => out.push(0xc2 | u8::from(*value)),
        Value::Number(number) => {
            if let Some(n) = number.as_u64() {
                out.push(0xcf);
                out.extend(n.to_be_bytes());
            } else if let Some(n) = number.as_i64() {
                out.push(0xd3);
                out.extend(n.to_be_bytes());
            } else {
                out.push(0xcb);
                out.extend(number.as_f64().unwrap().to_be_bytes());
            }
        }
        Value::String(text) => {
            length(out, 0xdb, text.len());
            out.extend(text.as_bytes());
        }
        Value::Array(values) => {
            length(out, 0xdd, values.len());
            values.iter().for_each(|value| write(value, out));
        }
        Value::Object(fields) => {
            if let Some(bytes) = fields.get("$bytes") {
                let bytes = bytes.as_array().unwrap();
                length(out, 0xc6, bytes.len());
                out.extend(bytes.iter().map(|byte| byte.as_u64().unwrap() as u8));
                return;
            }
            length(out, 0xdf, fields.len());
            // As encoders do, the tag first.
            let (tag, rest): (Vec<_>, Vec<_>) =
                fields.iter().partition(|(name, _)| *name == "type");
            for (name, value) in tag.into_iter().chain(rest) {
                write(&json!(name), out);
                write(value, out);
            }
        }
    }
}

/// Names that a real engine of this version, algorithm and seed would give a prompt's blocks.
pub(crate) fn names(
    version: &str,
    algorithm: Algorithm,
    seed: &str,
    size: u32,
    prompt: &Prompt<'_>,
) -> Vec<u64> {
    let contract = Contract::new(version.parse().unwrap(), algorithm, Root::Seed(seed)).unwrap();
    let shape = Shape::plain(BlockSize::new(size).unwrap());
    let mut chain = contract.chain(shape, prompt).unwrap();
    chain.extend(prompt.token_ids).map(|hash| hash.name().0).collect()
}
