//! kvscout's own routes: `/v1/score`, `/workers`, `/ready`.

use std::time::Instant;

use axum::http::StatusCode;
use kvscout::block::{Item, Lora, Prompt, Tier, WorkerId};
use kvscout::ingest::verify::{Contract, Status};
use kvscout::score::{GroupFacts, GroupRule, named_tiers};
use kvscout::scout::{Blocks, Ranked, Registration, Request, WorkerStatus};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::refusal::HttpError;
use super::{Answer, App};
use crate::intake::Feed;
use crate::service::{Service, WorkerView};

/// Ranks workers for a prompt, with every field of the score.
pub(super) fn score(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    fields.only(&["token_ids", "model", "tenant", "lora", "cache_salt", "mm", "candidates"])?;
    let token_ids = fields.tokens("token_ids")?;
    let model = fields.text("model")?;
    let tenant = fields.text("tenant")?;
    let tenant = tenant.as_deref().unwrap_or(Registration::DEFAULT_TENANT);
    let salt = fields.text("cache_salt")?;
    let adapter = adapter(&fields)?;
    let media = media(&fields)?;
    let mut items: Vec<Item<'_>> = media.iter().map(Medium::item).collect();
    items.sort_by_key(|item| item.offset);
    let (candidates, unknown) = candidates(&app.service, tenant, &fields)?;
    let prompt = Prompt {
        lora: adapter.as_ref().map(|(name, id, path)| Lora {
            name,
            id: *id,
            path: path.as_deref(),
        }),
        cache_salt: salt.as_deref(),
        items: &items,
        ..Prompt::new(&token_ids)
    };
    let request = Request {
        tenant,
        model: model.as_deref(),
        blocks: Blocks::Prompt(prompt),
        candidates: candidates.as_deref(),
    };
    let answer = app.service.score(&request, |ranked| {
        let workers: Vec<Scored<'_>> = ranked.iter().map(Scored::new).collect();
        Answer::ok(&Scores { workers, unknown_candidates: &unknown })
    })?;
    Ok(answer)
}

/// Name, id and path.
type Adapter = (String, Option<i64>, Option<String>);

fn adapter(fields: &Fields<'_>) -> Result<Option<Adapter>, HttpError> {
    Ok(match fields.object_or_text("lora")? {
        None => None,
        Some(Err(name)) if name.is_empty() => None,
        Some(Err(name)) => Some((name, None, None)),
        Some(Ok(lora)) => {
            lora.only(&["name", "id", "path"])?;
            Some((lora.required_text("name")?, lora.i64("id")?, lora.text("path")?))
        }
    })
}

/// A multimodal item of the question.
struct Medium {
    hash: String,
    offset: u32,
    length: u32,
}

impl Medium {
    fn item(&self) -> Item<'_> {
        Item { identifier: &self.hash, offset: self.offset, length: self.length }
    }
}

fn media(fields: &Fields<'_>) -> Result<Vec<Medium>, HttpError> {
    let items = fields.objects("mm")?.unwrap_or_default().into_iter().enumerate();
    let read = |(n, item): (usize, Result<Fields<'_>, String>)| {
        let wrong =
            |_| HttpError::element("mm", n, "expected {hash, offset, length}, found a text");
        let item = item.map_err(wrong)?;
        item.only(&["hash", "offset", "length"])?;
        Ok(Medium {
            hash: item.required_text("hash")?,
            offset: item.required_u32("offset")?,
            length: item.required_u32("length")?,
        })
    };
    items.map(read).collect()
}

