use proptest::prelude::*;

use super::*;
use crate::block::{BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::hash::vllm::{self, Algorithm, Root, Version};
use crate::index::{Block, Change, Home, MemoryIndex, Parent, Store};
use crate::ingest::Reason;
use crate::ingest::verify::{Candidates, Contract};
use crate::score::{GroupFacts, GroupRule};

fn key() -> DigestKey {
    DigestKey::from_bytes([7; 16])
}

fn worker(n: u32) -> WorkerState {
    let shape = Shape { size: BlockSize::DEFAULT, lookahead: n };
    let facts = GroupFacts { group: Group(n), rule: GroupRule::Window { tokens: 128 }, shape };
    WorkerState {
        worker: WorkerId(n),
        space: SpaceId(1),
        vocabulary: VocabularyId(2),
        tenant: "default".to_owned(),
        pod: format!("pod-{n}"),
        rank: n,
        model: (n > 0).then(|| "model".to_owned()),
        vllm: Some(Version::NEWEST),
        block_size: BlockSize::new(n),
        clears_gpu_only: n > 0,
        reports_presence: n == 0,
        told: if n > 0 { KeptContract::Sglang } else { KeptContract::Undecided },
        attached: "tcp://10.0.0.1:5557".to_owned(),
        incarnation: 3,
        watermark: Some(Watermark { seq: 9, digest: 10, timestamp: 1.5_f64.to_bits() }),
        unsound: (n > 0).then_some(Reason::Gap),
        cleared_by_hand: n > 0,
        hides_extras: n > 0,
        contract: KeptContract::Vllm {
            version: Version::NEWEST,
            algorithm: Algorithm::Sha256,
            root: "00".repeat(32),
        },
        groups: vec![GroupState { facts, on_gpu: true }],
    }
}

fn registrations(workers: Vec<WorkerState>) -> Registrations {
    let home = Home { space: SpaceId(1), vocabulary: VocabularyId(2) };
    let adapter = AdapterState {
        tenant: "default".to_owned(),
        name: "adapter".to_owned(),
        model: "model".to_owned(),
        id: Some(-1),
        path: None,
    };
    Registrations {
        given: Given { workers: 2, spaces: 1, vocabularies: 2 },
        vocabularies: vec![VocabularyState { home, contract: KeptContract::Sglang }],
        adapters: vec![adapter],
        editions: vec![EditionState { tenant: "t".into(), adapter: "a".into(), number: 2 }],
        workers,
    }
}

fn snapshot() -> Snapshot {
    let image = Image::from_bytes((0..200).collect());
    Snapshot::new(&key(), 1_700_000_000_000, registrations(vec![worker(0), worker(1)]), image)
}

fn written(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = snapshot.write(&mut bytes).unwrap();
    assert_eq!(length, bytes.len() as u64);
    bytes
}

fn read(bytes: &[u8]) -> Result<Snapshot, Refused> {
    Snapshot::read(&mut &bytes[..], &key())
}

#[test]
fn what_is_written_is_read() {
    let snapshot = snapshot();
    assert_eq!(read(&written(&snapshot)).unwrap(), snapshot);
    let empty =
        Snapshot { registrations: Registrations::default(), image: Image::default(), ..snapshot };
    assert_eq!(read(&written(&empty)).unwrap(), empty);
}

#[test]
fn the_same_bytes_come_in_the_memory_of_the_image() {
    let mut image = Vec::with_capacity(1 << 16);
    image.extend((0..200).cycle().take(30_000));
    let snapshot = Snapshot { image: Image::from_bytes(image), ..snapshot() };
    let expected = written(&snapshot);
    let at = snapshot.image.as_bytes().as_ptr();
    let bytes = snapshot.into_bytes();
    assert!(bytes == expected);
    assert_eq!(bytes.as_ptr(), at, "there was room for the rest");
}

/// Format 1 as `docs/state.md` has it: a change of these bytes needs a new number.
#[test]
fn the_format_is_the_documented_one() {
    let index = MemoryIndex::default();
    let home = Home { space: SpaceId(1), vocabulary: VocabularyId(2) };
    index.assign(WorkerId(3), home).unwrap();
    let block = Block { name: Name(0x1111), digest: Some(Digest(0x2222)) };
    let store = Store {
        shape: Shape::plain(BlockSize::DEFAULT),
        group: Group(4),
        tier: Tier::Cpu,
        parent: Parent::Root,
        blocks: &[block],
    };
    index.apply(WorkerId(3), &[Change::Store(store)]).unwrap();
    let image = index.export();
    let words = |words: &[u32]| words.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let expected = [
        // Totals; vocabularies; workers.
        words(&[1, 0, 1, 0, 0, 0, 1, 1, 2, 1, 3, 0]),
        // Lanes.
        [words(&[1, 0, 4]), vec![1]].concat(),
        // Trees, one run; its content; its names; its holders; no parts.
        words(&[1, 1, 16, 0, 1, 0, 0, 1, 0x2222, 0, 1, 0, 0x1111, 0, 1, 1, 1, 0, 0]),
        // Copies, names, unplaced blocks.
        words(&[0, 0, 0]),
    ];
    assert_eq!(image.as_bytes(), expected.concat());

    let file = written(&Snapshot {
        version: "v".to_owned(),
        ..Snapshot::new(&key(), 5, Registrations::default(), image)
    });
    let (magic, rest) = file.split_at(12);
    assert_eq!(magic, b"\x89kvscout\x01\0\0\0");
    let (tag, rest) = rest.split_at(12);
    assert_eq!(tag, [&b"head"[..], &21_u64.to_le_bytes()].concat());
    let (sum, rest) = rest.split_at(16);
    let head = [&words(&[1])[..], b"v", &key().id().to_le_bytes(), &5_u64.to_le_bytes()].concat();
    assert!(rest.starts_with(&head));
    let summed = xxhash_rust::xxh3::xxh3_128(&[tag, &head].concat());
    assert_eq!(sum, summed.to_le_bytes());
    assert!(rest[21..].starts_with(b"regs\x1c\0\0\0\0\0\0\0"));
    assert_eq!(rest[rest.len() - 28..][..12], *b"end.\0\0\0\0\0\0\0\0");
}

#[test]
fn no_byte_can_be_cut_off_or_changed() {
    let whole = written(&snapshot());
    for at in 0..whole.len() {
        let error = read(&whole[..at]).unwrap_err();
        assert!(matches!(error, Refused::Truncated { .. }), "{at}: {error}");
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let error = read(&bytes).unwrap_err();
            let expected = match at {
                0..8 => matches!(error, Refused::Foreign),
                8..12 => matches!(error, Refused::Newer { .. } | Refused::Damaged { .. }),
                _ => matches!(error, Refused::Damaged { .. } | Refused::Truncated { .. }),
            };
            assert!(expected, "byte {at} bit {bit}: {error}");
        }
    }
}

