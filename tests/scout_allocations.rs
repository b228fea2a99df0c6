//! A ranking allocates nothing, once its scratch has grown to its size.

mod scout_support;

use kvscout::block::Prompt;
use kvscout::scout::{Options, Registration, Request, Scout, Scratch};
use scout_support::{Group, SIZE, payload, tokens};

#[test]
fn ranking_and_reading_all_rows_allocates_nothing() {
    let (prompt, miss) = (tokens(1, 100 * SIZE + 1), tokens(2, 100 * SIZE));
    for groups in [&[Group::full(0)][..], &[Group::full(0), Group::window(1, 64)]] {
        let scout = Scout::new(Options::default()).unwrap();
        for n in 0..70 {
            let worker = scout.register(Registration::new(format!("w{n}"), "m")).unwrap();
            let held = &prompt[..(100 - n) * SIZE];
            scout.apply(worker, 0, &payload(n as u64, held, groups)).unwrap();
        }
        let mut scratch = Scratch::default();
        let mut ask = |prompt: &[u32]| {
            let request = Request::new("m", Prompt::new(prompt));
            let ranking = scout.score(&request, &mut scratch).unwrap();
            ranking.iter().map(|row| row.score.matched_blocks).sum::<u32>()
        };
        let expected = (31..=100).sum();
        // Buffers are exchanged under way: each has its turn to grow.
        for _ in 0..3 {
            assert_eq!((ask(&prompt), ask(&miss)), (expected, 0));
        }
        let counted = allocation_counter::measure(|| {
            assert_eq!((ask(&prompt), ask(&miss)), (expected, 0));
        });
        assert_eq!(counted.count_total, 0, "{} groups", groups.len());
    }
}
