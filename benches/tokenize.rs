//! What a chat's next turn costs with what is remembered of it, against its whole text.
//!
//! The vocabulary is small, so a text has more tokens than a model would make of it; the ratio is what counts.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvscout::tokenize::{Options, Tokenize, Tokenizer};

/// Bytes of the conversation before the turn that is asked for, some 8,000 tokens of a model.
const BEFORE: usize = 32 << 10;

/// Seeded sentences.
fn sentences(seed: &mut u64, bytes: usize) -> String {
    const WORDS: [&str; 12] = [
        "the",
        "temperature",
        "of",
        "Zürich",
        "was",
        "measured",
        "twice",
        "in",
        "12",
        "days,",
        "said",
        "she.\n",
    ];
    let mut text = String::new();
    while text.len() < bytes {
        *seed =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text += WORDS[(*seed >> 33) as usize % WORDS.len()];
        text.push(' ');
    }
    text
}

fn turn(seed: &mut u64, bytes: usize) -> String {
    let (question, answer) = (sentences(seed, bytes / 4), sentences(seed, bytes * 3 / 4));
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n")
}

fn load(name: &str, memory: usize) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/tokenize").join(name);
    let options = Options { memory, ..Options::default() };
    Tokenizer::load(name, folder.to_str().expect("a path that is text"), options).expect("vectors")
}

fn next_turn(c: &mut Criterion) {
    for name in ["llama3", "prepend"] {
        let (remembering, forgetful) = (load(name, 256 << 20), load(name, 0));
        let mut seed = 1;
        let mut before = String::new();
        while before.len() < BEFORE {
            before += &turn(&mut seed, 2048);
        }
        remembering.text(&before, false).expect("a text");
        let mut next = || format!("{before}{}", turn(&mut seed, 1024));
        for _ in 0..8 {
            let text = next();
            let whole = forgetful.text(&text, false).expect("a text");
            assert_eq!(remembering.text(&text, false).expect("a text"), whole);
        }
        let mut group = c.benchmark_group(format!("tokenize/{name}"));
        group.throughput(Throughput::Bytes(BEFORE as u64 + 1024));
        group.sample_size(20).measurement_time(Duration::from_secs(3));
        // A new turn each time: what is new has never been seen.
        group.bench_function("next turn", |b| {
            b.iter_batched(
                &mut next,
                |text| black_box(remembering.text(&text, false)),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("whole text", |b| {
            b.iter_batched(
                &mut next,
                |text| black_box(forgetful.text(&text, false)),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, next_turn);
criterion_main!(benches);
