//! The blocks of one request, hashed as they fill up.

use std::iter;

use sha2::{Digest as _, Sha256};

use super::extra::{EmbedsForm, Extra, Scan, Window};
use super::plain::PlainChain;
use super::writer::{Encoder, Link};
use super::{BlockHash, Contract};
use crate::block::{Embeds, Item, Shape, TokenId};
use crate::error::Error;
use crate::hash::content::rows;

/// The block hashes of one request, in order, one at a time.
///
/// Made by [`Contract::chain`]. A chain keeps what identifies the request besides its tokens; the
/// tokens are handed in, so a chain can follow a request that is still being generated. It
/// allocates when it is made, and for its first block, not for each block.
///
/// ```
/// use kvscout::block::{BlockSize, Prompt, Shape};
/// use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
///
/// let contract = Contract::new(Version::NEWEST, Algorithm::Sha256Cbor, Root::Seed("0"))?;
/// let tokens: Vec<u32> = (0..40).collect();
/// let mut chain = contract.chain(Shape::plain(BlockSize::DEFAULT), &Prompt::new(&tokens))?;
/// assert_eq!(chain.extend(&tokens).count(), 2);
/// assert_eq!(chain.blocks(), 2);
/// # Ok::<(), kvscout::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Chain<'p> {
    contract: Contract,
    shape: Shape,
    lora: Option<Extra<'p>>,
    items: &'p [Item<'p>],
    salt: Option<Extra<'p>>,
    embeds: Option<Embeds<'p>>,
    /// Where the next block is written by the general way.
    parent: BlockHash,
    blocks: usize,
    scan: Scan,
    begun: bool,
    encoder: Encoder,
    extras: Vec<Extra<'p>>,
    /// The faster way, where blocks have no extra keys but the first one's salt.
    plain: Option<PlainChain>,
}

