//! A request's prompt as an index asks for it: digests and names, one block at a time.

use parking_lot::RwLockReadGuard;

use super::directory::Vocabularies;
use super::stream::Shared;
use crate::block::{Digest, Name, Prompt, Shape, VocabularyId};
use crate::hash::content::{self, DigestKey};
use crate::index::BlockSource;
use crate::ingest::verify::Names;

/// A prompt given by its tokens.
pub(super) struct PromptBlocks<'a> {
    key: &'a DigestKey,
    vocabularies: RwLockReadGuard<'a, Vocabularies>,
    prompt: Prompt<'a>,
    shape: Shape,
    /// Of the first blocks, as far as they were asked for.
    digests: &'a mut Vec<Digest>,
    chains: Vec<NameChain<'a>>,
}

/// The names of the prompt's blocks in one vocabulary, as far as they were asked for.
struct NameChain<'a> {
    vocabulary: VocabularyId,
    /// `None` when the vocabulary is private or the prompt lacks a fact that its contract needs.
    rest: Option<Names<'a>>,
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
        digests.clear();
        PromptBlocks { key: &shared.key, vocabularies, prompt, shape, digests, chains: Vec::new() }
    }

    fn digest(&self, block: usize) -> Option<Digest> {
        let size = self.shape.size.tokens();
        let (start, end) = (block * size, (block + 1) * size);
        let tokens = self.prompt.token_ids.get(start..end)?;
        let lookahead = self.prompt.token_ids.get(end..end + self.shape.lookahead as usize)?;
        let extra_keys = content::extra_keys(&self.prompt, self.shape, block);
        Some(self.key.digest(tokens, lookahead, extra_keys))
    }
}

impl BlockSource for PromptBlocks<'_> {
    fn len(&self) -> usize {
        self.shape.blocks_in(self.prompt.token_ids.len())
    }

    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        while self.digests.len() < from + least
            && let Some(digest) = self.digest(self.digests.len())
        {
            self.digests.push(digest);
        }
        self.digests.get(from..).unwrap_or_default()
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        let at = match self.chains.iter().position(|chain| chain.vocabulary == vocabulary) {
            Some(at) => at,
            None => {
                let contract = self.vocabularies.contract(vocabulary);
                let rest = contract.and_then(|c| c.names(self.shape, &self.prompt).ok());
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
