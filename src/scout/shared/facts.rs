//! What is said of a worker in the store, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::block::{BlockSize, Group, Shape};
use crate::error::{Error, ErrorKind};
use crate::ingest::snapshot::{AdapterState, EditionState, KeptContract};
use crate::ingest::{Reason, Trust};
use crate::score::{GroupFacts, GroupRule};

/// What a reader has to know of a worker beside the index.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerFacts {
    /// The tenant.
    pub tenant: String,
    /// The pod.
    pub pod: String,
    /// The data-parallel rank.
    pub rank: u32,
    /// The model it serves; `None` answers for any.
    pub model: Option<String>,
    /// What routers tell it apart by.
    pub labels: BTreeMap<String, String>,
    /// Which life of its part of the store is meant.
    pub life: u64,
    /// How far what the store says of it can be believed.
    pub trust: Trust,
    /// The last batch whose effect is certainly in the store.
    pub as_of: Option<u64>,
    /// Its cache groups.
    pub groups: Vec<GroupFacts>,
    /// Its hash contract.
    pub contract: KeptContract,
    /// What its vocabulary is called in the store.
    pub vocabulary: String,
}

/// The form's version.
const FORM: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Said {
    v: u32,
    tenant: String,
    pod: String,
    rank: u32,
    model: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    life: u64,
    trust: String,
    reason: Option<String>,
    as_of: Option<u64>,
    groups: Vec<SaidGroup>,
    contract: Vec<String>,
    vocabulary: String,
}

#[derive(Serialize, Deserialize)]
struct SaidGroup {
    group: u32,
    rule: String,
    window: Option<u32>,
    block_size: u32,
    lookahead: u32,
}

#[derive(Serialize, Deserialize)]
struct SaidAdapter {
    tenant: String,
    name: String,
    model: String,
    id: Option<i64>,
    path: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct SaidEdition {
    tenant: String,
    adapter: String,
    number: u32,
}

/// What an owner says of adapters.
#[derive(Serialize, Deserialize)]
struct SaidAdapters {
    v: u32,
    adapters: Vec<SaidAdapter>,
    editions: Vec<SaidEdition>,
}

fn unreadable(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Decode, format!("a note about {what} in the store cannot be read: {why}"))
}

impl WorkerFacts {
    /// As it lies in the store.
    pub fn to_json(&self) -> Vec<u8> {
        let contract = match &self.contract {
            KeptContract::Undecided => vec!["undecided".to_owned()],
            KeptContract::Private => vec!["private".to_owned()],
            KeptContract::Sglang => vec!["sglang".to_owned()],
            KeptContract::Vllm { version, algorithm, root } => vec![
                "vllm".to_owned(),
                version.to_string(),
                algorithm.as_str().to_owned(),
                root.clone(),
            ],
        };
        let group = |facts: &GroupFacts| {
            let (rule, window) = match facts.rule {
                GroupRule::Full => ("full", None),
                GroupRule::Window { tokens } => ("window", Some(tokens)),
                GroupRule::Unannounced => ("unannounced", None),
                GroupRule::NoRule => ("none", None),
            };
            SaidGroup {
                group: facts.group.0,
                rule: rule.to_owned(),
                window,
                block_size: facts.shape.size.get(),
                lookahead: facts.shape.lookahead,
            }
        };
        let said = Said {
            v: FORM,
            tenant: self.tenant.clone(),
            pod: self.pod.clone(),
            rank: self.rank,
            model: self.model.clone(),
            labels: self.labels.clone(),
            life: self.life,
            trust: self.trust.as_str().to_owned(),
            reason: self.trust.reason().map(|reason| reason.as_str().to_owned()),
            as_of: self.as_of,
            groups: self.groups.iter().map(group).collect(),
            contract,
            vocabulary: self.vocabulary.clone(),
        };
        // Plain structs and maps with text keys always serialize.
        serde_json::to_vec(&said).unwrap_or_default()
    }

