//! `/v1/admin/clear`: what an operator knows to be gone and no engine has said.

use serde_json::json;

use super::body::Fields;
use super::refusal::HttpError;
use super::{Answer, App};

/// Clears a worker, a model or an adapter: exactly one of them.
pub(super) fn clear(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    fields.only(&["worker", "rank", "model", "adapter", "tenant"])?;
    let tenant = &fields.tenant("tenant")?;
    let (pod, rank) = (fields.text("worker")?, fields.u32("rank")?);
    let (model, adapter) = (fields.text("model")?, fields.text("adapter")?);
    if rank.is_some() && pod.is_none() {
        return Err(HttpError::field("rank", "is one of a worker's: give 'worker', too"));
    }
    match (pod, model, adapter) {
        (Some(pod), None, None) => {
            let cleared = app.service.clear_pod(tenant, &pod, rank)?;
            Ok(Answer::ok(&json!({ "cleared": "worker", "workers": cleared })))
        }
        (None, Some(model), None) => {
            let cleared = app.service.clear_model(tenant, &model)?;
            Ok(Answer::ok(&json!({ "cleared": "model", "workers": cleared })))
        }
        (None, None, Some(adapter)) => {
            app.service.clear_adapter(tenant, &adapter)?;
            Ok(Answer::ok(&json!({ "cleared": "adapter" })))
        }
        (None, None, None) => Err(HttpError::field(
            "worker",
            "missing: give exactly one of 'worker', 'model' and 'adapter'",
        )),
        (_, model, _) => Err(HttpError::field(
            if model.is_some() { "model" } else { "adapter" },
            "too much: give exactly one of 'worker', 'model' and 'adapter'",
        )),
    }
}
