//! Every vector of vLLM's block hashes, made by vLLM itself (`tests/vectors/README.md`).
//!
//! A case is left out only by a rule of [`Left`], and the test counts how many each rule took.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kvscout::ErrorKind;
use kvscout::block::{BlockSize, Embeds, ExtraKey, Item, Lora, Name, Prompt, Shape};
use kvscout::hash::content;
use kvscout::hash::vllm::{Algorithm, BlockHash, Contract, Root, Version};
use serde_json::Value;

/// Why a case is not reproduced, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    /// A negative token id, or one beyond 32 bits: the blocks before it are checked.
    NoTokenId,
    /// Two extra keys are one Python object, which pickle shows; only a process that calls the
    /// hasher itself can bring that about.
    SharedObject,
    /// Before Python 3.12 `hash(None)` is an address.
    HashOfNone,
    /// Python 3.10 hashes strings by SipHash-2-4.
    OldStringHash,
    /// Texts under a random key of the interpreter: the chain must refuse them.
    RandomStringHash,
}

struct File {
    version: Version,
    python: (u32, u32),
    document: Value,
}

fn files() -> Vec<File> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut paths: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("hash-"));
    paths.sort();
    let read = |path: &PathBuf| {
        let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut python = text(&document["python"]).split('.').map(|n| n.parse().unwrap());
        File {
            version: text(&document["vllm_version"]).parse().unwrap(),
            python: (python.next().unwrap(), python.next().unwrap()),
            document,
        }
    };
    paths.iter().map(read).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap().try_into().unwrap()
}

fn algorithm(run: &Value) -> Algorithm {
    text(&run["algo"]).parse().unwrap()
}

/// The tokens of a case up to the first one that is no token id, and whether that is all of them.
fn tokens(file: &File, case: &Value) -> (Vec<u32>, bool) {
    let set = &file.document["token_sets"][text(&case["tokens"])];
    let mut all: Vec<Option<u32>> = match set {
        Value::Array(ids) => {
            ids.iter().map(|id| id.as_u64().and_then(|id| id.try_into().ok())).collect()
        }
        formula => {
            let part = |name| formula[name].as_u64().unwrap();
            let id = |i| (i * part("mul") + part("add")) % part("mod");
            (0..part("n")).map(|i| id(i).try_into().ok()).collect()
        }
    };
    all.truncate(case["limit"].as_u64().map_or(usize::MAX, |n| n as usize));
    let valid: Vec<u32> = all.iter().map_while(|id| *id).collect();
    let whole = valid.len() == all.len();
    (valid, whole)
}

/// A prompt that owns what a case says.
struct Request {
    token_ids: Vec<u32>,
    items: Vec<(String, u32, u32)>,
    rows: Option<(Vec<u8>, usize)>,
    lora: Option<(String, i64, String)>,
    salt: Option<String>,
}

impl Request {
    fn new(token_ids: Vec<u32>, case: &Value) -> Request {
        let place = |item: &Value, name: &str| u32::try_from(number(&item[name])).unwrap();
        let lora = |lora: &Value| {
            let owned = |name: &str| text(&lora[name]).to_owned();
            (owned("name"), lora["id"].as_i64().unwrap(), owned("path"))
        };
        Request {
            items: list(&case["mm"])
                .iter()
                .map(|m| (text(&m["hash"]).to_owned(), place(m, "offset"), place(m, "length")))
                .collect(),
            rows: case["embeds_bytes_per_token"].as_u64().map(|row| {
                let row = row as usize;
                ((0..row * token_ids.len()).map(|j| (j * 31 + 7) as u8).collect(), row)
            }),
            lora: case["lora"].is_object().then(|| lora(&case["lora"])),
            salt: case["salt"].as_str().map(str::to_owned),
            token_ids,
        }
    }

    fn items(&self) -> Vec<Item<'_>> {
        self.items
            .iter()
            .map(|&(ref identifier, offset, length)| Item { identifier, offset, length })
            .collect()
    }

    fn prompt<'a>(&'a self, items: &'a [Item<'a>]) -> Prompt<'a> {
        Prompt {
            token_ids: &self.token_ids,
            lora: self.lora.as_ref().map(|(name, id, path)| Lora {
                name,
                id: Some(*id),
                path: Some(path),
            }),
            cache_salt: self.salt.as_deref(),
            items,
            embeds: self.rows.as_ref().map(|(bytes, row)| Embeds::Rows { bytes, row: *row }),
        }
    }

    /// Whether texts are hashed as texts of their own.
    fn has_texts(&self, version: Version) -> bool {
        let salted = self.salt.as_deref().is_some_and(|salt| !salt.is_empty());
        !self.items.is_empty() || salted && version >= Version::new(0, 9, 0)
    }
}

