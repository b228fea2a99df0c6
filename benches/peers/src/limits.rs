//! What the machine allows: the figures that bound every index.

use std::hint::black_box;
use std::time::Instant;

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::clock::pin;
use crate::ours;
use crate::rng::{Rng, mix};
use crate::workload::{BLOCK, tokens};

/// A figure in nanoseconds and what it is of.
pub type Limit = (String, f64);

/// Measures everything; half a minute.
pub fn all(quick: bool) -> Vec<Limit> {
    pin(1);
    let mut limits = memory(if quick { 64 << 20 } else { 1 << 30 });
    limits.extend(compare());
    limits.extend(hashes());
    limits
}

/// Cache lines, aligned so that huge pages can hold them.
struct Lines {
    words: Vec<u64>,
    offset: usize,
}

const LINE: usize = 8;
const HUGE: usize = 2 << 20;

impl Lines {
    fn new(bytes: usize, huge: bool) -> Lines {
        let mut words = vec![0_u64; (bytes + HUGE) / 8];
        let offset = words.as_ptr().align_offset(HUGE);
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the range lies within the vector's memory; the advice changes how it is backed,
        // never what it holds.
        let refused = unsafe { libc::madvise(words[offset..].as_mut_ptr().cast(), bytes, advice) };
        if refused != 0 {
            eprintln!("# the kernel takes no advice on huge pages");
        }
        // First written after the advice, so that the pages are of the wanted kind.
        words[offset..].iter_mut().for_each(|word| *word = 1);
        Lines { words, offset }
    }

    fn lines(&mut self, bytes: usize) -> &mut [u64] {
        &mut self.words[self.offset..self.offset + bytes / 8]
    }
}

fn memory(large: usize) -> Vec<Limit> {
    let mut limits = Vec::new();
    for huge in [false, true] {
        let pages = if huge { "2 MiB pages" } else { "4 KiB pages" };
        let mut lines = Lines::new(large, huge);
        if !huge {
            limits.push(("random read, 512 KiB".into(), chase(lines.lines(512 << 10), 1)));
            limits.push(("random read, 16 MiB".into(), chase(lines.lines(16 << 20), 1)));
        }
        let size = large >> 20;
        for chains in [1, 4, 8, 16, 32] {
            let what = format!("random read, {size} MiB, {pages}, {chains} at a time");
            limits.push((what, chase(lines.lines(large), chains)));
        }
    }
    limits
}

/// Nanoseconds of a read that depends on the read before, in so many independent chains.
fn chase(words: &mut [u64], chains: usize) -> f64 {
    let lines = words.len() / LINE;
    // One cycle through all lines in random order.
    let mut order: Vec<u32> = (0..lines as u32).collect();
    let mut rng = Rng::new(1);
    for i in (1..lines).rev() {
        order.swap(i, rng.below(i));
    }
    for (line, &next) in order.iter().enumerate() {
        words[line * LINE] = u64::from(next);
    }
    let mut at: Vec<usize> = (0..chains).map(|_| rng.below(lines)).collect();
    let steps = 60_000;
    best_of(5, || {
        for _ in 0..steps {
            for at in &mut at {
                *at = words[*at * LINE] as usize;
            }
        }
        black_box(&at);
    }) / (steps * chains) as f64
}

fn compare() -> Vec<Limit> {
    let prompt: Vec<u64> = (0..1000).map(mix).collect();
    let run = prompt.clone();
    let hot = best_of(200, || {
        let equal = black_box(&prompt).iter().zip(black_box(&run)).take_while(|(a, b)| a == b);
        black_box(equal.count());
    });
    let whole = best_of(200, || {
        black_box(black_box(&prompt) == black_box(&run));
    });
    vec![
        ("compare 1000 digests, one by one".into(), hot),
        ("compare 1000 digests at once".into(), whole),
    ]
}

/// State of SHA-256 before the first compression (FIPS 180-4, section 5.3.3).
pub const SHA256_START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

