//! Mooncake's dialect (RFC #1403): counts are tokens, tiers are cumulative.

use std::collections::BTreeMap;

use kvscout::block::{BlockSize, Lora, Prompt};
use kvscout::ingest::verify::{Contract, Status};
use kvscout::ingest::zmq::Mode;
use kvscout::scout::{Blocks, Registration, Request};
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::own;
use super::refusal::HttpError;
use super::{Answer, App, MooncakeAnswer, profile};
use crate::service::{Enrolment, Origin, Refusal, Row, Service, WorkerView};

/// The publishers that may register.
const TYPES: [&str; 3] = ["vLLM", "SGLang", "Mooncake"];

/// The fields of each request. Mooncake's C++ implementation refuses others, so that a misspelt tenant is
/// no silent miss; its API document says nothing of them.
const REGISTER: [&str; 14] = [
    "endpoint",
    "replay_endpoint",
    "type",
    "modelname",
    "instance_id",
    "block_size",
    "dp_rank",
    "tenant_id",
    "lora_name",
    "additionalsalt",
    "additional_salt",
    "hash_profile",
    "cache_group",
    "labels",
];
const UNREGISTER: [&str; 3] = ["instance_id", "tenant_id", "dp_rank"];
const QUERY: [&str; 10] = [
    "model",
    "modelname",
    "block_size",
    "token_ids",
    "tenant_id",
    "lora_name",
    "lora_id",
    "cache_salt",
    "instance_id",
    "cache_group",
];
const QUERY_BY_HASH: [&str; 8] = [
    "model",
    "modelname",
    "block_size",
    "seq_hashes",
    "block_hash",
    "tenant_id",
    "instance_id",
    "cache_group",
];

/// Refuses other fields where the C++ implementation is meant, and in any case another cache group than the one
/// that there is for Mooncake: an answer about all of them would be taken for that group's.
fn check(fields: &Fields<'_>, form: MooncakeAnswer, known: &[&str]) -> Result<(), HttpError> {
    if fields.u32("cache_group")?.is_some_and(|group| group != 0) {
        return Err(HttpError::field(
            "cache_group",
            "expected 0 or null: no other group can be asked about alone",
        ));
    }
    match form {
        MooncakeAnswer::Doc => Ok(()),
        MooncakeAnswer::Branch => fields.only(known),
    }
}

/// The fields of a registration that both documented forms require, and what kvscout makes of the
/// rest: `lora_name` registers an adapter of the model; `hash_profile` counts until the publisher's own
/// events show something else; `additionalsalt` is accepted and means nothing.
pub(super) fn register(
    service: &Service,
    fields: &Fields<'_>,
    form: MooncakeAnswer,
) -> Result<Answer, HttpError> {
    check(fields, form, &REGISTER)?;
    let endpoint = fields.required_endpoint("endpoint")?;
    let kind = fields.required_text("type")?;
    if !TYPES.contains(&kind.as_str()) {
        return Err(HttpError::field("type", format!("expected one of {}", TYPES.join(", "))));
    }
    let model = fields.required_name("modelname")?;
    let instance = fields.required_name("instance_id")?;
    let tenant = fields.bounded("tenant_id", tenant(fields)?)?;
    let registration = Registration {
        rank: fields.required_u32("dp_rank")?,
        tenant,
        block_size: Some(fields.required_block_size("block_size")?),
        contract: profile::read(fields)?,
        ..Registration::new(&instance, &model)
    };
    let replay = fields.endpoint("replay_endpoint")?;
    let lora = fields.name("lora_name")?;
    let (mode, origin) = (Mode::Connect, Origin::Requested);
    let labels = own::labels(fields)?;
    let enrolment = Enrolment { registration, endpoint, mode, replay, origin, labels };
    match lora {
        Some(lora) => service.register_with_adapter(enrolment, &lora, &model)?,
        None => service.register(enrolment)?,
    }
    Ok(Answer::ok(&json!({ "status": "registered successfully", "instance_id": instance })))
}

