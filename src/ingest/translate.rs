//! From a decoded event to changes of the index.

use crate::block::{BlockSize, Name, Shape, TokenId};
use crate::event::{BlockExtras, DecodeError, ExtraKeys, Stored};
use crate::hash::content::DigestKey;
use crate::index::{Block, Parent};
use crate::ingest::verify::{Content, Verifier};

/// Why an event is left out as a whole. Its effect is missing afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A token id does not fit 32 bits.
    Token(DecodeError),
    /// The event names a block twice, or as its own parent.
    Cycle,
}

/// The outline of a stored event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// How its blocks are cut; meaningless without tokens.
    pub shape: Shape,
    /// Whether it says what each of its blocks contains.
    pub dense: bool,
}

/// Reads the tokens of a stored event into `tokens` and tells how they cover its blocks.
///
/// # Errors
///
/// The event is left out as a whole.
pub fn outline(stored: &Stored<'_>, tokens: &mut Vec<TokenId>) -> Result<Outline, Rejection> {
    tokens.clear();
    stored.tokens.read_into(tokens).map_err(Rejection::Token)?;
    let size = BlockSize::new(stored.block_size).unwrap_or(BlockSize::DEFAULT);
    let lookahead = match stored.lookahead {
        Some(lists) => lists.depth(),
        None => Some(0),
    };
    let shape = Shape { size, lookahead: lookahead.unwrap_or(0) };
    // A masked block (sliding windows, vLLM 0.14 and later) leaves its tokens in the event and its
    // hash out: which tokens belong to which hash is then unknown.
    let covered = stored.names.len().checked_mul(size.tokens()) == Some(tokens.len());
    Ok(Outline { shape, dense: !tokens.is_empty() && covered && lookahead.is_some() })
}

/// Writes the blocks of a stored event into `blocks` and returns what comes before the first one.
///
/// # Errors
///
/// The event is left out as a whole.
pub fn blocks(
    stored: &Stored<'_>,
    outline: Outline,
    tokens: &[TokenId],
    key: &DigestKey,
    verifier: &mut Verifier,
    blocks: &mut Vec<Block>,
) -> Result<Parent, Rejection> {
    blocks.clear();
    blocks.extend(stored.names.names().map(|name| Block { name, digest: None }));
    let parent = stored.parent.map(|hash| hash.name());
    if has_cycle(parent, blocks) {
        return Err(Rejection::Cycle);
    }
    if !outline.dense {
        return Ok(Parent::Unknown);
    }
    let mut extras = match stored.extra_keys {
        ExtraKeys::Hidden => None,
        ExtraKeys::Listed(listed) => Some(listed.iter()),
    };
    let mut lookahead = stored.lookahead.map(|lists| lists.iter());
    let mut after = Vec::new();
    let mut before = stored.parent;
    let hashes = stored.names.iter();
    for ((block, hash), tokens) in
        blocks.iter_mut().zip(hashes).zip(tokens.chunks_exact(outline.shape.size.tokens()))
    {
        after.clear();
        if let Some(list) = lookahead.as_mut().and_then(Iterator::next) {
            list.read_into(&mut after).map_err(Rejection::Token)?;
        }
        block.digest = match extras.as_mut().map(Iterator::next) {
            Some(Some(BlockExtras::Plain)) => Some(key.digest(tokens, &after, [])),
            Some(Some(BlockExtras::Keys(keys))) => Some(key.digest(tokens, &after, keys)),
            Some(Some(BlockExtras::Opaque) | None) => None,
            None => {
                let (name, bytes) = (before.map(|h| h.name()), before.and_then(|h| h.bytes()));
                match verifier.content(name, bytes, block.name, tokens, &after) {
                    Content::Plain => Some(key.digest(tokens, &after, [])),
                    Content::Opaque => None,
                }
            }
        };
        before = Some(hash);
    }
    Ok(match parent {
        Some(name) => Parent::Block(name),
        None => Parent::Root,
    })
}

fn has_cycle(parent: Option<Name>, blocks: &[Block]) -> bool {
    let mut names: Vec<Name> = blocks.iter().map(|block| block.name).chain(parent).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}
