//! What an engine's events say about it, added up batch by batch. Tokens are kept for one recent prompt
//! only, and printed nowhere.

use std::collections::{BTreeMap, BTreeSet};

use kvscout::block::{ExtraKey, Tier, TokenId};
use kvscout::event::{Batch, BlockExtras, Event, ExtraKeys, Form, Limits, SpecKind, Stored};

/// How many tokens of a prompt are kept to ask about it again.
const MAX_PROMPT: usize = 1 << 16;

/// The events of one worker so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) batches: u64,
    pub(super) empty: u64,
    /// Batches that are no batch, with the first reason.
    pub(super) undecodable: u64,
    pub(super) rejected: u64,
    pub(super) first_error: Option<String>,
    pub(super) stored: u64,
    pub(super) removed: u64,
    pub(super) cleared: u64,
    /// `BlockStored` without tokens: known by name only.
    pub(super) nameless: u64,
    /// Tokens in a block, as announced with tokens, and how often.
    pub(super) block_sizes: BTreeMap<u32, u64>,
    pub(super) tiers: BTreeMap<&'static str, u64>,
    pub(super) kinds: BTreeSet<&'static str>,
    pub(super) forms: Vec<Form>,
    pub(super) ranks: BTreeSet<u32>,
    pub(super) topics: BTreeSet<Vec<u8>>,
    /// Adapters, and stored events with extra keys of any kind and without.
    pub(super) adapters: BTreeSet<String>,
    pub(super) with_extras: u64,
    pub(super) plain: u64,
    /// Stored events that have extra keys of a kind, by what a request gives for it.
    pub(super) keyed: BTreeMap<&'static str, u64>,
    /// Those with extra keys that cannot be read.
    pub(super) opaque: u64,
    /// How many tokens behind a block are hashed with it.
    pub(super) lookahead: u32,
    pub(super) hides_extras: bool,
    /// A plain prompt that was stored lately: its tokens from the first one on.
    pub(super) prompt: Vec<TokenId>,
    pub(super) prompt_end: Option<u64>,
}

impl Heard {
    /// Adds a batch.
    pub(super) fn add(&mut self, topic: &[u8], payload: &[u8], limits: &Limits) {
        self.batches += 1;
        if self.topics.len() < 16 {
            self.topics.insert(topic.to_vec());
        }
        let batch = match Batch::parse(payload, limits) {
            Ok(batch) => batch,
            Err(error) => {
                self.undecodable += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
                return;
            }
        };
        self.ranks.extend(batch.rank());
        let mut events = 0;
        for event in batch.events() {
            events += 1;
            match event {
                Ok(Event::Stored(stored)) => self.store(&stored),
                Ok(Event::Removed(removed)) => {
                    self.removed += 1;
                    *self.tiers.entry(removed.tier.as_str()).or_default() += 0;
                    if removed.names.names().any(|name| Some(name.0) == self.prompt_end) {
                        self.forget_prompt();
                    }
                }
                Ok(Event::Cleared(_)) => {
                    self.cleared += 1;
                    self.forget_prompt();
                }
                Err(error) => {
                    self.rejected += 1;
                    self.first_error.get_or_insert_with(|| error.to_string());
                }
            }
        }
        self.empty += u64::from(events == 0);
    }

    fn store(&mut self, stored: &Stored<'_>) {
        self.stored += 1;
        *self.tiers.entry(stored.tier.as_str()).or_default() += 1;
        self.kinds.extend(stored.kind.map(SpecKind::as_str));
        if !self.forms.contains(&stored.form) {
            self.forms.push(stored.form);
        }
        if let Some(name) = stored.lora_name
            && self.adapters.len() < 16
        {
            self.adapters.insert(name.to_owned());
        }
        let mut tokens = Vec::new();
        if stored.tokens.read_into(&mut tokens).is_err() || tokens.is_empty() {
            self.nameless += 1;
            return;
        }
        *self.block_sizes.entry(stored.block_size).or_default() += 1;
        let lookahead = stored.lookahead.and_then(|lists| lists.depth());
        self.lookahead = self.lookahead.max(lookahead.unwrap_or(0));
        self.sort_extras(stored);
        let no_adapter = stored.lora_name.is_none() && stored.lora_id.is_none_or(|id| id == 0);
        let plain = match stored.extra_keys {
            ExtraKeys::Hidden => {
                self.hides_extras = true;
                no_adapter
            }
            ExtraKeys::Listed(listed) => {
                listed.iter().all(|keys| matches!(keys, BlockExtras::Plain))
            }
        };
        if plain {
            self.plain += 1;
        } else {
            self.with_extras += 1;
        }
        if plain && stored.tier == Tier::Gpu && stored.lookahead.is_none() {
            self.remember(stored, &tokens);
        }
    }

    /// Counts the kinds of extra keys that an event's blocks have.
    fn sort_extras(&mut self, stored: &Stored<'_>) {
        let mut kinds = BTreeSet::new();
        kinds.extend(stored.lora_name.map(|_| "lora"));
        let mut opaque = false;
        if let ExtraKeys::Listed(listed) = stored.extra_keys {
            for keys in listed.iter() {
                match keys {
                    BlockExtras::Plain => {}
                    BlockExtras::Opaque => opaque = true,
                    BlockExtras::Keys(keys) => kinds.extend(keys.map(given_as)),
                }
            }
        }
        self.opaque += u64::from(opaque);
        kinds.into_iter().for_each(|kind| *self.keyed.entry(kind).or_default() += 1);
    }

    /// Keeps the prompt whose blocks these are, if all of it is known.
    fn remember(&mut self, stored: &Stored<'_>, tokens: &[TokenId]) {
        let goes_on = match stored.parent.map(|hash| hash.name().0) {
            None => {
                self.prompt.clear();
                true
            }
            Some(parent) => Some(parent) == self.prompt_end,
        };
        let dense = stored.names.len() * stored.block_size as usize == tokens.len();
        if goes_on && dense && self.prompt.len() + tokens.len() <= MAX_PROMPT {
            self.prompt.extend_from_slice(tokens);
            self.prompt_end = stored.names.names().last().map(|name| name.0);
        }
    }

    fn forget_prompt(&mut self) {
        self.prompt.clear();
        self.prompt_end = None;
    }

    /// A plain prompt that the engine stored and has not evicted, as far as was heard.
    pub(super) fn prompt(&self) -> Option<&[TokenId]> {
        (!self.prompt.is_empty()).then_some(&self.prompt)
    }

    /// The versions of vLLM that write events like these.
    pub(super) fn versions(&self) -> &'static str {
        self.forms.last().map_or("unknown", |form| form.versions())
    }
}

/// The field of a request that says the same.
fn given_as(key: ExtraKey<'_>) -> &'static str {
    match key {
        ExtraKey::Lora(_) => "lora",
        ExtraKey::Item { .. } => "mm",
        ExtraKey::Salt(_) => "cache_salt",
        ExtraKey::Embeds(_) => "embeds",
    }
}