/// The workers that are asked about, and the pods among them that nobody has registered: a router
/// may know of a pod before we do, and its question must not fail for that. A rank that a known pod
/// does not have is a mistake.
fn candidates(
    service: &Service,
    tenant: &str,
    fields: &Fields<'_>,
) -> Result<(Option<Vec<WorkerId>>, Vec<String>), HttpError> {
    let Some(given) = fields.objects("candidates")? else { return Ok((None, Vec::new())) };
    let (mut workers, mut unknown) = (Vec::new(), Vec::new());
    for (n, candidate) in given.into_iter().enumerate() {
        let (pod, rank) = match candidate {
            Err(pod) => (pod, None),
            Ok(candidate) => {
                candidate.only(&["worker", "rank"])?;
                (candidate.required_text("worker")?, candidate.u32("rank")?)
            }
        };
        let found = service.workers_of(tenant, &pod, rank);
        if found.is_empty() && rank.is_some() && !service.workers_of(tenant, &pod, None).is_empty()
        {
            let wrong = format!("pod {pod:?} has no rank {}", rank.unwrap_or(0));
            return Err(HttpError::element("candidates", n, &wrong));
        }
        if found.is_empty() {
            unknown.push(pod);
        }
        workers.extend(found);
    }
    Ok((Some(workers), unknown))
}

#[derive(Serialize)]
struct Scores<'a> {
    workers: Vec<Scored<'a>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unknown_candidates: &'a [String],
}

#[derive(Serialize)]
struct Scored<'a> {
    worker: &'a str,
    rank: u32,
    matched_blocks: u32,
    expected_cached_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_unknown: Option<&'static str>,
    tiers: Tiers,
    score: f64,
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    miss: Option<&'static str>,
    as_of: Option<u64>,
    trust: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Tiers {
    gpu: u32,
    cpu: u32,
    disk: u32,
    remote: u32,
}

impl<'a> Scored<'a> {
    fn new(ranked: &'a Ranked<'_>) -> Scored<'a> {
        let score = &ranked.score;
        let mut tiers = Tiers::default();
        for (tier, tokens) in named_tiers(score) {
            match tier {
                Tier::Gpu => tiers.gpu = tokens,
                Tier::Cpu => tiers.cpu = tokens,
                Tier::Disk => tiers.disk = tokens,
                Tier::Remote => tiers.remote = tokens,
                Tier::Unknown => {}
            }
        }
        Scored {
            worker: ranked.pod,
            rank: ranked.rank,
            matched_blocks: score.matched_blocks,
            expected_cached_tokens: score.expected_cached_tokens.ok(),
            expected_unknown: score.expected_cached_tokens.err().map(|why| why.as_str()),
            tiers,
            score: score.weighted,
            ratio: score.ratio,
            miss: score.miss.map(|why| why.as_str()),
            as_of: ranked.as_of,
            trust: ranked.trust.as_str(),
            reason: ranked.trust.reason().map(|reason| reason.as_str()),
        }
    }
}

/// Whether the daemon is ready; otherwise, what is missing.
pub(super) fn ready(service: &Service) -> Answer {
    match service.readiness() {
        Ok(()) => Answer::ok(&json!({ "ready": true })),
        Err(reason) => {
            let answer = json!({ "ready": false, "reason": reason });
            Answer::with(StatusCode::SERVICE_UNAVAILABLE, &answer)
        }
    }
}

/// Every worker as an operator needs it.
pub(super) fn workers(service: &Service) -> Answer {
    let workers: Vec<Value> = service.workers().iter().map(worker).collect();
    Answer::ok(&json!({ "workers": workers }))
}