fn shape(case: &Value) -> Shape {
    let size = BlockSize::new(number(&case["block_size"]) as u32).unwrap();
    Shape { size, lookahead: case["lookahead"].as_u64().unwrap_or(0) as u32 }
}

/// The contract of a run, after its root hash was checked in every way in which it can be given.
fn contract(file: &File, run: &Value) -> Contract {
    let (version, algorithm) = (file.version, algorithm(run));
    let none_hash = text(&run["none_hash"]);
    let given = Contract::new(version, algorithm, Root::Hash(none_hash)).unwrap();
    assert_eq!(given.root().to_string(), none_hash);
    let root = run["seed"].as_str().map_or(Root::Unset, Root::Seed);
    match Contract::new(version, algorithm, root) {
        Ok(derived) => {
            assert_eq!(derived.root(), given.root(), "{version} {algorithm} {}", run["seed"]);
            derived
        }
        Err(error) => {
            let decimal = run["seed"].as_str().is_some_and(|seed| seed.parse::<u32>().is_ok());
            assert!(!decimal, "{error}");
            assert_eq!(error.kind(), ErrorKind::MissingFact, "{error}");
            given
        }
    }
}

fn hashes(contract: &Contract, request: &Request, case: &Value) -> Vec<BlockHash> {
    let items = request.items();
    let prompt = request.prompt(&items);
    let mut chain = contract.chain(shape(case), &prompt).unwrap();
    let prompt_len = case["prompt_len"].as_u64().map_or(request.token_ids.len(), |n| n as usize);
    let mut hashes: Vec<_> = chain.extend(&request.token_ids[..prompt_len]).collect();
    for seen in prompt_len + 1..=request.token_ids.len() {
        hashes.extend(chain.extend(&request.token_ids[..seen]));
    }
    hashes
}

/// The same hashes, each found on its own: by resuming, and from the block's extra keys.
fn check_each_alone(contract: &Contract, request: &Request, case: &Value, hashes: &[BlockHash]) {
    let items = request.items();
    let prompt = request.prompt(&items);
    let shape = shape(case);
    let size = shape.size.tokens();
    for (n, hash) in hashes.iter().enumerate() {
        let parent = n.checked_sub(1).map_or(contract.root(), |n| hashes[n]);
        let mut chain = contract.chain(shape, &prompt).unwrap();
        chain.resume(n, parent).unwrap();
        assert_eq!(chain.advance(&request.token_ids).as_ref(), Some(hash), "{}", case["name"]);

        let (start, end) = (n * size, (n + 1) * size);
        let child = contract.child(
            &parent,
            &request.token_ids[start..end],
            &request.token_ids[end..end + shape.lookahead as usize],
            content::extra_keys(&prompt, shape, n),
            prompt.lora,
        );
        let raw = contract.version() < Version::new(0, 17, 0) && prompt.embeds.is_some();
        match child {
            Ok(child) => assert_eq!(child, *hash, "{}", case["name"]),
            Err(error) => assert!(raw && error.kind() == ErrorKind::MissingFact, "{error}"),
        }
    }
}

fn left_out(file: &File, run: &Value, case: &Value, request: &Request) -> Option<Left> {
    let texts = request.has_texts(file.version);
    let seed = run["seed"].as_str().and_then(|seed| seed.parse::<u32>().ok());
    match algorithm(run) {
        Algorithm::Sha256 | Algorithm::Xxhash => {
            (text(&case["name"]) == "mm-same-twice-SHARED-object").then_some(Left::SharedObject)
        }
        Algorithm::Builtin if texts && seed.is_none() => Some(Left::RandomStringHash),
        Algorithm::Builtin if file.python < (3, 12) && request.lora.is_none() => {
            Some(Left::HashOfNone)
        }
        Algorithm::Builtin if file.python < (3, 11) && texts => Some(Left::OldStringHash),
        _ => None,
    }
}

