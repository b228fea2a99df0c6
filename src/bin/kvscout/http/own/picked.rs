//! `/v1/picked` and `/v1/receipt`: what became of an answer.

use serde_json::json;

use super::super::body::Fields;
use super::super::refusal::HttpError;
use super::super::{Answer, App};
use super::question;
use crate::service::Candidate;

/// Remembers that a worker was picked for a prompt.
pub(in super::super) fn picked(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    let question = question(app, &fields, &["worker", "rank"])?;
    if question.candidates.is_some() || question.labels.is_some() {
        let name = if question.candidates.is_some() { "candidates" } else { "labels" };
        return Err(HttpError::field(name, "a pick is of one worker: give 'worker'"));
    }
    let blocks = app.service.picked(&question, &worker(&fields)?)?;
    Ok(Answer::ok(&json!({ "predicted_blocks": blocks })))
}

/// Notes what an engine reported as cached.
pub(in super::super) fn receipt(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    fields.only(&["worker", "rank", "tenant", "expected_cached_tokens", "cached_tokens"])?;
    let tenant = fields.tenant("tenant")?;
    let expected = fields.required_u32("expected_cached_tokens")?;
    let delivered = fields.required_u32("cached_tokens")?;
    let verdict = app.service.receipt(&tenant, &worker(&fields)?, expected, delivered)?;
    Ok(Answer::ok(&json!({ "verdict": verdict.as_str() })))
}

fn worker(fields: &Fields<'_>) -> Result<Candidate, HttpError> {
    Ok(Candidate { pod: fields.required_text("worker")?, rank: fields.u32("rank")? })
}
