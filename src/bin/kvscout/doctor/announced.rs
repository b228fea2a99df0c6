//! What an engine's events say of its blocks: how they are hashed, cut and told apart.

use kvscout::hash::vllm::{self, Root};
use kvscout::ingest::Trust;
use kvscout::ingest::verify::{COMMON_SEEDS, Checks, Contract, Status};
use kvscout::scout::Warning;

use super::diagnosis::{Facts, Findings, Level};

/// A prompt of fewer tokens is common.
const SHORT_PROMPT: u32 = 128;

/// How its hashes are made.
pub(super) fn contract(facts: &Facts<'_>, out: &mut Findings) {
    for worker in &facts.workers {
        let rank = worker.registration.rank;
        match &worker.contract {
            Status::Verified(_)
                if worker.warnings().any(|it| it == Warning::ContractContradicted) =>
            {
                let Checks { checked, failed, .. } = worker.checks;
                let text = format!(
                    "rank {rank}: {failed} of {checked} plain prompts have other hashes than its contract gives"
                );
                let advice = "two engines at one address (a service in front of them?), or one restarted under another \
                              seed: register each at its own";
                out.say("contract", Level::Problem, text, advice);
            }
            Status::Verified(contract) => {
                let seed = seed(contract, facts.seeds);
                let text =
                    format!("rank {rank}: hashes are those of {}{seed}", contract.describe());
                if worker.warnings().any(|it| it == Warning::ContractDiffers) {
                    let text = format!("{text}, not of the version that was given");
                    let advice = "leave --vllm out, or correct it: what was found counts";
                    out.say("contract", Level::Note, text, advice);
                } else {
                    out.fine("contract", text);
                }
            }
            Status::Private => out.say(
                "contract",
                Level::Note,
                format!("rank {rank}: no known algorithm and seed gives these hashes"),
                "a random seed, most likely: prompts still match by their tokens, but offloaded \
                 blocks and questions by hash do not. Set PYTHONHASHSEED alike in all engines, and \
                 give it as --seed",
            ),
            _ => out.say(
                "contract",
                Level::Unknown,
                format!("rank {rank}: no prompt without salt and adapter was seen from its start"),
                "listen longer, give the replay endpoint, or let --probe send one",
            ),
        }
        if let Trust::Degraded(reason) = worker.trust {
            let text = format!("rank {rank} is degraded: {}", reason.as_str());
            out.say("trust", Level::Note, text, "docs/trust.md tells what each reason means");
        }
    }
}

/// Which seed gives its root hash. One that is nobody else's to know is not written out, nor is its root: who has
/// either can tell the name of any block.
fn seed(contract: &Contract, given: &[String]) -> String {
    let Contract::Vllm(contract) = contract else { return String::new() };
    let gives = |root: Root<'_>| {
        let other = vllm::Contract::new(contract.version(), contract.algorithm(), root);
        other.is_ok_and(|other| other.root() == contract.root())
    };
    if gives(Root::Unset) {
        return ", PYTHONHASHSEED not set".to_owned();
    }
    if let Some(seed) = COMMON_SEEDS.into_iter().find(|seed| gives(Root::Seed(seed))) {
        return format!(", PYTHONHASHSEED={seed}");
    }
    match given.iter().position(|seed| gives(Root::Seed(seed))) {
        Some(n) => format!(", PYTHONHASHSEED as --seed number {} says", n + 1),
        None => String::new(),
    }
}

/// What its blocks are made of.
pub(super) fn blocks(facts: &Facts<'_>, out: &mut Findings) {
    let heard = facts.heard;
    let sizes: Vec<String> = heard.block_sizes.keys().map(u32::to_string).collect();
    let announced = facts.said.metrics.as_ref().and_then(|m| m.as_ref().ok()?.block_size);
    match (heard.block_sizes.len(), facts.block_size) {
        (0, _) => {}
        (_, Some(size)) if !heard.block_sizes.contains_key(&size) => {
            let text = format!("blocks have {} tokens, not {size}", sizes.join(" or "));
            let advice = "the size in the events counts; correct the registration";
            out.say("block_size", Level::Problem, text, advice);
        }
        (1, _) => {
            let mut text = format!("blocks have {} tokens", sizes[0]);
            if let Some(said) = announced.filter(|said| !heard.block_sizes.contains_key(said)) {
                text += &format!(" (its metrics say {said}: the hash unit differs)");
            }
            out.fine("block_size", text);
        }
        _ => {
            let text = format!("blocks of {} tokens", sizes.join(", "));
            let advice = "offloaded chunks or partial blocks; the unit of each group counts";
            out.say("block_size", Level::Note, text, advice);
        }
    }
    if let Some(&size) = heard.block_sizes.keys().next().filter(|size| **size > SHORT_PROMPT) {
        let text = format!("a prompt of fewer than {size} tokens never scores");
        let advice = "an engine caches full blocks only (hybrid models have large ones); answers say shorter_than_block";
        out.say("block_size", Level::Note, text, advice);
    }
    let other_unit = facts.workers.iter().map(|worker| worker.events.other_unit).sum::<u64>();
    if other_unit > 0 {
        let text = format!(
            "{other_unit} stored events are in another unit than the blocks of their group"
        );
        let advice = "chunks of an offload tier, or partial blocks: they are never counted";
        out.say("block_size", Level::Note, text, advice);
    }
    contents(facts, out);
}