#[test]
fn every_hash_that_vllm_computed_is_reproduced() {
    let (mut cases, mut blocks, mut blocks_without_ids) = (0, 0, 0);
    let mut left: BTreeMap<Left, usize> = BTreeMap::new();
    for file in files() {
        for run in list(&file.document["runs"]) {
            let contract = contract(&file, run);
            for case in list(&run["cases"]) {
                let (token_ids, whole) = tokens(&file, case);
                let request = Request::new(token_ids, case);
                if let Some(rule) = left_out(&file, run, case, &request) {
                    *left.entry(rule).or_default() += 1;
                    if rule == Left::RandomStringHash {
                        let items = request.items();
                        let refused = contract.chain(shape(case), &request.prompt(&items));
                        assert_eq!(refused.unwrap_err().kind(), ErrorKind::MissingFact);
                    }
                    continue;
                }
                let context = format!(
                    "vLLM {} {} seed {} {}",
                    file.version, run["algo"], run["seed"], case["name"]
                );
                let found = hashes(&contract, &request, case);
                let mut expected = list(&case["hashes"]);
                let mut events = list(&case["event_int"]);
                if !whole {
                    *left.entry(Left::NoTokenId).or_default() += 1;
                    if found.is_empty() {
                        continue;
                    }
                    blocks_without_ids += expected.len() - found.len();
                    expected = &expected[..found.len()];
                    events = &events[..found.len()];
                }
                let shown: Vec<_> = found.iter().map(BlockHash::to_string).collect();
                assert_eq!(shown, expected, "{context}");
                let published: Vec<_> =
                    found.iter().map(|hash| hash.event().map(|event| event.to_string())).collect();
                let events: Vec<_> = events.iter().map(|e| e.as_str().map(str::to_owned)).collect();
                assert_eq!(published, events, "{context}");
                if case["prompt_len"].is_null() && found.len() < 50 {
                    check_each_alone(&contract, &request, case, &found);
                }
                cases += 1;
                blocks += found.len();
            }
        }
    }
    assert_eq!((cases, blocks, blocks_without_ids), (2327, 10648, 244));
    let rules = [
        (Left::NoTokenId, 126),
        (Left::SharedObject, 21),
        (Left::HashOfNone, 60),
        (Left::OldStringHash, 3),
        (Left::RandomStringHash, 27),
    ];
    assert_eq!(left, BTreeMap::from(rules));
}

#[test]
fn every_algorithm_has_vectors() {
    let mut seen = BTreeSet::new();
    for file in files() {
        for run in list(&file.document["runs"]) {
            assert!(algorithm(run).exists_in(file.version));
            if list(&run["cases"]).iter().any(|case| !list(&case["hashes"]).is_empty()) {
                seen.insert(algorithm(run));
            }
        }
    }
    assert_eq!(seen, BTreeSet::from(Algorithm::ALL));
}

/// An extra key as events write it: a text, `[identifier, offset]`, or bytes.
fn event_form(key: ExtraKey<'_>, offsets: bool) -> Value {
    match key {
        ExtraKey::Lora(text) | ExtraKey::Salt(text) => text.into(),
        ExtraKey::Item { identifier, offset } if offsets => serde_json::json!([identifier, offset]),
        ExtraKey::Item { identifier, .. } => identifier.into(),
        ExtraKey::Embeds(_) => panic!("no vector lists the extra keys of embeddings"),
    }
}

#[test]
fn the_extra_keys_of_a_prompt_are_those_of_the_events() {
    let mut lists = 0;
    for file in files() {
        let offsets = file.version >= Version::new(0, 19, 0);
        for case in list(&file.document["runs"]).iter().flat_map(|run| list(&run["cases"])) {
            let request = Request::new(tokens(&file, case).0, case);
            let items = request.items();
            let prompt = request.prompt(&items);
            for (block, expected) in list(&case["event_extra_keys"]).iter().enumerate() {
                let keys: Vec<_> = content::extra_keys(&prompt, shape(case), block)
                    .map(|key| event_form(key, offsets))
                    .collect();
                assert_eq!(keys, list(expected), "{} {}", file.version, case["name"]);
                lists += 1;
            }
        }
    }
    assert_eq!(lists, 3096);
}

#[test]
fn a_coarse_block_has_the_name_of_its_last_fine_block() {
    let (mut coarse, mut keys) = (0, 0);
    for file in files() {
        for run in list(&file.document["runs"]) {
            let bytes = |value: &Value| -> Vec<u8> {
                let digits = text(value).as_bytes();
                let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16);
                digits.chunks(2).map(|pair| byte(pair).unwrap()).collect()
            };
            for group in list(&run["coarse_groups"]) {
                let set = serde_json::json!({ "tokens": "len80", "block_size": group["hash_block_size"] });
                let request = Request::new(tokens(&file, &set).0, &set);
                let fine = hashes(&contract(&file, run), &request, &set);
                let shown: Vec<_> = fine.iter().map(BlockHash::to_string).collect();
                assert_eq!(shown, list(&group["from"]));
                let units = number(&group["group_block_size"]) / number(&group["hash_block_size"]);
                for (n, hash) in list(&group["hashes"]).iter().enumerate() {
                    let last = &fine[(n + 1) * units - 1];
                    assert_eq!(Name::from_bytes(&bytes(hash)), Some(last.name()));
                    assert_eq!(list(&group["event_int"])[n], last.event().unwrap().to_string());
                    coarse += 1;
                }
            }
            for key in list(&run["group_keys"]) {
                let group = u32::try_from(number(&key["group"])).unwrap();
                let inner = [bytes(&key["hash"]).as_slice(), &group.to_be_bytes()].concat();
                assert_eq!(inner, bytes(&key["key"]));
                assert!(BlockHash::from_bytes(&bytes(&key["hash"])).is_some());
                keys += 1;
            }
        }
    }
    assert_eq!((coarse, keys), (84, 96));
}