fn worker(view: &WorkerView) -> Value {
    let status = &view.status;
    let Registration { pod, rank, tenant, model, vllm, block_size, on_clear, copies } =
        &status.registration;
    let (lane, events) = (status.counters, status.events);
    let (endpoint, replay) = match &view.feed {
        Some(Feed::Source { endpoint, replay, .. }) => (Some(endpoint), replay.as_ref()),
        _ => (None, None),
    };
    // The one in use, where any port was asked for.
    let endpoint = view.source.as_ref().map(|source| &source.endpoint).or(endpoint);
    json!({
        "worker": pod,
        "rank": rank,
        "tenant": tenant,
        "model": model,
        "vllm": vllm.map(|version| version.to_string()),
        "block_size": block_size.map(|size| size.get()),
        "on_clear": on_clear.as_str(),
        "copies": copies.as_str(),
        "endpoint": endpoint.map(ToString::to_string),
        "replay_endpoint": replay.map(ToString::to_string),
        "link": link(view),
        "trust": status.trust.as_str(),
        "reason": status.trust.reason().map(|reason| reason.as_str()),
        "as_of": status.as_of,
        "batches": lane.batches,
        "gaps": lane.gaps,
        "missing": lane.missing,
        "duplicates": lane.duplicates,
        "late": lane.late,
        "restarts": lane.restarts,
        "replay": replay_state(status),
        "audit": status.audit.state.as_str(),
        "audits": {
            "as_of": status.audit.as_of,
            "ok": lane.audits_ok,
            "differed": lane.audits_differed,
            "unfinished": lane.audits_unfinished,
            "missing": status.audit.missing,
            "surplus": status.audit.surplus,
        },
        "events": {
            "stored": events.stored,
            "removed": events.removed,
            "unknown_removals": events.unknown_removals,
            "unknown_parents": events.unknown_parents,
            "cleared": events.cleared,
            "rejected": events.rejected,
            "sparse": events.sparse,
            "other_unit": events.other_unit,
            "refused": events.refused,
            "foreign": events.foreign,
        },
        "unexplained": { "unknown": status.unexplained.unknown, "changes": status.unexplained.changes },
        "groups": status.groups.iter().map(group).collect::<Vec<_>>(),
        "contract": contract(status),
        "warnings": status.warnings().map(|warning| warning.as_str()).collect::<Vec<_>>(),
    })
}

/// What is under way with a worker's replay source; null without one.
fn replay_state(status: &WorkerStatus) -> Value {
    let Some(stage) = status.stage else { return Value::Null };
    let lane = status.counters;
    json!({
        "state": stage.as_str(),
        "held_back": status.held_back,
        "held_back_bytes": status.held_back_bytes,
        "rounds": lane.rounds,
        "replayed": lane.replayed,
        "stale": lane.stale,
        "repaired": lane.repaired,
        "given_up": lane.given_up,
        "rebuilt": lane.rebuilt,
        "overflows": lane.overflows,
    })
}

fn link(view: &WorkerView) -> Value {
    let Some(source) = &view.source else {
        return json!({ "state": if view.feed.is_some() { "shared" } else { "none" } });
    };
    let since = source.since.map(|since| Instant::now().duration_since(since).as_secs_f64());
    json!({
        "state": if source.up { "up" } else { "down" },
        "up_for_seconds": since,
        "messages": source.messages,
        "bytes": source.bytes,
        "disconnects": source.disconnects,
        "failed_handshakes": source.failed_handshakes,
        "violations": source.violations,
        "overruns": source.overruns,
        "refused": source.refused,
        "reconnects": source.redials,
        "malformed_frames": source.malformed_frames,
        "malformed_sequence": source.malformed_sequence,
    })
}

fn group(facts: &GroupFacts) -> Value {
    let (rule, window) = match facts.rule {
        GroupRule::Full => ("full", None),
        GroupRule::Window { tokens } => ("window", Some(tokens)),
        GroupRule::Unannounced => ("unannounced", None),
        GroupRule::NoRule => ("no_rule", None),
    };
    json!({
        "group": facts.group.0,
        "rule": rule,
        "window": window,
        "block_size": facts.shape.size.get(),
        "lookahead": facts.shape.lookahead,
    })
}

/// The detected contract without its root hash and seed: who knows those can predict hashes.
fn contract(worker: &WorkerStatus) -> Value {
    let mut answer = Map::new();
    let name = match &worker.contract {
        Status::Undecided => "undecided",
        Status::Private => "private",
        Status::Verified(contract) => {
            match contract {
                Contract::Vllm(contract) => {
                    answer.insert("engine".into(), "vllm".into());
                    answer.insert("algorithm".into(), contract.algorithm().as_str().into());
                    answer.insert("version".into(), contract.version().to_string().into());
                }
                Contract::Sglang => {
                    answer.insert("engine".into(), "sglang".into());
                }
            }
            if worker.checks.failed > 0 { "contradictory" } else { "verified" }
        }
    };
    answer.insert("status".into(), name.into());
    answer.insert("checked".into(), worker.checks.checked.into());
    answer.insert("failed".into(), worker.checks.failed.into());
    answer.insert("unknown_adapters".into(), json!(worker.unknown_adapters));
    Value::Object(answer)
}
