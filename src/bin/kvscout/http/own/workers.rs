//! `/workers`, `/v1/status` and `/ready`: what an operator looks at.

use std::time::Instant;

use axum::http::StatusCode;
use kvscout::ingest::verify::Contract;
use kvscout::score::{GroupFacts, GroupRule};
use kvscout::scout::{Registration, WorkerStatus};
use serde_json::{Map, Value, json};

use super::super::body::Fields;
use super::super::refusal::HttpError;
use super::super::{Answer, App};
use crate::service::{Record, WorkerView, contract_state, histogram};

/// Whether the daemon is ready; otherwise, what is missing.
pub(in super::super) fn ready(app: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    Ok(match app.service.readiness() {
        Ok(()) => Answer::ok(&json!({ "ready": true })),
        Err(reason) => {
            let answer = json!({ "ready": false, "reason": reason });
            Answer::with(StatusCode::SERVICE_UNAVAILABLE, &answer)
        }
    })
}

/// Every worker as an operator needs it.
pub(in super::super) fn workers(app: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    let workers: Vec<Value> = app.service.workers().iter().map(worker).collect();
    Ok(Answer::ok(&json!({ "workers": workers })))
}

/// The daemon at a glance.
pub(in super::super) fn status(app: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    Ok(Answer::ok(&app.service.status()))
}

fn worker(view: &WorkerView) -> Value {
    let status = &view.status;
    let Registration { pod, rank, tenant, model, vllm, block_size, on_clear, copies, .. } =
        &status.registration;
    let (lane, events) = (status.counters, status.events);
    let (endpoint, replay) = (view.endpoint(), view.replay());
    json!({
        "worker": pod,
        "rank": rank,
        "tenant": tenant,
        "model": model,
        "vllm": vllm.map(|version| version.to_string()),
        "block_size": block_size.map(|size| size.get()),
        "on_clear": on_clear.as_str(),
        "copies": copies.as_str(),
        "labels": view.labels,
        "endpoint": endpoint.map(ToString::to_string),
        "replay_endpoint": replay.map(ToString::to_string),
        "link": link(view),
        "trust": status.trust.as_str(),
        "reason": status.trust.reason().map(|reason| reason.as_str()),
        "as_of": status.as_of,
        "lag_seconds": view.heard.and_then(|heard| heard.lag).map(|lag| lag.as_secs_f64()),
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
            "since": status.audit.since,
            "ok": lane.audits_ok,
            "differed": lane.audits_differed,
            "anchored": lane.audits_anchored,
            "mended": lane.mended,
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
        "receipts": view.receipts.as_ref().map(receipts),
        "warnings": view.warnings().collect::<Vec<_>>(),
    })
}

/// What was expected and what was delivered, as far as routers said.
fn receipts(record: &Record) -> Value {
    json!({
        "kept": record.kept,
        "over": record.over,
        "under": record.under,
        "expected_tokens": record.expected_tokens,
        "delivered_tokens": record.delivered_tokens,
        "off_by_tokens": histogram(record),
        "is_off": record.is_off,
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
        return json!({ "state": view.link() });
    };
    let since = source.since.map(|since| Instant::now().duration_since(since).as_secs_f64());
    json!({
        "state": view.link(),
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

pub(super) fn group(facts: &GroupFacts) -> Value {
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
    let (name, contract) = contract_state(worker);
    let since = contract.and_then(Contract::plain_since).map(|since| since.to_string());
    match contract {
        Some(Contract::Vllm(contract)) => {
            answer.insert("engine".into(), "vllm".into());
            answer.insert("plain_since".into(), since.into());
            answer.insert("algorithm".into(), contract.algorithm().as_str().into());
            answer.insert("version".into(), contract.version().to_string().into());
        }
        Some(Contract::Sglang) => {
            answer.insert("engine".into(), "sglang".into());
        }
        None => {}
    }
    answer.insert("status".into(), name.into());
    answer.insert("checked".into(), worker.checks.checked.into());
    answer.insert("failed".into(), worker.checks.failed.into());
    answer.insert("unknown_adapters".into(), json!(worker.unknown_adapters));
    Value::Object(answer)
}
