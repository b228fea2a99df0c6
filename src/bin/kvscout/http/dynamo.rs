//! The dialect of Dynamo's standalone indexer: numeric instances, routing groups, tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use kvscout::block::{BlockSize, Lora, Name, Prompt, Tier};
use kvscout::ingest::zmq::Mode;
use kvscout::scout::{Blocks, Registration, Request};
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::mooncake::{Instance, block_size, by_instance};
use super::own;
use super::refusal::HttpError;
use super::{Answer, App};
use crate::service::dump::{Block, Stored, told_by_hash};
use crate::service::{Enrolment, Origin, Refusal, Service, WorkerView};

/// Registers a worker; the pod is the decimal text of `instance_id`, the tenant the routing group.
pub(super) fn register(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let instance = fields.required_u64("instance_id")?.to_string();
    let model = fields.required_name("model_name")?;
    let registration = Registration {
        rank: fields.u32("dp_rank")?.unwrap_or(0),
        tenant: fields.bounded("routing_group", group(fields)?)?,
        block_size: Some(fields.required_block_size("block_size")?),
        ..Registration::new(instance, &model)
    };
    let endpoint = fields.required_endpoint("endpoint")?;
    let replay = fields.endpoint("replay_endpoint")?;
    let (mode, origin) = (Mode::Connect, Origin::Requested);
    let labels = own::labels(fields)?;
    service.register(Enrolment { registration, endpoint, mode, replay, origin, labels })?;
    Ok(Answer::with(StatusCode::CREATED, &json!({ "status": "ok" })))
}

/// Removes one rank of an instance; without `dp_rank`, all, and without `routing_group` in whatever group it is.
pub(super) fn unregister(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let instance = fields.required_u64("instance_id")?.to_string();
    let model = fields.required_text("model_name")?;
    let (rank, group) = (fields.u32("dp_rank")?, fields.tenant_or_all("routing_group")?);
    match group {
        Some(group) => service.unregister(&group, &instance, rank, Some(&model)).map(drop)?,
        None => service.unregister_everywhere(&instance, rank, &model)?,
    }
    Ok(Answer::ok(&json!({ "status": "ok" })))
}

/// What Dynamo's workers put before a salt when they hand it to vLLM, so that it is told from other extra keys
/// (dynamo-kv-router 1.6, `DYNAMO_CACHE_SALT_PREFIX`).
const SALT_MARK: &str = "dynamo-cache-salt:";

/// Who holds how much of a prompt. A salt is looked for as engines behind Dynamo have it; where nobody holds anything under
/// that, as it is.
pub(super) fn query(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let model = fields.required_text("model_name")?;
    let token_ids = fields.tokens("token_ids")?;
    let salt = fields.text("cache_salt")?;
    let lora = fields.text("lora_name")?;
    let lora = lora.as_deref().map(|name| Lora { name, id: None, path: None });
    let tenant = group(fields)?;
    let ask = |cache_salt: Option<&str>| {
        let prompt = Prompt { lora, cache_salt, ..Prompt::new(&token_ids) };
        let (blocks, candidates) = (Blocks::Prompt(prompt), None);
        let request = Request { tenant: &tenant, model: Some(&model), blocks, candidates };
        service.score(&request, by_instance)
    };
    if let Some(salt) = &salt {
        let found = ask(Some(&format!("{SALT_MARK}{salt}")))?;
        if found.values().any(|instance| instance.best()[3] > 0) {
            return Ok(scores(&found));
        }
    }
    Ok(scores(&ask(salt.as_deref())?))
}

fn scores(found: &BTreeMap<String, Instance>) -> Answer {
    let device = found.iter().map(|(id, instance)| (id.clone(), instance.by_rank(0)));
    let scores: Map<String, Value> = device.collect();
    let instances: Map<String, Value> =
        found.iter().map(|(id, instance)| (id.clone(), tiers(instance))).collect();
    Answer::ok(&json!({
        "scores": scores,
        // How often blocks were asked for lately. Dynamo's own indexes leave it empty, too (dynamo-kv-router 1.6).
        "frequencies": [],
        "instances": instances,
    }))
}

/// The same by Dynamo's hashes of single blocks, where they are kept: they have a key that is known to
/// all, the index's digests have one that nobody knows, and neither can be made of the other.
pub(super) fn query_by_hash(app: &App, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    if fields.has("cache_salt") {
        return Err(HttpError::field("cache_salt", "hashes carry their salt; leave it out"));
    }
    let mut found: BTreeMap<String, Instance> = BTreeMap::new();
    for (_, instances) in by_hash(app, fields)? {
        for (pod, instance) in instances {
            found.entry(pod).or_default().add(&instance);
        }
    }
    Ok(scores(&found))
}

