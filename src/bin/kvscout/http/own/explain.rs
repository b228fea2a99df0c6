//! `/v1/explain`: why each worker scored what it did, block by block.

use kvscout::scout::{Divergence, Explained, ExplainedGroup, Missing, Stretch};
use serde_json::{Value, json};

use super::super::body::Fields;
use super::super::refusal::HttpError;
use super::super::{Answer, App};
use super::question;
use super::workers::group;

/// Explains a question's answer.
pub(in super::super) fn explain(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    let question = question(app, &fields, &[])?;
    let (explained, unknown) = app.service.explain(&question)?;
    let workers: Vec<Value> = explained.iter().map(worker).collect();
    let mut answer = json!({ "workers": workers });
    if !unknown.is_empty() {
        answer["unknown_candidates"] = json!(unknown);
    }
    Ok(Answer::ok(&answer))
}

fn worker(explained: &Explained) -> Value {
    let Explained { pod, rank, trust, as_of, computes_names, groups, .. } = explained;
    json!({
        "worker": pod,
        "rank": rank,
        "as_of": as_of,
        "trust": trust.as_str(),
        "reason": trust.reason().map(|reason| reason.as_str()),
        "computes_names": computes_names,
        "groups": groups.iter().map(held).collect::<Vec<_>>(),
    })
}

fn held(explained: &ExplainedGroup) -> Value {
    let ExplainedGroup { facts, blocks, leading, stretches, is_cut, divergence } = explained;
    let [gpu, cpu, disk, remote] = leading;
    let mut answer = group(facts);
    answer["blocks"] = json!(blocks);
    answer["leading"] = json!({ "gpu": gpu, "cpu": cpu, "disk": disk, "remote": remote });
    answer["held"] = stretches.iter().map(stretch).collect();
    answer["is_cut"] = json!(is_cut);
    answer["divergence"] = divergence.as_ref().map_or(Value::Null, missing);
    answer
}

fn stretch(stretch: &Stretch) -> Value {
    let Stretch { from, to, tier, known_by } = stretch;
    json!({ "from": from, "to": to, "tier": tier.as_str(), "known_by": known_by.as_str() })
}

fn missing(divergence: &Divergence) -> Value {
    let Divergence { block, why } = divergence;
    let mut answer = json!({ "block": block, "why": why.as_str() });
    if let Missing::Hole { next } = why {
        answer["next_block"] = json!(next);
    }
    answer
}
