//! The crate's block hashes against a recursive writer of the same values.

#![no_main]

#[path = "../../tests/support/naive.rs"]
mod naive;

use kvscout::hash::vllm::{Algorithm, Version};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use naive::{Block, Key};

const VERSIONS: [Version; 10] = [
    Version::new(0, 8, 5),
    Version::new(0, 9, 2),
    Version::new(0, 10, 1),
    Version::new(0, 10, 2),
    Version::new(0, 11, 1),
    Version::new(0, 13, 0),
    Version::new(0, 17, 0),
    Version::new(0, 19, 0),
    Version::new(0, 31, 0),
    Version::new(0, 33, 0),
];

/// `builtin` writes no bytes to compare.
const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::Sha256,
    Algorithm::Sha256Cbor,
    Algorithm::Sha256Cbor64Bit,
    Algorithm::Xxhash,
    Algorithm::XxhashCbor,
];

fuzz_target!(|data: &[u8]| {
    if let Ok(block) = block(&mut Unstructured::new(data)) {
        naive::check(&block);
    }
});

fn block(input: &mut Unstructured<'_>) -> Result<Block> {
    let version = *input.choose(&VERSIONS)?;
    let algorithm = *input.choose(&ALGORITHMS)?;
    let parent = input.arbitrary()?;
    let mut keys = Vec::new();
    if input.arbitrary()? {
        let (name, id, path) = (text(input)?, input.arbitrary()?, text(input)?);
        keys.push(Key::Lora { name, id, path });
    }
    for _ in 0..input.int_in_range(0..=6)? {
        keys.push(match input.int_in_range(0..=2)? {
            0 => Key::Item { identifier: text(input)?, offset: offset(input)? },
            1 => Key::Salt(text(input)?),
            _ if version < Version::new(0, 17, 0) => break,
            _ => Key::Embeds(input.arbitrary()?),
        });
    }
    let mut lookahead = Vec::new();
    if version >= Version::new(0, 33, 0) {
        for _ in 0..input.int_in_range(0..=4)? {
            lookahead.push(token(input)?);
        }
    }
    // Near 13,100 tokens of five bytes a pickle's frame ends.
    let mut tokens = match input.ratio(1, 8)? {
        true => vec![70_000; input.int_in_range(13_080..=13_110)?],
        false => Vec::new(),
    };
    while !input.is_empty() {
        tokens.push(token(input)?);
    }
    Ok(Block { version, algorithm, parent, tokens, lookahead, keys })
}

/// A token near the places where an encoding changes its length, or any.
fn token(input: &mut Unstructured<'_>) -> Result<u32> {
    let any: u32 = input.arbitrary()?;
    Ok(any >> input.int_in_range(0..=31)?)
}

fn offset(input: &mut Unstructured<'_>) -> Result<i64> {
    let any: i64 = input.arbitrary()?;
    Ok(any >> input.int_in_range(0..=63)?)
}

/// Any text; sometimes of a length near which an encoding changes.
fn text(input: &mut Unstructured<'_>) -> Result<String> {
    Ok(match input.int_in_range(0..=7)? {
        0 => "x".repeat(input.int_in_range(65_530..=65_540)?),
        1 => "y".repeat(input.int_in_range(250..=260)?),
        2 => (*input.choose(&["", "a", "é", "☃", "mm", "lora"])?).to_owned(),
        _ => input.arbitrary()?,
    })
}
