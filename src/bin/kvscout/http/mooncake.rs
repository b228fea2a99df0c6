//! Mooncake's dialect (RFC #1403): counts are tokens, tiers are cumulative.

use std::collections::BTreeMap;

use kvscout::block::{BlockSize, Lora, Prompt};
use kvscout::ingest::zmq::Mode;
use kvscout::scout::{Blocks, Ranked, Registration, Request};
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::refusal::HttpError;
use super::{Answer, MooncakeAnswer};
use crate::service::{Enrolment, Origin, Refusal, Service};

/// The publishers that may register.
const TYPES: [&str; 3] = ["vLLM", "SGLang", "Mooncake"];

/// The fields of a registration that both documented forms require, and what kvscout makes of the
/// rest: `lora_name` registers an adapter of the model; `additionalsalt`, `hash_profile` and
/// `cache_group` are accepted, since the contract is detected from the engine's own events.
pub(super) fn register(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let endpoint = fields.required_endpoint("endpoint")?;
    let kind = fields.required_text("type")?;
    if !TYPES.contains(&kind.as_str()) {
        return Err(HttpError::field("type", format!("expected one of {}", TYPES.join(", "))));
    }
    let model = fields.required_text("modelname")?;
    let instance = fields.required_text("instance_id")?;
    let tenant = tenant(fields)?;
    let registration = Registration {
        rank: fields.required_u32("dp_rank")?,
        tenant: tenant.clone(),
        block_size: Some(fields.required_block_size("block_size")?),
        ..Registration::new(&instance, &model)
    };
    let replay = fields.endpoint("replay_endpoint")?;
    let lora = fields.text("lora_name")?;
    let (mode, origin) = (Mode::Connect, Origin::Requested);
    service.register(Enrolment { registration, endpoint, mode, replay, origin })?;
    if let Some(lora) = lora {
        service.register_adapter(&tenant, &lora, &model);
    }
    Ok(Answer::ok(&json!({ "status": "registered successfully", "instance_id": instance })))
}

/// Removes the worker of (instance, tenant, rank); without a rank, all of the instance.
pub(super) fn unregister(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let instance = fields.required_text("instance_id")?;
    let tenant = tenant(fields)?;
    let ranks = service.unregister(&tenant, &instance, fields.u32("dp_rank")?, None)?;
    let removed: Vec<_> = ranks.iter().map(|rank| format!("{instance}|{tenant}|{rank}")).collect();
    Ok(Answer::ok(&json!({
        "status": "unregistered successfully",
        "removed_instances": removed,
    })))
}

/// Who holds how much of a prompt. Its `block_size` is checked and otherwise left aside: the one in
/// each engine's events counts.
pub(super) fn query(
    service: &Service,
    fields: &Fields<'_>,
    form: MooncakeAnswer,
) -> Result<Answer, HttpError> {
    fields.block_size("block_size")?;
    let token_ids = fields.tokens("token_ids")?;
    let salt = fields.text("cache_salt")?;
    let lora = fields.text("lora_name")?;
    if lora.is_none() && fields.i64("lora_id")?.is_some_and(|id| id > 0) {
        return Err(HttpError::field("lora_id", "names no adapter; give 'lora_name'"));
    }
    let id = fields.i64("lora_id")?;
    let lora = lora.as_deref().map(|name| Lora { name, id, path: None });
    let prompt = Prompt { lora, cache_salt: salt.as_deref(), ..Prompt::new(&token_ids) };
    ask(service, fields, Blocks::Prompt(prompt), form)
}

/// The same by the rolling hashes that the engines themselves give the blocks.
pub(super) fn query_by_hash(
    service: &Service,
    fields: &Fields<'_>,
    form: MooncakeAnswer,
) -> Result<Answer, HttpError> {
    let name = if fields.has("block_hash") { "block_hash" } else { "seq_hashes" };
    let names = fields.names(name)?;
    let block_size: BlockSize = fields.required_block_size("block_size")?;
    ask(service, fields, Blocks::Names { names: &names, block_size }, form)
}