    /// From what lies in the store.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] for anything else, and for a later form.
    pub fn from_json(note: &[u8]) -> Result<WorkerFacts, Error> {
        let bad = |why: String| unreadable("a worker", why);
        let said: Said = serde_json::from_slice(note).map_err(|e| bad(e.to_string()))?;
        if said.v != FORM {
            return Err(bad(format!("its form is {}, and this program knows {FORM}", said.v)));
        }
        let trust = match (said.trust.as_str(), &said.reason) {
            ("exact", _) => Trust::Exact,
            ("syncing", _) => Trust::Syncing,
            ("silent", _) => Trust::Silent,
            // A reason that only a later kvscout knows is a reason all the same.
            (_, reason) => {
                let reason = reason.as_deref().and_then(Reason::from_label);
                Trust::Degraded(reason.unwrap_or(Reason::Store))
            }
        };
        let contract = match &said.contract.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["private"] => KeptContract::Private,
            ["sglang"] => KeptContract::Sglang,
            ["vllm", version, algorithm, root] => KeptContract::Vllm {
                version: version.parse()?,
                algorithm: algorithm.parse()?,
                root: (*root).to_owned(),
            },
            _ => KeptContract::Undecided,
        };
        let group = |said: &SaidGroup| {
            let rule = match (said.rule.as_str(), said.window) {
                ("full", _) => GroupRule::Full,
                ("window", Some(tokens)) => GroupRule::Window { tokens },
                ("unannounced", _) => GroupRule::Unannounced,
                _ => GroupRule::NoRule,
            };
            let size = BlockSize::new(said.block_size);
            let size =
                size.ok_or_else(|| bad(format!("block_size {} is none", said.block_size)))?;
            let shape = Shape { size, lookahead: said.lookahead };
            Ok(GroupFacts { group: Group(said.group), rule, shape })
        };
        Ok(WorkerFacts {
            groups: said.groups.iter().map(group).collect::<Result<_, Error>>()?,
            tenant: said.tenant,
            pod: said.pod,
            rank: said.rank,
            model: said.model,
            labels: said.labels,
            life: said.life,
            trust,
            as_of: said.as_of,
            contract,
            vocabulary: said.vocabulary,
        })
    }
}

/// Adapters as they lie in the store.
pub(super) fn adapters_to_json(adapters: &[AdapterState], editions: &[EditionState]) -> Vec<u8> {
    let adapter = |of: &AdapterState| SaidAdapter {
        tenant: of.tenant.clone(),
        name: of.name.clone(),
        model: of.model.clone(),
        id: of.id,
        path: of.path.clone(),
    };
    let edition = |of: &EditionState| SaidEdition {
        tenant: of.tenant.clone(),
        adapter: of.adapter.clone(),
        number: of.number,
    };
    let said = SaidAdapters {
        v: FORM,
        adapters: adapters.iter().map(adapter).collect(),
        editions: editions.iter().map(edition).collect(),
    };
    // As above.
    serde_json::to_vec(&said).unwrap_or_default()
}

/// Adapters from what lies in the store.
pub(super) fn adapters_from_json(
    note: &[u8],
) -> Result<(Vec<AdapterState>, Vec<EditionState>), Error> {
    let said: SaidAdapters = serde_json::from_slice(note).map_err(|e| unreadable("adapters", e))?;
    let adapter = |of: SaidAdapter| AdapterState {
        tenant: of.tenant,
        name: of.name,
        model: of.model,
        id: of.id,
        path: of.path,
    };
    let edition = |of: SaidEdition| EditionState {
        tenant: of.tenant,
        adapter: of.adapter,
        number: of.number,
    };
    let adapters = said.adapters.into_iter().map(adapter).collect();
    Ok((adapters, said.editions.into_iter().map(edition).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back_as_they_were_said() {
        let size = BlockSize::new(16).unwrap();
        let group = |n, rule| GroupFacts { group: Group(n), rule, shape: Shape::plain(size) };
        let facts = WorkerFacts {
            tenant: "t\"".to_owned(),
            pod: "p".to_owned(),
            rank: 3,
            model: None,
            labels: BTreeMap::from([("role".to_owned(), "prefill".to_owned())]),
            life: 7,
            trust: Trust::Degraded(Reason::Gap),
            as_of: Some(9),
            groups: vec![group(0, GroupRule::Full), group(1, GroupRule::Window { tokens: 128 })],
            contract: KeptContract::Vllm {
                version: "0.17.0".parse().unwrap(),
                algorithm: "sha256_cbor".parse().unwrap(),
                root: "00ff".to_owned(),
            },
            vocabulary: "[\"sglang\"]".to_owned(),
        };
        assert_eq!(WorkerFacts::from_json(&facts.to_json()).unwrap(), facts);
    }

    #[test]
    fn a_note_that_is_none_is_an_error_that_shows_nothing_of_it() {
        for note in [&b""[..], b"{}", b"\xff", b"{\"v\": 1}", b"[]"] {
            let error = WorkerFacts::from_json(note).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Decode, "{error}");
        }
    }
}
