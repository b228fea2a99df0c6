//! The dialect of Dynamo's standalone indexer: numeric instances, routing groups, tokens.

use axum::http::StatusCode;
use kvscout::block::{Lora, Prompt};
use kvscout::ingest::zmq::Mode;
use kvscout::scout::{Blocks, Registration, Request};
use serde_json::{Map, Value, json};

use super::Answer;
use super::body::Fields;
use super::mooncake::{Instance, by_instance};
use super::refusal::HttpError;
use crate::service::{Enrolment, Origin, Service};

/// Registers a worker; the pod is the decimal text of `instance_id`, the tenant the routing group.
pub(super) fn register(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let instance = fields.required_u64("instance_id")?.to_string();
    let model = fields.required_text("model_name")?;
    let registration = Registration {
        rank: fields.u32("dp_rank")?.unwrap_or(0),
        tenant: group(fields)?,
        block_size: Some(fields.required_block_size("block_size")?),
        ..Registration::new(instance, &model)
    };
    let endpoint = fields.required_endpoint("endpoint")?;
    let replay = fields.endpoint("replay_endpoint")?;
    let (mode, origin) = (Mode::Connect, Origin::Requested);
    service.register(Enrolment { registration, endpoint, mode, replay, origin })?;
    Ok(Answer::with(StatusCode::CREATED, &json!({ "status": "ok" })))
}

/// Removes one rank of an instance; without `dp_rank`, all.
pub(super) fn unregister(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let instance = fields.required_u64("instance_id")?.to_string();
    let model = fields.required_text("model_name")?;
    service.unregister(&group(fields)?, &instance, fields.u32("dp_rank")?, Some(&model))?;
    Ok(Answer::ok(&json!({ "status": "ok" })))
}

/// Who holds how much of a prompt.
pub(super) fn query(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let model = fields.required_text("model_name")?;
    let token_ids = fields.tokens("token_ids")?;
    let salt = fields.text("cache_salt")?;
    let lora = fields.text("lora_name")?;
    let lora = lora.as_deref().map(|name| Lora { name, id: None, path: None });
    let prompt = Prompt { lora, cache_salt: salt.as_deref(), ..Prompt::new(&token_ids) };
    let request = Request {
        tenant: &group(fields)?,
        model: Some(&model),
        blocks: Blocks::Prompt(prompt),
        candidates: None,
    };
    let found = service.score(&request, by_instance)?;
    let device = found.iter().map(|(id, instance)| (id.clone(), instance.by_rank(0)));
    let scores: Map<String, Value> = device.collect();
    let instances: Map<String, Value> =
        found.iter().map(|(id, instance)| (id.clone(), tiers(instance))).collect();
    Ok(Answer::ok(&json!({
        "scores": scores,
        // How often blocks were asked for lately, which is not kept; Dynamo's own default.
        "frequencies": [],
        "instances": instances,
    })))
}

/// Cannot be answered: Dynamo's local hashes have a key that is known to all, the index's digests
/// have one that nobody knows, and neither can be made of the other.
pub(super) fn query_by_hash(fields: &Fields<'_>) -> Result<Answer, HttpError> {
    if fields.has("cache_salt") {
        return Err(HttpError::field("cache_salt", "hashes carry their salt; leave it out"));
    }
    fields.names("block_hashes")?;
    Err(HttpError::not_implemented(
        "hashes of single blocks ('block_hashes', XXH3) cannot be looked up: blocks are kept under \
         keyed digests; send 'token_ids' to /query, or the engine's own rolling hashes as \
         'seq_hashes' with 'model' and 'block_size'",
    ))
}

fn tiers(instance: &Instance) -> Value {
    let [gpu, cpu, disk, longest] = instance.best();
    json!({
        "longest_matched": longest, "gpu": gpu, "dp": instance.by_rank(0), "cpu": cpu,
        "disk": disk,
    })
}

/// The partition; `tenant_id` is accepted and means nothing, as in Dynamo.
fn group(fields: &Fields<'_>) -> Result<String, HttpError> {
    let group = fields.text("routing_group")?;
    Ok(group.unwrap_or_else(|| Registration::DEFAULT_TENANT.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn ranks_count_what_they_hold_on_the_device() {
        let ranks = BTreeMap::from([(0, [16, 32, 32, 48]), (1, [32, 32, 32, 32])]);
        let expected = json!({
            "longest_matched": 48, "gpu": 32, "dp": { "0": 16, "1": 32 }, "cpu": 32, "disk": 32,
        });
        assert_eq!(tiers(&Instance { ranks }), expected);
    }
}