/// What is known of what its blocks contain, and where they are.
fn contents(facts: &Facts<'_>, out: &mut Findings) {
    let heard = facts.heard;
    if heard.nameless > 0 && heard.nameless == heard.stored {
        out.say(
            "tokens",
            Level::Problem,
            "no stored event has tokens: blocks are known by their hashes only".to_owned(),
            "prompts match only if the contract is known; is this an offload tier's publisher alone?",
        );
    } else if heard.nameless > 0 {
        let text = format!("{} of {} stored events have no tokens", heard.nameless, heard.stored);
        let advice =
            "offloaded blocks: matched through the exact hashes where the contract is known";
        out.say("tokens", Level::Note, text, advice);
    }
    let sparse = facts.workers.iter().map(|worker| worker.events.sparse).sum::<u64>();
    if sparse > 0 {
        let text = format!("{sparse} stored events have tokens of more blocks than they name");
        let advice = "blocks of a window that are masked: which tokens are whose is not guessed, they match by their \
                      exact hashes alone";
        out.say("tokens", Level::Note, text, advice);
    }
    if let Some(unknown) = heard.tiers.get("unknown") {
        let text = format!("{unknown} stored events name a medium that kvscout does not know");
        out.say("tiers", Level::Problem, text, "such copies never count as cached");
    }
}

/// Whose blocks they are, and what a request has to say to find them.
pub(super) fn shape(facts: &Facts<'_>, out: &mut Findings) {
    let heard = facts.heard;
    let ranks: Vec<String> = heard.ranks.iter().map(u32::to_string).collect();
    match heard.ranks.len() {
        0 | 1 if heard.ranks.iter().all(|&rank| rank == 0) => {}
        1 => {
            let text = format!("this is data-parallel rank {}", ranks[0]);
            let advice = "each rank publishes at a port of its own: base port + rank (ranks=N)";
            out.say("ranks", Level::Note, text, advice);
        }
        _ => {
            let text = format!("ranks {} share this endpoint", ranks.join(", "));
            out.say("ranks", Level::Note, text, "register each of them at its own port");
        }
    }
    let ruled = ["full_attention", "mla_attention", "sink_full_attention"];
    let windows = ["sliding_window", "sliding_window_mla"];
    let others: Vec<&str> = heard
        .kinds
        .iter()
        .filter(|kind| !ruled.contains(kind) && !windows.contains(kind))
        .copied()
        .collect();
    if !others.is_empty() {
        let text = format!("cache groups without a known rule: {}", others.join(", "));
        let advice = "matched blocks are right; expected_cached_tokens stays null with the reason";
        out.say("groups", Level::Note, text, advice);
    }
    if heard.lookahead > 0 {
        let text = format!("a block's hash takes in the {} tokens after it", heard.lookahead);
        let advice = "speculative decoding: a block matches only where the prompt goes on with the same tokens";
        out.say("lookahead", Level::Note, text, advice);
    }
    topics(facts, out);
    extra_keys(facts, out);
}

/// What topics say of the model; nothing but this line depends on it.
fn topics(facts: &Facts<'_>, out: &mut Findings) {
    let Some(model) = &facts.model else { return };
    let named = |topic: &Vec<u8>| {
        let topic = String::from_utf8_lossy(topic).into_owned();
        topic.splitn(3, '@').nth(2).map(str::to_owned)
    };
    if let Some(other) = facts.heard.topics.iter().filter_map(named).find(|named| named != model) {
        let text = format!("its topic names the model {other}, not {model}");
        let advice = "a topic changes nothing: requests find the engine under the model that it is registered with";
        out.say("topics", Level::Note, text, advice);
    }
}

/// What a request has to give beside tokens.
fn extra_keys(facts: &Facts<'_>, out: &mut Findings) {
    let heard = facts.heard;
    if heard.hides_extras {
        out.say(
            "extra_keys",
            Level::Note,
            "events of this version leave salts, adapters and images out".to_owned(),
            "kvscout tells such blocks apart by their hashes; that needs a known seed \
             (PYTHONHASHSEED), or vLLM 0.17 and newer",
        );
    }
    if !heard.keyed.is_empty() {
        let kinds: Vec<String> =
            heard.keyed.iter().map(|(kind, events)| format!("{kind} on {events}")).collect();
        let all = if heard.plain == 0 { ", no plain one among them" } else { "" };
        let text = format!("stored events with extra keys: {}{all}", kinds.join(", "));
        let advice = "a request finds such blocks only if it gives the same ones (cache_salt, lora, mm, embeds)";
        out.say("extra_keys", Level::Note, text, advice);
    }
    if heard.opaque > 0 {
        let text = format!("{} stored events have extra keys that cannot be read", heard.opaque);
        let advice = "their blocks never match by content: an engine newer than kvscout?";
        out.say("extra_keys", Level::Problem, text, advice);
    }
    if !heard.adapters.is_empty() {
        let adapters: Vec<&str> = heard.adapters.iter().map(String::as_str).collect();
        let text = format!("adapters seen: {}", adapters.join(", "));
        let advice = "register each with its path: since vLLM 0.31 the path is part of the hash";
        out.say("adapters", Level::Note, text, advice);
    }
}
