//! Any bytes are a snapshot or are refused, before and behind the checksums; an index made of any
//! image keeps its invariants.
#![no_main]

use kvscout::block::WorkerId;
use kvscout::hash::content::DigestKey;
use kvscout::index::{Image, MemoryIndex, MemoryOptions};
use kvscout::ingest::snapshot::{FORMAT, Snapshot};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_128;

fuzz_target!(|bytes: &[u8]| {
    let key = DigestKey::from_bytes([1; 16]);
    let _ = Snapshot::read(&mut &bytes[..], &key);

    let head = [&[0; 4][..], &key.id().to_le_bytes(), &[0; 8]].concat();
    let mut file = [&b"\x89kvscout"[..], &FORMAT.to_le_bytes()].concat();
    for (tag, bytes) in [(b"head", &head[..]), (b"regs", bytes), (b"indx", &[]), (b"end.", &[])] {
        let summed = [&tag[..], &(bytes.len() as u64).to_le_bytes(), bytes].concat();
        file.extend_from_slice(&summed[..12]);
        file.extend_from_slice(&xxh3_128(&summed).to_le_bytes());
        file.extend_from_slice(bytes);
    }
    if let Ok(snapshot) = Snapshot::read(&mut &file[..], &key) {
        let mut again = Vec::new();
        snapshot.write(&mut again).unwrap();
        assert_eq!(Snapshot::read(&mut &again[..], &key).unwrap(), snapshot);
    }

    let options = MemoryOptions { budget: 4 << 20, ..MemoryOptions::default() };
    if let Ok(index) = MemoryIndex::import(options, &Image::from_bytes(bytes.to_vec())) {
        let image = index.export();
        let copy = MemoryIndex::import(options, &image).unwrap();
        assert_eq!(counts(&copy), counts(&index));
        workers(image.as_bytes()).for_each(|worker| index.remove(worker));
        assert_eq!(counts(&index), (0, 0, 0));
        assert_eq!(index.export(), MemoryIndex::default().export());
    }
});

/// Behind three totals and the list of vocabularies.
fn workers(image: &[u8]) -> impl Iterator<Item = WorkerId> {
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let at = 28 + number(24) as usize * 8;
    (0..number(at) as usize).map(move |n| WorkerId(number(at + 4 + n * 8)))
}

fn counts(index: &MemoryIndex) -> (u64, u64, u64) {
    let stats = index.stats();
    (stats.blocks, stats.entries, stats.unplaced)
}