fn hashes() -> Vec<Limit> {
    const BLOCKS: usize = 1000;
    let tokens: Vec<u32> = (0..BLOCKS as u64).flat_map(|n| tokens(mix(n))).collect();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let blocks = || bytes.chunks_exact(BLOCK * 4);
    let mut limits = Vec::new();
    let mut put = |what: &str, operation: &mut dyn FnMut()| {
        limits.push((format!("{what}, a block"), best_of(50, operation) / BLOCKS as f64));
    };
    put("XXH3-64 of the tokens", &mut || {
        blocks().for_each(|block| {
            black_box(xxh3_64(black_box(block)));
        });
    });
    put("XXH3-128 chain over 16 + 64 bytes", &mut || {
        let mut link = [0; 80];
        let mut hash = 0_u128;
        for block in blocks() {
            link[..16].copy_from_slice(&hash.to_le_bytes());
            link[16..].copy_from_slice(block);
            hash = xxh3_128(&link);
        }
        black_box(hash);
    });
    put("SHA-256 chain over 32 + 68 bytes", &mut || {
        let mut link = [0; 100];
        for block in blocks() {
            link[32..96].copy_from_slice(block);
            let hash = Sha256::digest(link);
            link[..32].copy_from_slice(&hash);
        }
        black_box(link);
    });
    put("SHA-256 chain over 100 padded bytes, compression alone", &mut || {
        // Two compressions; the second block ends with the length in bits.
        let mut link = [[0; 64]; 2];
        (link[1][36], link[1][62], link[1][63]) = (0x80, (800 >> 8) as u8, (800 & 0xff) as u8);
        for block in blocks() {
            link[0][32..].copy_from_slice(&block[..32]);
            link[1][..32].copy_from_slice(&block[32..]);
            let mut state = SHA256_START;
            compress256(&mut state, &link);
            for (bytes, word) in link[0].chunks_exact_mut(4).zip(state) {
                bytes.copy_from_slice(&word.to_be_bytes());
            }
        }
        black_box(link);
    });
    let mut content = ours::Content::new(BLOCKS);
    put("kvscout's content digest", &mut || {
        black_box(content.digests(black_box(&tokens)));
    });
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("aes") {
        put("AES rounds over the tokens", &mut || {
            blocks().for_each(|block| {
                let block = block.try_into().expect("a block has 64 bytes");
                // SAFETY: the processor was found to have the instructions.
                black_box(unsafe { aes_rounds(black_box(block)) });
            });
        });
    }
    limits
}

/// Two AES rounds on each 16 bytes and a fold: about the least that a keyed hash can do.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "aes,sse2")]
fn aes_rounds(block: &[u8; 64]) -> u64 {
    use core::arch::x86_64::{
        _mm_add_epi64, _mm_aesenc_si128, _mm_cvtsi128_si64, _mm_set_epi64x, _mm_xor_si128,
    };
    let key = _mm_set_epi64x(0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7344);
    let lane = |at: usize| {
        let half = |at: usize| {
            let half = block[at..at + 8].try_into().expect("the slice has eight bytes");
            i64::from_le_bytes(half)
        };
        let lane = _mm_set_epi64x(half(at + 8), half(at));
        _mm_aesenc_si128(_mm_aesenc_si128(_mm_xor_si128(lane, key), key), key)
    };
    let left = _mm_aesenc_si128(lane(0), lane(16));
    let right = _mm_aesenc_si128(lane(32), lane(48));
    _mm_cvtsi128_si64(_mm_add_epi64(left, _mm_aesenc_si128(right, key))) as u64
}

/// Nanoseconds of the fastest of so many runs: other tenants only ever add.
fn best_of(runs: usize, mut operation: impl FnMut()) -> f64 {
    let times = (0..runs).map(|_| {
        let start = Instant::now();
        operation();
        start.elapsed().as_nanos() as f64
    });
    times.fold(f64::INFINITY, f64::min)
}
