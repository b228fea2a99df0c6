//! Block hashes against a literal reference, and the promises of a chain.

#[path = "support/naive.rs"]
mod naive;

use kvscout::block::{BlockSize, Item, Lora, Prompt, Shape};
use kvscout::hash::vllm::{Algorithm, BlockHash, Contract, Root, Version};
use kvscout::{Error, ErrorKind};
use naive::{Block, Key};
use proptest::prelude::*;

fn token() -> impl Strategy<Value = u32> {
    prop_oneof![
        0_u32..30,
        any::<u32>(),
        (0_u32..32, 0_u32..3).prop_map(|(bit, by)| (1_u32 << bit).wrapping_sub(1).wrapping_add(by)),
    ]
}

fn offset() -> impl Strategy<Value = i64> {
    prop_oneof![
        -300_i64..300,
        any::<i64>(),
        (0_u32..63, -1_i64..2, any::<bool>()).prop_map(|(bit, by, negative)| {
            let n = (1_i64 << bit) + by;
            if negative { -n } else { n }
        }),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab]{0,2}",
        "[éß☃😀]{0,3}",
        ".{0,300}",
        (65_530_usize..65_540).prop_map(|n| "x".repeat(n))
    ]
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        (text(), offset()).prop_map(|(identifier, offset)| Key::Item { identifier, offset }),
        text().prop_map(Key::Salt),
        any::<[u8; 32]>().prop_map(Key::Embeds),
    ]
}

fn version() -> impl Strategy<Value = Version> {
    let versions =
        [(8, 5), (9, 2), (10, 1), (10, 2), (11, 1), (13, 0), (17, 0), (19, 0), (31, 0), (33, 0)];
    prop::sample::select(versions.map(|(minor, patch)| Version::new(0, minor, patch)).to_vec())
}

prop_compose! {
    fn block()(
        version in version(),
        algorithm in prop::sample::select(Algorithm::ALL.to_vec()),
        parent in any::<[u8; 32]>(),
        fill in prop_oneof![9 => Just(0), 1 => 13_085_usize..13_101],
        mut tokens in prop::collection::vec(token(), 0..40),
        lookahead in prop::collection::vec(token(), 0..5),
        lora in prop::option::of((text(), offset(), text())),
        items in prop::collection::vec(key(), 0..6),
    ) -> Block {
        tokens.splice(0..0, std::iter::repeat_n(70_000, fill));
        let lora = lora.map(|(name, id, path)| Key::Lora { name, id, path });
        let since = |minor| version >= Version::new(0, minor, 0);
        Block {
            version,
            // `builtin` writes no bytes to compare.
            algorithm: if algorithm == Algorithm::Builtin { Algorithm::Sha256 } else { algorithm },
            parent,
            tokens,
            lookahead: if since(33) { lookahead } else { Vec::new() },
            keys: lora
                .into_iter()
                .chain(items)
                .filter(|key| since(17) || !matches!(key, Key::Embeds(_)))
                .collect(),
        }
    }
}

proptest! {
    #[test]
    fn a_block_hashes_as_a_recursive_writer_of_its_value_says(block in block()) {
        naive::check(&block);
    }

    #[test]
    fn a_prompt_can_be_hashed_in_one_go_in_steps_or_from_any_block(
        length in 0_usize..120,
        size in 1_u32..20,
        lookahead in 0_u32..4,
        mut places in prop::collection::vec((0_u32..100, 0_u32..30), 0..5),
    ) {
        places.sort_unstable();
        // A request's items never overlap.
        let mut end = 0;
        let mut items = Vec::new();
        for (gap, length) in places {
            let offset = end + gap % 17;
            items.push(Item { identifier: "item", offset, length: length + 1 });
            end = offset + length + 1;
        }
        let tokens: Vec<u32> = (0..length as u32).collect();
        let shape = Shape { size: BlockSize::new(size).unwrap(), lookahead };
        let lora = Some(Lora { name: "l", id: None, path: Some("/l") });
        let prompt = Prompt { lora, items: &items, cache_salt: Some("s"), ..Prompt::new(&tokens) };
        let contract = Contract::new(Version::NEWEST, Algorithm::Sha256, Root::Unset).unwrap();
        let chain = || contract.chain(shape, &prompt).unwrap();

        let whole: Vec<BlockHash> = chain().extend(&tokens).collect();
        prop_assert_eq!(whole.len(), shape.blocks_in(length));
        // Since 0.31 it makes no difference when a token arrived.
        let mut stepwise = chain();
        let mut steps = Vec::new();
        for seen in 0..=length {
            steps.extend(stepwise.extend(&tokens[..seen]));
        }
        prop_assert_eq!(&steps, &whole);
        for n in 0..whole.len() {
            let mut resumed = chain();
            resumed.resume(n, n.checked_sub(1).map_or(contract.root(), |n| whole[n])).unwrap();
            prop_assert_eq!(std::iter::from_fn(|| resumed.advance(&tokens)).collect::<Vec<_>>(), &whole[n..]);
            prop_assert_eq!(resumed.blocks(), whole.len());
        }
    }
}