/// What a router of Dynamo's asks whose index is elsewhere (`--remote-indexer-url`): blocks, and for each
/// tier those beyond the faster ones. It has no word for a pod whose name is no number.
pub(super) fn query_tiered_by_hash(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    if !fields.has("block_hashes") && fields.has("seq_hashes") {
        return Err(HttpError::field(
            "seq_hashes",
            "this asks by 'block_hashes', of single blocks",
        ));
    }
    let found = by_hash(app, &fields)?;
    // One size is all that Dynamo knows of a model: the one of whoever holds most, else of anybody.
    let longest = |instances: &BTreeMap<String, Instance>| {
        instances.values().map(|instance| instance.best()[3]).max().unwrap_or(0)
    };
    let best = found.iter().max_by_key(|(size, instances)| (longest(instances), size.get()));
    let block_size = best.map_or(BlockSize::DEFAULT, |(&size, _)| size);
    let mut tiers: [Vec<Value>; 4] = Default::default();
    for (size, instances) in &found {
        let ranks = instances.iter().filter_map(|(pod, instance)| {
            let id: u64 = pod.parse().ok()?;
            Some(instance.ranks.iter().map(move |(rank, tokens)| (id, rank, tokens)))
        });
        for (worker_id, dp_rank, tokens) in ranks.flatten() {
            let mut before = 0;
            for (tier, tokens) in tiers.iter_mut().zip(tokens) {
                let blocks = tokens / size.get();
                if blocks > before {
                    let worker = json!({ "worker_id": worker_id, "dp_rank": dp_rank });
                    tier.push(json!([worker, blocks - before]));
                }
                before = blocks.max(before);
            }
        }
    }
    let [device, below @ ..] = tiers;
    let below = [Tier::Cpu, Tier::Disk, Tier::Remote].map(storage_tier).into_iter().zip(below);
    let below = below.filter(|(_, hits)| !hits.is_empty());
    let lower_tier: Vec<Value> =
        below.map(|(tier, hits)| json!([tier, { "hits": hits }])).collect();
    Ok(Answer::ok(&json!({
        "block_size": block_size.get(),
        "tiered": { "device": { "scores": device, "frequencies": [] }, "lower_tier": lower_tier },
    })))
}

/// Who holds how much of the blocks that these hashes mean, for each way to cut prompts.
fn by_hash(
    app: &App,
    fields: &Fields<'_>,
) -> Result<BTreeMap<BlockSize, BTreeMap<String, Instance>>, HttpError> {
    let model = fields.required_text("model_name")?;
    let names = fields.names("block_hashes")?;
    // Whether it may ask comes before whether there is an answer.
    let tenant = group(fields)?;
    if !app.dynamo_hashes {
        return Err(HttpError::not_implemented(
            "hashes of single blocks ('block_hashes', XXH3) are not kept: blocks are known by keyed \
             digests; set dialects.dynamo_hashes = true, or send 'token_ids' to /query, or the \
             engine's own rolling hashes as 'seq_hashes' with 'model' and 'block_size'",
        ));
    }
    let hashes: Vec<u64> = names.into_iter().map(|Name(hash)| hash).collect();
    // Whoever cuts prompts otherwise is asked in its own way.
    let asked = app.service.block_sizes(&tenant, &model)?.into_iter().map(|block_size| {
        let request = Request {
            tenant: &tenant,
            model: Some(&model),
            blocks: Blocks::Local { hashes: &hashes, block_size },
            candidates: None,
        };
        Ok((block_size, app.service.score(&request, by_instance)?))
    });
    asked.collect()
}

/// The instances of a model and a routing group; of all where those are not given.
pub(super) fn workers(service: &Service, fields: &Fields<'_>) -> Result<Answer, HttpError> {
    let (model, group) = (fields.text("model_name")?, fields.text("routing_group")?);
    let mut instances: BTreeMap<(String, String), Vec<WorkerView>> = BTreeMap::new();
    for view in service.workers() {
        let Registration { pod, tenant, model: serves, .. } = &view.status.registration;
        let other_model = serves.is_some() && model.is_some() && *serves != model;
        if other_model || group.as_ref().is_some_and(|group| group != tenant) {
            continue;
        }
        instances.entry((tenant.clone(), pod.clone())).or_default().push(view);
    }
    let instances = instances.iter().map(|((group, pod), ranks)| instance(group, pod, ranks));
    Ok(Answer::ok(&instances.collect::<Vec<_>>()))
}