impl<'p> Chain<'p> {
    /// What [`Contract::chain`] has checked.
    pub(super) fn new(
        contract: Contract,
        shape: Shape,
        lora: Option<Extra<'p>>,
        items: &'p [Item<'p>],
        salt: Option<Extra<'p>>,
        embeds: Option<Embeds<'p>>,
    ) -> Chain<'p> {
        let encoder = contract.encoder();
        let has_keys = lora.is_some() || !items.is_empty() || embeds.is_some();
        let layout = encoder.plain_layout().filter(|_| !has_keys && shape.lookahead == 0);
        let plain = layout
            .and_then(|layout| PlainChain::new(layout, shape.size.tokens(), &contract.root()));
        Chain {
            shape,
            lora,
            items,
            salt,
            embeds,
            parent: contract.root(),
            blocks: 0,
            scan: Scan::within_prompt(contract.forms.scan, items, 0),
            begun: false,
            encoder,
            extras: Vec::new(),
            plain,
            contract,
        }
    }

    /// The hashes of the blocks that became full since the last call; `token_ids` are all tokens of
    /// the request so far.
    ///
    /// One call stands for one call of vLLM's own hasher: the first for the prompt, each later one
    /// for tokens that were generated since. Versions before 0.31 look at the last multimodal item
    /// only when they hash generated tokens, and before 0.19 also at an item that ends where the
    /// block begins, so the same tokens may hash differently as a prompt. Blocks are hashed as the
    /// iterator is advanced.
    pub fn extend<'s>(
        &'s mut self,
        token_ids: &'s [TokenId],
    ) -> impl Iterator<Item = BlockHash> + use<'s, 'p> {
        if self.begun || self.blocks > 0 {
            self.scan = Scan::after_prompt(self.contract.forms.scan, self.blocks);
        }
        self.begun = true;
        self.forget_ahead();
        iter::from_fn(move || self.advance_within(token_ids))
    }

    /// The hash of the next block, as part of the call that hashed the block before; `token_ids`
    /// are all tokens of the request so far.
    ///
    /// `None` when they do not fill the block and its look-ahead, or when the request's embeddings
    /// are known by digests and none is left.
    pub fn advance(&mut self, token_ids: &[TokenId]) -> Option<BlockHash> {
        self.forget_ahead();
        self.step(token_ids, false)
    }

    /// The same, for a caller that asks with the same tokens until it says
    /// [`forget_ahead`](Chain::forget_ahead).
    #[inline]
    pub(super) fn advance_within(&mut self, token_ids: &[TokenId]) -> Option<BlockHash> {
        self.step(token_ids, true)
    }

    #[inline]
    fn step(&mut self, token_ids: &[TokenId], ahead: bool) -> Option<BlockHash> {
        let size = self.shape.size.tokens();
        let start = self.blocks.checked_mul(size)?;
        let end = start.checked_add(size)?;
        let seen = end.checked_add(self.shape.lookahead as usize)?;
        let tokens = token_ids.get(start..end)?;
        let lookahead = token_ids.get(end..seen)?;
        if let Some(plain) = &mut self.plain
            && (self.blocks > 0 || self.salt.is_none())
        {
            let next = end.checked_add(size).filter(|_| ahead);
            let next = next.and_then(|next| token_ids.get(end..next));
            self.blocks += 1;
            return Some(plain.link(tokens, next));
        }
        let embeds = match self.embeds {
            Some(embeds) => Some(self.embeds_of(embeds, start, seen)?),
            None => None,
        };

        self.extras.clear();
        self.extras.extend(self.lora);
        let forms = &self.contract.forms;
        self.scan.block(self.items, Window { start, end, seen }, |item| {
            let offset = i64::from(item.offset) - start as i64;
            self.extras.push(forms.item(item.identifier, offset));
        });
        if self.blocks == 0 {
            self.extras.extend(self.salt);
        }
        self.extras.extend(embeds);

        let parent = self.contract.or_root(self.parent);
        let link = Link { parent: &parent, tokens, lookahead, extras: &self.extras };
        let hash = self.encoder.link(&link);
        self.go_on_from(hash);
        self.blocks += 1;
        Some(self.parent)
    }

    /// Goes on with block number `block`, which follows the block `parent`. Block 0 follows
    /// [`Contract::root`].
    ///
    /// [`advance`](Chain::advance) then hashes as if the same call had hashed the blocks before.
    ///
    /// # Errors
    ///
    /// A parent that is no hash of this contract's form.
    pub fn resume(&mut self, block: usize, parent: BlockHash) -> Result<(), Error> {
        self.contract.check_parent(&parent)?;
        let start = block.saturating_mul(self.shape.size.tokens());
        self.scan = Scan::within_prompt(self.contract.forms.scan, self.items, start);
        self.go_on_from(parent);
        self.blocks = block;
        Ok(())
    }

    /// How many blocks lie behind: the number of the next block.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The contract that is followed.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Forgets what was prepared for the next block, whose tokens may be others now.
    fn forget_ahead(&mut self) {
        if let Some(plain) = &mut self.plain {
            plain.forget_ahead();
        }
    }

    fn go_on_from(&mut self, parent: BlockHash) {
        self.parent = parent;
        if self.plain.as_mut().is_some_and(|plain| !plain.follow(&parent)) {
            self.plain = None;
        }
    }

    fn embeds_of(&self, embeds: Embeds<'p>, start: usize, end: usize) -> Option<Extra<'p>> {
        let digest = || match embeds {
            Embeds::Digests(digests) => digests.get(self.blocks).copied(),
            Embeds::Rows { .. } => rows(embeds, start, end).map(|rows| Sha256::digest(rows).into()),
        };
        match self.contract.forms.embeds {
            // `Contract::chain` refuses embeddings in these versions.
            EmbedsForm::Unsupported => None,
            EmbedsForm::Raw => rows(embeds, start, end).map(Extra::Bytes),
            EmbedsForm::Digest => digest().map(Extra::Digest),
            EmbedsForm::Tagged => digest().map(Extra::TaggedEmbeds),
        }
    }
}