fn ask(
    service: &Service,
    fields: &Fields<'_>,
    blocks: Blocks<'_>,
    form: MooncakeAnswer,
) -> Result<Answer, HttpError> {
    let name = if fields.has("model") { "model" } else { "modelname" };
    let model = fields.required_text(name)?;
    let tenant = tenant(fields)?;
    let instance = fields.text("instance_id")?;
    let only = instance.map(|instance| service.workers_of(&tenant, &instance, None));
    let request =
        Request { tenant: &tenant, model: Some(&model), blocks, candidates: only.as_deref() };
    let instances = match service.score(&request, by_instance) {
        Ok(instances) => instances,
        // Nobody serves it: nobody holds anything of it.
        Err(Refusal::UnknownModel(_)) => BTreeMap::new(),
        Err(refusal) => return Err(refusal.into()),
    };
    Ok(Answer::ok(&match form {
        // A tenant of which nobody answers is left out: the map of an unknown model is empty.
        MooncakeAnswer::Doc if instances.is_empty() => json!({}),
        MooncakeAnswer::Doc => json!({ tenant: map(instances, doc) }),
        MooncakeAnswer::Branch => json!({ "instances": map(instances, branch) }),
    }))
}

fn map(instances: BTreeMap<String, Instance>, form: fn(&Instance) -> Value) -> Value {
    Value::Object(instances.iter().map(|(id, instance)| (id.clone(), form(instance))).collect())
}

fn doc(instance: &Instance) -> Value {
    let [gpu, cpu, disk, longest] = instance.best();
    json!({
        "longest_matched": longest, "GPU": gpu, "CPU": cpu, "DISK": disk,
        "DP": instance.by_rank(3),
    })
}

fn branch(instance: &Instance) -> Value {
    let [gpu, cpu, disk, longest] = instance.best();
    let ranks = instance.ranks.iter().map(|(rank, [gpu, cpu, disk, _])| {
        (rank.to_string(), json!({ "gpu": gpu, "cpu": cpu, "disk": disk }))
    });
    let ranks: Map<String, Value> = ranks.collect();
    json!({
        "longest_matched": longest, "gpu": gpu, "cpu": cpu, "disk": disk,
        "dp": instance.by_rank(3), "rank_matches": ranks,
    })
}

fn tenant(fields: &Fields<'_>) -> Result<String, HttpError> {
    let tenant = fields.text("tenant_id")?;
    Ok(tenant.unwrap_or_else(|| Registration::DEFAULT_TENANT.to_owned()))
}

/// What the ranks of one pod hold, in tokens: cumulative by tier, the last one over all of them.
#[derive(Debug, Default)]
pub(super) struct Instance {
    pub(super) ranks: BTreeMap<u32, [u32; 4]>,
}

impl Instance {
    /// The most that any rank holds, tier by tier.
    pub(super) fn best(&self) -> [u32; 4] {
        let tier = |t: usize| self.ranks.values().map(|tokens| tokens[t]).max().unwrap_or(0);
        [tier(0), tier(1), tier(2), tier(3)]
    }

    /// One tier's tokens by rank.
    pub(super) fn by_rank(&self, tier: usize) -> Value {
        let ranks = self.ranks.iter();
        Value::Object(ranks.map(|(r, tokens)| (r.to_string(), tokens[tier].into())).collect())
    }
}

/// An answer grouped by pod; pods that hold nothing are in it, too.
pub(super) fn by_instance(ranked: &[Ranked<'_>]) -> BTreeMap<String, Instance> {
    let mut instances: BTreeMap<String, Instance> = BTreeMap::new();
    for worker in ranked {
        let instance = instances.entry(worker.pod.to_string()).or_default();
        instance.ranks.insert(worker.rank, worker.score.tier_tokens);
    }
    instances
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_ranks() -> Instance {
        Instance { ranks: BTreeMap::from([(0, [16, 32, 32, 48]), (1, [32, 32, 32, 32])]) }
    }

    #[test]
    fn the_documented_answer_has_upper_case_tiers_and_ranks() {
        let expected = json!({
            "longest_matched": 48, "GPU": 32, "CPU": 32, "DISK": 32, "DP": { "0": 48, "1": 32 },
        });
        assert_eq!(doc(&two_ranks()), expected);
    }

    #[test]
    fn the_answer_of_the_branch_adds_the_tiers_of_each_rank() {
        let expected = json!({
            "longest_matched": 48, "gpu": 32, "cpu": 32, "disk": 32, "dp": { "0": 48, "1": 32 },
            "rank_matches": {
                "0": { "gpu": 16, "cpu": 32, "disk": 32 },
                "1": { "gpu": 32, "cpu": 32, "disk": 32 },
            },
        });
        assert_eq!(branch(&two_ranks()), expected);
    }
}