/// Dynamo's `WorkerInfo`.
fn instance(group: &str, pod: &str, ranks: &[WorkerView]) -> Value {
    let (mut endpoints, mut listeners) = (Map::new(), Map::new());
    for view in ranks {
        // One that a topic registered has none of its own.
        let Some(endpoint) = view.endpoint().map(ToString::to_string) else { continue };
        let rank = view.status.registration.rank.to_string();
        let listener = json!({ "endpoint": &endpoint, "status": listener_status(view) });
        listeners.insert(rank.clone(), listener);
        endpoints.insert(rank, endpoint.into());
    }
    let is_active = ranks.iter().all(|view| listener_status(view) == ACTIVE);
    json!({
        "instance_id": instance_id(pod), "source": "zmq", "status": if is_active { ACTIVE } else { PENDING },
        "model_name": ranks.iter().find_map(|view| view.status.registration.model.as_deref()),
        "routing_group": group, "block_size": ranks.iter().find_map(block_size),
        "endpoints": endpoints, "listeners": listeners,
    })
}

/// What Dynamo says of a publisher that is connected, and of one that is dialled. It knows two more: nobody pauses
/// a publisher here, and none is given up.
const ACTIVE: &str = "active";
const PENDING: &str = "pending";

fn listener_status(view: &WorkerView) -> &'static str {
    match view.link() {
        "up" | "shared" => ACTIVE,
        _ => PENDING,
    }
}

/// Everything that is held, as events that would bring it about: names, no tokens and no salts; where Dynamo's
/// hashes are kept, what of it an index of Dynamo's can take.
pub(super) fn dump(app: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    let Ok(_turn) = Arc::clone(&app.snapshots).try_acquire_owned() else {
        let busy = "a dump or a snapshot is being made; try again later".to_owned();
        return Err(Refusal::Busy(busy).into());
    };
    let (mut answer, mut number) = (Map::new(), 0_u64);
    for (context, stored) in app.service.dump()? {
        let stored = if app.dynamo_hashes { told_by_hash(stored) } else { stored };
        let mut key = format!("{}:{}", context.model.as_deref().unwrap_or(""), context.tenant);
        if answer.contains_key(&key) {
            // Engines of one model that cut blocks differently.
            key = format!("{key}:{}", context.block_size);
        }
        let events = stored.iter().map(|stored| {
            number += 1;
            event(number - 1, stored)
        });
        let events: Vec<Value> = events.collect();
        answer.insert(key, json!({ "block_size": context.block_size.get(), "events": events }));
    }
    Ok(Answer::ok(&answer))
}

/// Dynamo's `RouterEvent`.
fn event(number: u64, stored: &Stored) -> Value {
    let Stored { pod, rank, tier, at, parent, blocks, .. } = stored;
    let block = |&Block { name, hash }: &Block| match hash {
        Some(hash) => json!({ "block_hash": name.0, "tokens_hash": hash }),
        None => json!({ "block_hash": name.0 }),
    };
    let blocks: Vec<Value> = blocks.iter().map(block).collect();
    let parent = parent.map(|name| name.0);
    json!({
        "worker_id": instance_id(pod), "storage_tier": storage_tier(*tier),
        "event": {
            "event_id": number, "dp_rank": rank,
            "data": { "stored": { "parent_hash": parent, "start_position": at, "blocks": blocks } },
        },
    })
}

/// Dynamo's name for a tier.
fn storage_tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Gpu => "device",
        Tier::Cpu => "host_pinned",
        Tier::Disk => "disk",
        Tier::Remote | Tier::Unknown => "external",
    }
}

/// A number, as it was registered; a pod of another name has none.
fn instance_id(pod: &str) -> Value {
    pod.parse::<u64>().map_or_else(|_| json!(pod), |id| json!(id))
}

/// Adds a replica to the list; doing so again changes nothing.
pub(super) fn register_peer(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    let url = fields.required_text("url")?;
    if !(url.starts_with("http://") || url.starts_with("https://")) || url.contains('@') {
        // Not repeated: there may be a password in it.
        return Err(HttpError::field("url", "expected http://host:port"));
    }
    app.service.add_peer(url)?;
    Ok(Answer::with(StatusCode::CREATED, &json!({ "status": "ok" })))
}

/// Takes a replica from the list.
pub(super) fn deregister_peer(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    app.service.remove_peer(&fields.required_text("url")?)?;
    Ok(Answer::ok(&json!({ "status": "ok" })))
}

/// The list.
pub(super) fn peers(app: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    Ok(Answer::ok(&app.service.peers()))
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
    fields.tenant("routing_group")
}

#[cfg(test)]
mod tests {
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