#[test]
fn each_refusal_says_what_is_wrong_and_what_to_do() {
    let whole = written(&snapshot());
    let says = |bytes: &[u8], part: &str| {
        let message = read(bytes).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    says(b"", "ends within the head");
    says(b"hello", "no snapshot of kvscout");
    says(b"#!/bin/sh\necho a script of some length\n", "no snapshot of kvscout");
    let newer = [&whole[..8], &[9, 0, 0, 0], &whole[12..]].concat();
    says(&newer, "format 9");
    says(&whole[..whole.len() - 1], "ends within the end mark");
    says(&whole[..whole.len() - 100], "ends within the index");
    let mut flipped = whole.clone();
    let at = whole.len() - 50;
    flipped[at] ^= 1;
    says(&flipped, "checksum of the index");
    let other = DigestKey::from_bytes([8; 16]);
    let message = Snapshot::read(&mut &whole[..], &other).unwrap_err().to_string();
    assert!(message.contains(&format!("{:016x}", key().id())), "{message}");
    assert!(message.contains(&format!("{:016x}", other.id())), "{message}");
    let error = Error::from(read(b"hello").unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Decode);
    // The bytes may be sound: whoever asks again may have them.
    let error = Error::from(Refused::Unreadable(io::Error::from(io::ErrorKind::PermissionDenied)));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn a_snapshot_knows_the_key_by_its_fingerprint_only() {
    let key = DigestKey::from_bytes(*b"a secret, secret");
    let bytes = written(&Snapshot::new(&key, 0, Registrations::default(), Image::default()));
    assert!(!bytes.windows(4).any(|w| w == b"secr"));
    assert!(bytes.windows(8).any(|w| w == key.id().to_le_bytes()));
}

#[test]
fn announced_sizes_take_no_memory() {
    let whole = written(&snapshot());
    // The length of the registrations, behind head and tag.
    let at = whole.windows(4).position(|w| w == b"regs").unwrap() + 4;
    let mut bytes = whole.clone();
    bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    let counted = allocation_counter::measure(|| assert!(read(&bytes).is_err()));
    assert!(counted.bytes_max < 64 << 10, "{counted:?}");
}

#[test]
fn a_section_that_makes_no_sense_is_refused_behind_its_checksum() {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    let mut head = Vec::new();
    plain::text(&mut head, "0.1.0");
    head.extend_from_slice(&key().id().to_le_bytes());
    head.extend_from_slice(&[0; 8]);
    HEAD.write(&mut bytes, &head).unwrap();
    REGISTRATIONS.write(&mut bytes, &[255; 40]).unwrap();
    let error = read(&bytes).unwrap_err();
    assert!(matches!(error, Refused::Contradictory { section: "the list of registrations", .. }));
}

#[test]
fn reasons_are_found_by_their_labels() {
    for reason in Reason::ALL {
        assert_eq!(Reason::from_label(reason.as_str()), Some(reason));
    }
    assert_eq!(Reason::from_label("hunger"), None);
}

#[test]
fn contracts_come_back() {
    let known = [Algorithm::Builtin, Algorithm::Sha256]
        .map(|algorithm| vllm::Contract::new(Version::new(0, 9, 2), algorithm, Root::Seed("0")))
        .map(|contract| Contract::Vllm(contract.unwrap()));
    let newer = vllm::Contract::new(Version::NEWEST, Algorithm::Sha256Cbor, Root::Seed("7"));
    let xxhash = vllm::Contract::new(Version::NEWEST, Algorithm::Xxhash, Root::Seed("7"));
    let unknown = [newer, xxhash].map(|contract| Contract::Vllm(contract.unwrap()));
    for contract in known.iter().chain(&unknown).chain([&Contract::Sglang]) {
        let kept = KeptContract::from(contract);
        assert_eq!(kept.restore(&known).unwrap().as_ref(), Some(contract));
    }
    assert_eq!(KeptContract::Private.restore(&known).unwrap(), None);
    // A root hash alone does not say the seed, under which strings are hashed, too.
    let seeded = vllm::Contract::new(Version::new(0, 9, 2), Algorithm::Builtin, Root::Seed("7"));
    let seeded = Contract::Vllm(seeded.unwrap());
    let tried = Candidates::new(&["7".to_owned()]);
    let restored = KeptContract::from(&seeded).restore(tried.contracts()).unwrap();
    assert_eq!(restored, Some(seeded));
}

#[cfg(unix)]
mod directories {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Temporary {
            let name = format!("kvscout-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            Temporary(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: PathBuf) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_directory_keeps_one_key_and_the_last_snapshot_for_its_owner() {
        let at = Temporary::new("kept");
        let directory = StateDirectory::open(&at.0).unwrap();
        let key = directory.key().unwrap();
        assert_eq!(directory.key().unwrap(), key);
        assert!(directory.load(&key).unwrap().is_none());
        for created in [1, 2] {
            // Left over by a crash.
            fs::write(at.0.join("snapshot.unfinished"), "half").unwrap();
            let snapshot = {
                let registrations = registrations(vec![worker(1)]);
                Snapshot::new(&key, created, registrations, Image::default())
            };
            let kept = directory.save(&snapshot).unwrap();
            assert_eq!(kept.bytes, fs::metadata(at.0.join("snapshot")).unwrap().len());
            assert_eq!(directory.load(&key).unwrap(), Some(snapshot));
        }
        assert_eq!(mode(at.0.clone()), 0o700);
        let mut files: Vec<_> =
            fs::read_dir(&at.0).unwrap().map(|f| f.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["key", "lock", "snapshot"]);
        files.iter().for_each(|file| assert_eq!(mode(at.0.join(file)), 0o600));
    }

    #[test]
    fn a_snapshot_that_is_set_aside_replaces_nothing() {
        let at = Temporary::new("aside");
        let directory = StateDirectory::open(&at.0).unwrap();
        for (text, name) in [("1", "snapshot.refused"), ("2", "snapshot.refused.2")] {
            fs::write(at.0.join("snapshot"), text).unwrap();
            let aside = directory.set_aside().unwrap();
            assert_eq!(aside, at.0.join(name));
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
        assert_eq!(fs::read_to_string(at.0.join("snapshot.refused")).unwrap(), "1");
        assert!(directory.set_aside().is_err(), "there is none");
    }

    #[test]
    fn one_process_at_a_time() {
        let at = Temporary::new("alone");
        let directory = StateDirectory::open(&at.0).unwrap();
        let message = StateDirectory::open(&at.0).unwrap_err().to_string();
        assert!(message.contains("in use"), "{message}");
        drop(directory);
        StateDirectory::open(&at.0).unwrap();
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_and_stays() {
        let at = Temporary::new("key");
        let directory = StateDirectory::open(&at.0).unwrap();
        let key = directory.key().unwrap();
        let file = at.0.join("key");
        for open in [0o640, 0o604, 0o644] {
            fs::set_permissions(&file, fs::Permissions::from_mode(open)).unwrap();
            let message = directory.key().unwrap_err().to_string();
            assert!(message.contains(&format!("{open:04o}")), "{message}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(directory.key().unwrap(), key);
        for text in ["", "abc", &"g".repeat(32), &"0".repeat(33), &"+".repeat(32)] {
            fs::write(&file, text).unwrap();
            let message = directory.key().unwrap_err().to_string();
            assert!(message.contains("32 hex digits"), "{message}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }
}

proptest! {
    #[test]
    fn changed_bytes_are_refused_and_never_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let whole = written(&snapshot());
        let mut bytes = whole.clone();
        for (at, change) in changes {
            bytes[at.index(whole.len())] ^= change;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(whole.len()));
        }
        prop_assert!(bytes == whole || read(&bytes).is_err());
    }

    #[test]
    fn any_list_of_registrations_decodes_or_is_refused(bytes in prop::collection::vec(0u8..4, 0..200)) {
        if let Ok(registrations) = Registrations::decode(&bytes) {
            prop_assert_eq!(Registrations::decode(&registrations.encode()).unwrap(), registrations);
        }
    }
}

#[test]
fn a_secret_has_64_hex_digits_and_no_other_number_of_them() {
    let digits = "ab".repeat(33);
    assert_eq!(parse_secret(&digits[..64]), Some([0xab; 32]));
    for length in [0, 2, 62, 63, 65, 66] {
        assert_eq!(parse_secret(&digits[..length]), None, "{length}");
    }
    assert_eq!(parse_secret(&"xy".repeat(32)), None);
}