fn contract(version: Version, algorithm: Algorithm, root: Root<'_>) -> Result<Contract, Error> {
    Contract::new(version, algorithm, root)
}

#[test]
fn contracts_are_equal_when_they_hash_alike() {
    let of = |minor, root| contract(Version::new(0, minor, 0), Algorithm::Sha256, root).unwrap();
    assert_eq!(of(20, Root::Seed("0")), of(29, Root::Seed("0")));
    assert_ne!(of(20, Root::Seed("0")), of(20, Root::Seed("00")));
    assert_ne!(of(30, Root::Seed("0")), of(31, Root::Seed("0")));
    assert_eq!(of(30, Root::Unset), of(30, Root::Seed("vllm-none-hash")));
}

#[test]
fn a_newer_version_follows_the_newest_known_one_and_says_so() {
    let newer = contract(Version::new(1, 2, 0), Algorithm::Sha256, Root::Unset).unwrap();
    let newest = contract(Version::NEWEST, Algorithm::Sha256, Root::Unset).unwrap();
    assert!(newer.assumed() && !newest.assumed());
    assert_eq!(newer, newest);
}

#[test]
fn what_cannot_be_hashed_exactly_is_an_error_that_says_which_fact_is_missing() {
    let old = Version::new(0, 20, 2);
    let cases = [
        (contract(Version::new(0, 8, 4), Algorithm::Sha256, Root::Seed("0")), "0.8.5"),
        (contract(old, Algorithm::Builtin, Root::Seed("0")), "it has sha256, sha256_cbor, xxhash"),
        (contract(old, Algorithm::Sha256, Root::Unset), "without PYTHONHASHSEED"),
        (contract(Version::NEWEST, Algorithm::Xxhash, Root::Unset), "NONE_HASH"),
        (contract(old, Algorithm::Sha256, Root::Hash("abcd")), "64 hex digits"),
        (contract(Version::new(0, 10, 1), Algorithm::Sha256, Root::Hash("ab")), "decimal"),
        (contract(Version::new(0, 10, 1), Algorithm::Builtin, Root::Seed("random")), "random"),
    ];
    for (found, part) in cases {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }

    let shape = Shape::plain(BlockSize::DEFAULT);
    let refused = |version, prompt: &Prompt<'_>| {
        let contract = contract(version, Algorithm::Sha256, Root::Seed("0")).unwrap();
        contract.chain(shape, prompt).unwrap_err()
    };
    let lora = Some(Lora { name: "sql", id: None, path: None });
    let adapter = Prompt { lora, ..Prompt::default() };
    let digests = [[0; 32]];
    let embeds = Some(kvscout::block::Embeds::Digests(&digests));
    let embeds = Prompt { embeds, ..Prompt::default() };
    for (error, part, kind) in [
        (refused(Version::NEWEST, &adapter), "path", ErrorKind::MissingFact),
        (refused(Version::new(0, 11, 0), &adapter), "integer id", ErrorKind::MissingFact),
        (refused(Version::new(0, 16, 0), &embeds), "raw rows", ErrorKind::MissingFact),
        (refused(Version::new(0, 11, 0), &embeds), "0.11.1", ErrorKind::InvalidInput),
    ] {
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn a_parent_of_another_form_is_refused() {
    let contract = contract(Version::NEWEST, Algorithm::Sha256, Root::Unset).unwrap();
    let prompt = Prompt::default();
    let mut chain = contract.chain(Shape::plain(BlockSize::DEFAULT), &prompt).unwrap();
    let narrow = BlockHash::from_bytes(&[1; 16]).unwrap();
    assert!(chain.resume(1, narrow).unwrap_err().to_string().contains("32 bytes"));
    assert!(contract.child(&BlockHash::from(1_i64), &[1], &[], [], None).is_err());
}