/// Removes the worker of (instance, tenant, rank); without a rank, all of the instance.
pub(super) fn unregister(
    service: &Service,
    fields: &Fields<'_>,
    form: MooncakeAnswer,
) -> Result<Answer, HttpError> {
    check(fields, form, &UNREGISTER)?;
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
    check(fields, form, &QUERY)?;
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
    check(fields, form, &QUERY_BY_HASH)?;
    let name = if fields.has("block_hash") { "block_hash" } else { "seq_hashes" };
    let names = fields.names(name)?;
    let block_size: BlockSize = fields.required_block_size("block_size")?;
    ask(service, fields, Blocks::Names { names: &names, block_size }, form)
}

/// What is registered for which model: `contexts`, without seeds and root hashes.
pub(super) fn global_view(app: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    type Context = (Option<String>, String, Option<u32>);
    let mut contexts: BTreeMap<Context, (BTreeMap<String, Vec<u32>>, Value)> = BTreeMap::new();
    for view in app.service.workers() {
        let Registration { pod, rank, tenant, model, .. } = &view.status.registration;
        let context = (model.clone(), tenant.clone(), block_size(&view));
        let (instances, profile) = contexts.entry(context).or_default();
        instances.entry(pod.clone()).or_default().push(*rank);
        if profile.is_null() {
            *profile = profile::of(&view.status);
        }
    }
    let contexts: Vec<Value> = contexts
        .into_iter()
        .map(|((model, tenant, block_size), (instances, profile))| {
            json!({
                "model_name": model, "lora_name": "", "block_size": block_size,
                "tenant_id": tenant, "hash_profile": profile, "instances": instances,
            })
        })
        .collect();
    Ok(Answer::ok(&json!({ "context_count": contexts.len(), "contexts": contexts })))
}

/// Every worker as it could be registered.
pub(super) fn services(app: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    let services: Vec<Value> = app.service.workers().iter().map(service_of).collect();
    Ok(Answer::ok(&json!({ "count": services.len(), "services": services })))
}

fn service_of(view: &WorkerView) -> Value {
    let Registration { pod, rank, tenant, model, .. } = &view.status.registration;
    let kind = match &view.status.contract {
        Status::Verified(Contract::Sglang) => Some("SGLang"),
        Status::Verified(Contract::Vllm(_)) => Some("vLLM"),
        _ => None,
    };
    json!({
        "endpoint": view.endpoint().map(ToString::to_string),
        "replay_endpoint": view.replay().map(ToString::to_string),
        "type": kind, "modelname": model, "tenant_id": tenant, "instance_id": pod,
        "block_size": block_size(view), "dp_rank": rank,
        "hash_profile": profile::of(&view.status),
    })
}

/// The one in the engine's events; before those, the one that was registered.
pub(super) fn block_size(view: &WorkerView) -> Option<u32> {
    let announced = view.status.groups.first().map(|facts| facts.shape.size);
    announced.or(view.status.registration.block_size).map(BlockSize::get)
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
    fields.tenant("tenant_id")
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

    /// Takes what another answer says of the same ranks, where that is more.
    pub(super) fn add(&mut self, other: &Instance) {
        for (&rank, tokens) in &other.ranks {
            let most = self.ranks.entry(rank).or_default();
            most.iter_mut().zip(tokens).for_each(|(most, tokens)| *most = (*most).max(*tokens));
        }
    }

    /// One tier's tokens by rank.
    pub(super) fn by_rank(&self, tier: usize) -> Value {
        let ranks = self.ranks.iter();
        Value::Object(ranks.map(|(r, tokens)| (r.to_string(), tokens[tier].into())).collect())
    }
}

/// An answer grouped by pod; pods that hold nothing are in it, too.
pub(super) fn by_instance(rows: &[Row<'_>]) -> BTreeMap<String, Instance> {
    let mut instances: BTreeMap<String, Instance> = BTreeMap::new();
    for Row { ranked: worker, .. } in rows {
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
