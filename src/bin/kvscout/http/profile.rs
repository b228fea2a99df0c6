//! Mooncake's `hash_profile`: how a publisher's names are made, in words.

use kvscout::hash::vllm::{self, Algorithm, Root, Version};
use kvscout::ingest::verify::{Contract, Status};
use kvscout::scout::WorkerStatus;
use serde_json::{Value, json};

use super::body::Fields;
use super::refusal::HttpError;

const FIELDS: [&str; 4] = ["strategy", "algorithm", "python_hash_seed", "index_projection"];

/// What SGLang's hashes are called.
const SGLANG: [&str; 3] = ["sglang", "sha256_raw", "first64_be"];
/// What vLLM's are called, whose algorithm is its own `--prefix-caching-hash-algo`.
const VLLM: [&str; 2] = ["vllm_v1", "low64_be"];

/// The contract of the profile in a registration, if there is one.
///
/// vLLM's is read by the rules of its newest version. Without `python_hash_seed` the variable is not set for the engine.
pub(super) fn read(fields: &Fields<'_>) -> Result<Option<Contract>, HttpError> {
    let Some(profile) = fields.object("hash_profile")? else { return Ok(None) };
    profile.only(&FIELDS)?;
    let strategy = profile.required_text("strategy")?;
    if strategy == SGLANG[0] {
        is_one_of(&profile, "algorithm", &[SGLANG[1]])?;
        is_one_of(&profile, "index_projection", &[SGLANG[2]])?;
        return Ok(Some(Contract::Sglang));
    }
    is_one_of(&profile, "strategy", &[VLLM[0], SGLANG[0]])?;
    is_one_of(&profile, "index_projection", &[VLLM[1]])?;
    let version = Version::NEWEST;
    let known = Algorithm::ALL.into_iter().filter(|algorithm| algorithm.exists_in(version));
    let known: Vec<&str> = known.map(Algorithm::as_str).collect();
    let algorithm = is_one_of(&profile, "algorithm", &known)?;
    let wrong =
        |name, error: kvscout::Error| HttpError::field(profile.place(name), error.to_string());
    let algorithm = algorithm.parse().map_err(|error| wrong("algorithm", error))?;
    let seed = seed(&profile)?;
    let root = seed.as_deref().map_or(Root::Unset, Root::Seed);
    let contract = vllm::Contract::new(version, algorithm, root);
    Ok(Some(Contract::Vllm(contract.map_err(|error| wrong("python_hash_seed", error))?)))
}

/// How names are made, where that is known to be one of Mooncake's ways: detected, or else as it was
/// registered. Without seeds and root hashes.
pub(super) fn of(status: &WorkerStatus) -> Value {
    let contract = match &status.contract {
        Status::Verified(contract) => Some(contract),
        Status::Undecided => status.registration.contract.as_ref(),
        Status::Private => None,
    };
    let [strategy, algorithm, projection] = match contract {
        Some(Contract::Vllm(contract)) => [VLLM[0], contract.algorithm().as_str(), VLLM[1]],
        Some(Contract::Sglang) => SGLANG,
        None => return Value::Null,
    };
    json!({ "strategy": strategy, "algorithm": algorithm, "index_projection": projection })
}

/// `PYTHONHASHSEED` as Python takes it: a number of 32 bits, or `random`.
fn seed(profile: &Fields<'_>) -> Result<Option<String>, HttpError> {
    let name = "python_hash_seed";
    let Some(seed) = profile.text(name)? else { return Ok(None) };
    let is_number = seed.bytes().all(|byte| byte.is_ascii_digit()) && seed.parse::<u32>().is_ok();
    if is_number || seed == "random" {
        return Ok(Some(seed));
    }
    // Not repeated: who knows it can predict hashes.
    let wrong = "expected the text of PYTHONHASHSEED: a number from 0 to 4294967295, or random";
    Err(HttpError::field(profile.place(name), wrong))
}

/// A text that has to be there and to be one of these.
fn is_one_of(profile: &Fields<'_>, name: &str, known: &[&str]) -> Result<String, HttpError> {
    let text = profile.required_text(name)?;
    if known.contains(&text.as_str()) {
        return Ok(text);
    }
    let shown: String = text.chars().take(32).collect();
    let wrong = format!("{shown:?} is not known here; there is {}", known.join(", "));
    Err(HttpError::field(profile.place(name), wrong))
}
