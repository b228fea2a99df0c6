//! Corners of CPython's C pickler that no request of the vectors reaches.
//!
//! Expected values are `hashlib.sha256(pickle.dumps((bytes(32), tokens, extras), protocol=5))` of
//! CPython 3.11.7, where every string was decoded from bytes on its own.

use kvscout::block::{ExtraKey, Lora};
use kvscout::hash::vllm::{Algorithm, BlockHash, Contract, Root, Version};

const ZERO: [u8; 32] = [0; 32];

fn hash(
    version: Version,
    tokens: &[u32],
    keys: &[ExtraKey<'_>],
    adapter: Option<Lora<'_>>,
) -> String {
    let contract = Contract::new(version, Algorithm::Sha256, Root::Seed("0")).unwrap();
    let parent = BlockHash::from_bytes(&ZERO).unwrap();
    contract.child(&parent, tokens, &[], keys.iter().copied(), adapter).unwrap().to_string()
}

#[test]
fn a_frame_ends_where_the_first_object_after_64_kib_begins() {
    let cases = [
        (13098, 0, 0, "62dd3a30a798c4eadf46dc811d42c32ef09caa909107b7884d7dc95e0b7ff70e"),
        (13098, 2, 0, "fecae7f031b95bfa7cb1c7ade1611297f2a09932a10902f70d87321c623b6506"),
        (13099, 0, 0, "ad4ff573309f1de67425bb0b21fc4bfb09d90cf9b4e80bd7105f104e9b653372"),
        (13099, 1, 0, "bf1df1c216e55f708ffe8458f1d96a94feda7f74e06ea016731d6e5bc4065569"),
        (13099, 2, 0, "b9fb7f1230ff12906b266b0ac5fc1f7387c544c51a831ed01ed4839b20797ea5"),
        (13099, 3, 0, "e24d61e5fa7c85f70571c027e540cf8f17c469c06b3eca2084534e3b225e9181"),
        (13099, 4, 0, "4543b9b5d272965123e7d551a1c6756c61fc760274000aac7f997e2b98eaa232"),
        (13099, 0, 1, "3fd45602c576edd6d53071e959fe0ad1d5a53ce86914e4a6a522b29991027b26"),
        (13099, 0, 2, "41e975216ee3821345fd3024d8ce7c20bca72efd3c5a18a74f39c79e2b40f48a"),
        (13097, 4, 1, "d71ae8b43dec412836c439a8eb7306aed8dcd30b0f46b1d49da78ddc51425473"),
        (13096, 4, 5, "4cd2f9bf64b9be8c91f37e6a1752fcefc3869818d15b854d03dbd8c1cf9c4c2d"),
        (30000, 1, 0, "e8b8ebaf5ba409a6b16a6bf9cd07d0cf7999923b96b5a8d942116365cb503006"),
    ];
    for (fives, twos, threes, expected) in cases {
        let mut tokens = vec![70000; fives];
        tokens.extend(vec![1; twos]);
        tokens.extend(vec![300; threes]);
        assert_eq!(hash(Version::NEWEST, &tokens, &[], None), expected, "{fives} {twos} {threes}");
    }
}

#[test]
fn a_text_of_64_kib_leaves_the_frame() {
    let cases = [
        (255, "7ea134698f7fb30fd58b7a19ae240cccfb4c497461ce9bc4470c63ab16a7d88f"),
        (256, "384a4aced71a8a162227328205eec926cb4cfa256f1c18873598c15b4feea59d"),
        (65535, "f7310184459ac81f07732ad2f8d2be99f3cac7a91b9b6556ac58c1c746760f4e"),
        (65536, "a1d8f274589cbaa6c52dbd39e09cfab81a0e75333f92f3f43a49ec7ee53fb8c0"),
        (70000, "9802c51884bea5de0161698815b3d603d20ecbc06953432b9e68efbd867fd1d1"),
    ];
    for (length, expected) in cases {
        let salt = "x".repeat(length);
        let found = hash(Version::new(0, 30, 0), &[1, 2], &[ExtraKey::Salt(&salt)], None);
        assert_eq!(found, expected, "{length}");
    }
}

#[test]
fn equal_strings_of_one_latin_1_character_are_one_object() {
    let cases = [
        ("a", "a", "d37751c5059fe56af9ed4075b480546ec21403fbec6327432bd8b600498b5df8"),
        ("é", "é", "4bba7b5ecad54d025901c348c1a836d430207eccfb5dcffbf926f93286f22044"),
        ("☃", "☃", "1b95a3ace30b9e99998f95efee5ba719870276fb8b2ed6a8c303e3a2bd9eb961"),
        ("a", "b", "3b9698efbde223a708e3d826eb76cd7ee6c4dc5e4e2835b71b01d9fb6a689d25"),
        ("ab", "ab", "af8e33004ec227676a2ccaf80b9ef1d01e51117c0b983418c80597b3ea048692"),
    ];
    for (name, salt, expected) in cases {
        let keys = [ExtraKey::Lora(name), ExtraKey::Salt(salt)];
        assert_eq!(hash(Version::new(0, 30, 0), &[1, 2], &keys, None), expected, "{name} {salt}");
    }
    let adapter = |name| Some(Lora { name, id: None, path: Some(name) });
    assert_eq!(
        hash(Version::NEWEST, &[1, 2], &[ExtraKey::Lora("a"), ExtraKey::Salt("a")], adapter("a")),
        "84aa17074c236d801d6da21fd5824f533f6032a9af180d6ae05a26a75bc0150b"
    );
    assert_eq!(
        hash(Version::NEWEST, &[1, 2], &[ExtraKey::Lora("")], adapter("")),
        "23636b92b31af7a009601f591f5c1ce3388d1f7de268c11e905a0910391e1bcb"
    );
}

#[test]
fn a_tag_is_found_again_behind_more_than_255_objects() {
    let tokens: Vec<u32> = (0..300).collect();
    let identifiers: Vec<String> = (0..100).map(|n| format!("id{n}")).collect();
    let keys: Vec<_> = (0..)
        .zip(&identifiers)
        .map(|(offset, identifier)| ExtraKey::Item { identifier, offset })
        .collect();
    let expected = "1085cb9d4be9253785b0b3915795e3029c0b8b9e5f3ee236655ab9e531152313";
    assert_eq!(hash(Version::NEWEST, &tokens, &keys, None), expected);
}
