//! A request's prompt as an index asks for it: digests and names, one block at a time.

use parking_lot::RwLockReadGuard;

use super::stream::Shared;
use super::vocabulary::Vocabularies;
use crate::block::{Digest, Name, Prompt, Shape, VocabularyId};
use crate::hash::content::{self, DigestKey};
use crate::hash::vllm::ChainMemory;
use crate::index::BlockSource;
use crate::ingest::verify::Names;

/// Blocks of plain text are digested at least so many at a time. A prompt that nobody holds costs
/// no more than these.
const STRETCH: usize = 16;

/// A prompt given by its tokens.
pub(super) struct PromptBlocks<'a> {
    key: &'a DigestKey,
    memory: &'a ChainMemory,
    vocabularies: RwLockReadGuard<'a, Vocabularies>,
    prompt: Prompt<'a>,
    shape: Shape,
    /// Whether its blocks have nothing besides their tokens.
    plain: bool,
    /// Of the first blocks, as far as they were asked for.
    digests: &'a mut Vec<Digest>,
    chains: Vec<NameChain<'a>>,
}

/// The names of the prompt's blocks in one vocabulary, as far as they were asked for.
struct NameChain<'a> {
    vocabulary: VocabularyId,
    /// `None` when the vocabulary is private or the prompt lacks a fact that its contract needs.
    rest: Option<Names<'a, 'a>>,
    known: Vec<Name>,
}

impl<'a> PromptBlocks<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        prompt: Prompt<'a>,
        shape: Shape,
        digests: &'a mut Vec<Digest>,
    ) -> PromptBlocks<'a> {
        let vocabularies = shared.vocabularies.read();
        let Shared { key, chains: memory, .. } = shared;
        digests.clear();
        let plain = shape.lookahead == 0
            && prompt.lora.is_none()
            && prompt.cache_salt.is_none_or(str::is_empty)
            && prompt.items.is_empty()
            && prompt.embeds.is_none();
        PromptBlocks {
            key,
            memory,
            vocabularies,
            prompt,
            shape,
            plain,
            digests,
            chains: Vec::new(),
        }
    }

    /// Digests at least `least` more blocks, as long as there are any.
    fn digest(&mut self, least: usize) {
        let (from, size) = (self.digests.len(), self.shape.size.tokens());
        if self.plain {
            // Digests of blocks side by side overlap in the processor.
            let to = (from + least.max(STRETCH)).min(self.len());
            self.digests.resize(to, Digest(0));
            self.key.plain(&self.prompt.token_ids[from * size..], size, &mut self.digests[from..]);
            return;
        }
        for block in from..(from + least).min(self.len()) {
            let (start, end) = (block * size, (block + 1) * size);
            let ahead = end + self.shape.lookahead as usize;
            let tokens = self.prompt.token_ids;
            let extra_keys = content::extra_keys(&self.prompt, self.shape, block);
            self.digests.push(self.key.digest(
                &tokens[start..end],
                &tokens[end..ahead],
                extra_keys,
            ));
        }
    }
}

impl BlockSource for PromptBlocks<'_> {
    fn len(&self) -> usize {
        self.shape.blocks_in(self.prompt.token_ids.len())
    }

    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        let missing = (from + least).saturating_sub(self.digests.len());
        if missing > 0 {
            self.digest(missing);
        }
        self.digests.get(from..).unwrap_or_default()
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        let at = match self.chains.iter().position(|chain| chain.vocabulary == vocabulary) {
            Some(at) => at,
            None => {
                let contract = self.vocabularies.contract(vocabulary);
                let rest =
                    contract.and_then(|c| c.names(self.shape, &self.prompt, self.memory).ok());
                self.chains.push(NameChain { vocabulary, rest, known: Vec::new() });
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
