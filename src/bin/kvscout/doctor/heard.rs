//! What an engine's events say about it, added up batch by batch. Tokens are kept for one recent prompt
//! only, and printed nowhere.

use std::collections::{BTreeMap, BTreeSet};

use kvscout::block::{Tier, TokenId};
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
    /// Blocks with a LoRA adapter, with a salt or other extra keys, and plain ones.
    pub(super) adapters: BTreeSet<String>,
    pub(super) with_extras: u64,
    pub(super) plain: u64,
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
