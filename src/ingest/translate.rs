//! From a decoded event to changes of the index.

use crate::block::{BlockSize, Digest, ExtraKey, Name, Shape, TokenId};
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

/// Tells how the tokens of a stored event, as [`Events::next_into`](crate::event::Events::next_into)
/// left them in `tokens`, cover its blocks.
///
/// # Errors
///
/// The event is left out as a whole.
pub fn outline(stored: &Stored<'_>, tokens: &mut Vec<TokenId>) -> Result<Outline, Rejection> {
    if tokens.len() != stored.tokens.len() {
        tokens.clear();
        stored.tokens.read_into(tokens).map_err(Rejection::Token)?;
    }
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

/// The digest of a block with extra keys, its adapter being of this edition.
pub fn digest<'a>(
    key: &DigestKey,
    tokens: &[TokenId],
    lookahead: &[TokenId],
    extra_keys: impl Iterator<Item = ExtraKey<'a>>,
    edition: u32,
) -> Digest {
    if edition == 0 {
        return key.digest(tokens, lookahead, extra_keys);
    }
    // No block has two adapters, so that this is no other block's list.
    let edition = edition.to_string();
    let mut extra_keys: Vec<ExtraKey<'_>> = extra_keys.collect();
    extra_keys.push(ExtraKey::Lora(&edition));
    key.digest(tokens, lookahead, extra_keys)
}

/// Appends the blocks of a stored event to `blocks` and returns what comes before the first one.
///
/// # Errors
///
/// The event is left out as a whole; `blocks` is then as it was.
pub fn blocks(
    stored: &Stored<'_>,
    outline: Outline,
    tokens: &[TokenId],
    key: &DigestKey,
    edition: u32,
    verifier: &mut Verifier,
    blocks: &mut Vec<Block>,
) -> Result<Parent, Rejection> {
    let before = blocks.len();
    blocks.extend(stored.names.names().map(|name| Block { name, digest: None }));
    let parent = stored.parent.map(|hash| hash.name());
    let added = &mut blocks[before..];
    let described = match has_cycle(parent, added) {
        true => Err(Rejection::Cycle),
        false if outline.dense => describe(stored, outline, tokens, key, edition, verifier, added),
        false => return Ok(Parent::Unknown),
    };
    if let Err(rejection) = described {
        blocks.truncate(before);
        return Err(rejection);
    }
    Ok(match parent {
        Some(name) => Parent::Block(name),
        None => Parent::Root,
    })
}

/// Gives blocks whose content is known their digests.
fn describe(
    stored: &Stored<'_>,
    outline: Outline,
    tokens: &[TokenId],
    key: &DigestKey,
    edition: u32,
    verifier: &mut Verifier,
    blocks: &mut [Block],
) -> Result<(), Rejection> {
    let size = outline.shape.size.tokens();
    if let ExtraKeys::Listed(listed) = stored.extra_keys
        && stored.lookahead.is_none()
        && listed.all_plain()
    {
        // Nearly every event, and several times faster than block by block.
        let mut digests = [Digest(0); TOGETHER];
        for (blocks, tokens) in blocks.chunks_mut(TOGETHER).zip(tokens.chunks(TOGETHER * size)) {
            let digests = &mut digests[..blocks.len()];
            key.plain(tokens, size, digests);
            for (block, digest) in blocks.iter_mut().zip(digests) {
                block.digest = Some(*digest);
            }
        }
        return Ok(());
    }
    let mut extras = match stored.extra_keys {
        ExtraKeys::Hidden => None,
        ExtraKeys::Listed(listed) => Some(listed.iter()),
    };
    let mut lookahead = stored.lookahead.map(|lists| lists.iter());
    let mut after = Vec::new();
    let mut before = stored.parent;
    let hashes = stored.names.iter();
    for ((block, hash), tokens) in blocks.iter_mut().zip(hashes).zip(tokens.chunks_exact(size)) {
        after.clear();
        if let Some(list) = lookahead.as_mut().and_then(Iterator::next) {
            list.read_into(&mut after).map_err(Rejection::Token)?;
        }
        block.digest = match extras.as_mut().map(Iterator::next) {
            Some(Some(BlockExtras::Plain)) => Some(key.digest(tokens, &after, [])),
            Some(Some(BlockExtras::Keys(keys))) => Some(digest(key, tokens, &after, keys, edition)),
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
    Ok(())
}

/// Blocks that are digested together.
const TOGETHER: usize = 64;

/// Places of the table by which few names are told apart.
const PLACES: usize = 256;

fn has_cycle(parent: Option<Name>, blocks: &[Block]) -> bool {
    let names = blocks.iter().map(|block| block.name).chain(parent);
    if blocks.len() >= PLACES / 4 {
        let mut names: Vec<Name> = names.collect();
        names.sort_unstable();
        return names.windows(2).any(|pair| pair[0] == pair[1]);
    }
    // Names that were chosen to meet cost a walk over a quarter of the table at most.
    let mut places = [Name(0); PLACES];
    let mut zeros = 0;
    for name in names {
        // 0 marks a free place.
        if name == Name(0) {
            zeros += 1;
            continue;
        }
        let mut place = (name.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize;
        while places[place] != Name(0) {
            if places[place] == name {
                return true;
            }
            place = (place + 1) % PLACES;
        }
        places[place] = name;
    }
    zeros > 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cycle_is_a_name_that_comes_twice(
            names in prop::collection::vec(0_u64..200, 0..90),
            parent in prop::option::of(0_u64..200),
            spread in prop::sample::select(&[1_u64, 1 << 56, 0x9e37_79b9_7f4a_7c15][..]),
        ) {
            let name = |n: u64| Name(n.wrapping_mul(spread));
            let blocks: Vec<Block> =
                names.iter().map(|&n| Block { name: name(n), digest: None }).collect();
            let parent = parent.map(name);
            let mut all: Vec<Name> = blocks.iter().map(|b| b.name).chain(parent).collect();
            all.sort_unstable();
            let twice = all.windows(2).any(|pair| pair[0] == pair[1]);
            prop_assert_eq!(has_cycle(parent, &blocks), twice);
        }
    }
}
