//! A request's prompt as an index asks for it: digests and names, one block at a time.

use std::ops::RangeInclusive;

use super::Blocks;
use super::stream::Shared;
use crate::block::{Digest, Name, Prompt, Shape, VocabularyId};
use crate::hash::content;
use crate::index::BlockSource;
use crate::ingest::translate;
use crate::ingest::verify::Names;

/// Blocks of plain text after the first are digested so many at a time: as many as were wanted so far,
/// within these. A prompt that nobody holds costs its first block, and none costs much more than
/// what somebody holds of it; a long one costs few calls.
const STRETCH: RangeInclusive<usize> = 16..=64;

/// The prompt of a request, cut in one way.
pub(super) enum Asked<'a> {
    Prompt(PromptBlocks<'a>),
    Names(NameBlocks<'a>),
    Contents(&'a [Digest]),
}

impl<'a> Asked<'a> {
    /// `None` when the prompt cannot be cut so: its names are those of blocks of another size.
    #[inline]
    pub(super) fn new(
        shared: &'a Shared,
        blocks: &Blocks<'a>,
        edition: u32,
        shape: Shape,
        digests: &'a mut Vec<Digest>,
    ) -> Option<Asked<'a>> {
        match *blocks {
            Blocks::Prompt(prompt) => {
                Some(Asked::Prompt(PromptBlocks::new(shared, prompt, edition, shape, digests)))
            }
            Blocks::Names { names, block_size } => {
                (shape.size == block_size).then_some(Asked::Names(NameBlocks(names)))
            }
            Blocks::Local { hashes, block_size } => {
                if shape != Shape::plain(block_size) {
                    return None;
                }
                shared.local.resolve(hashes, digests);
                Some(Asked::Contents(digests))
            }
        }
    }
}

impl BlockSource for Asked<'_> {
    #[inline]
    fn len(&self) -> usize {
        match self {
            Asked::Prompt(blocks) => blocks.len(),
            Asked::Names(blocks) => blocks.len(),
            Asked::Contents(digests) => digests.len(),
        }
    }

    #[inline]
    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        match self {
            Asked::Prompt(blocks) => blocks.digests(from, least),
            Asked::Names(blocks) => blocks.digests(from, least),
            Asked::Contents(digests) => digests.get(from..).unwrap_or_default(),
        }
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        match self {
            Asked::Prompt(blocks) => blocks.name(vocabulary, block),
            Asked::Names(blocks) => blocks.name(vocabulary, block),
            Asked::Contents(_) => None,
        }
    }

    fn second_name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        match self {
            Asked::Prompt(blocks) => blocks.second_name(vocabulary, block),
            Asked::Names(_) | Asked::Contents(_) => None,
        }
    }
}

/// A prompt given by its tokens.
pub(super) struct PromptBlocks<'a> {
    shared: &'a Shared,
    prompt: Prompt<'a>,
    /// Of its adapter.
    edition: u32,
    shape: Shape,
    /// Whether its blocks have nothing besides their tokens.
    plain: bool,
    /// Of the first `known` blocks, as far as they were asked for; what follows is of other prompts.
    digests: &'a mut Vec<Digest>,
    known: usize,
    chains: Vec<NameChain<'a>>,
}

/// The names of the prompt's blocks in one vocabulary, as far as they were asked for.
struct NameChain<'a> {
    vocabulary: VocabularyId,
    generation: Generation,
    /// `None` when the vocabulary is private or the prompt lacks a fact that its contract needs.
    rest: Option<Names<'a, 'a>>,
    known: Vec<Name>,
}

/// Whose rules: those of the vocabulary's contract, or those of older engines that hash plain text alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Generation {
    Verified,
    Elder,
}

impl<'a> PromptBlocks<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        prompt: Prompt<'a>,
        edition: u32,
        shape: Shape,
        digests: &'a mut Vec<Digest>,
    ) -> PromptBlocks<'a> {
        let plain = shape.lookahead == 0
            && prompt.lora.is_none()
            && prompt.cache_salt.is_none_or(str::is_empty)
            && prompt.items.is_empty()
            && prompt.embeds.is_none();
        PromptBlocks {
            shared,
            prompt,
            edition,
            shape,
            plain,
            digests,
            known: 0,
            chains: Vec::new(),
        }
    }

    /// Digests at least `least` more blocks, as long as there are any.
    fn digest(&mut self, least: usize) {
        let (from, size) = (self.known, self.shape.size.tokens());
        let stretch = from.clamp(*STRETCH.start(), *STRETCH.end());
        let more = if self.plain && from > 0 { least.max(stretch) } else { least };
        let to = (from + more).min(self.len());
        if self.digests.len() < to {
            self.digests.resize(to, Digest(0));
        }
        self.known = to;
        let (key, tokens) = (&self.shared.key, self.prompt.token_ids);
        if self.plain {
            // Digests of blocks side by side overlap in the processor.
            key.plain(&tokens[from * size..], size, &mut self.digests[from..to]);
            return;
        }
        for block in from..to {
            let (start, end) = (block * size, (block + 1) * size);
            let ahead = end + self.shape.lookahead as usize;
            let extra_keys = content::extra_keys(&self.prompt, self.shape, block);
            let ahead = &tokens[end..ahead];
            self.digests[block] =
                translate::digest(key, &tokens[start..end], ahead, extra_keys, self.edition);
        }
    }

    fn name_of(
        &mut self,
        vocabulary: VocabularyId,
        generation: Generation,
        block: usize,
    ) -> Option<Name> {
        if self.edition > 0 {
            // Names are the same in every edition.
            return None;
        }
        let is = |chain: &NameChain<'_>| {
            (chain.vocabulary, chain.generation) == (vocabulary, generation)
        };
        let at = match self.chains.iter().position(is) {
            Some(at) => at,
            None => {
                // Held for this only: a batch may have to write to it while a query waits for the batch.
                let contract = self.shared.vocabularies.read().contract(vocabulary).cloned();
                let contract = match generation {
                    Generation::Verified => contract,
                    Generation::Elder => contract.and_then(|contract| contract.elder()),
                };
                let memory = &self.shared.chains;
                let rest = contract.and_then(|c| c.names(self.shape, &self.prompt, memory).ok());
                self.chains.push(NameChain { vocabulary, generation, rest, known: Vec::new() });
                self.chains.len() - 1
            }
        };
        let NameChain { rest, known, .. } = &mut self.chains[at];
        while known.len() <= block {
            known.push(rest.as_mut()?.next()?);
        }
        Some(known[block])
    }
}

impl BlockSource for PromptBlocks<'_> {
    fn len(&self) -> usize {
        self.shape.blocks_in(self.prompt.token_ids.len())
    }

    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        let missing = (from + least).saturating_sub(self.known);
        if missing > 0 {
            self.digest(missing);
        }
        self.digests.get(from..self.known).unwrap_or_default()
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        self.name_of(vocabulary, Generation::Verified, block)
    }

    fn second_name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        if self.plain {
            return None;
        }
        let first = self.name_of(vocabulary, Generation::Verified, block);
        // Blocks before a prompt's first item have one name, as plain text has.
        self.name_of(vocabulary, Generation::Elder, block).filter(|name| first != Some(*name))
    }
}

/// A prompt given by its blocks' names, which count in every vocabulary.
pub(super) struct NameBlocks<'a>(pub(super) &'a [Name]);

impl BlockSource for NameBlocks<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn digests(&mut self, _: usize, _: usize) -> &[Digest] {
        &[]
    }

    fn name(&mut self, _: VocabularyId, block: usize) -> Option<Name> {
        self.0.get(block).copied()
    }
}
