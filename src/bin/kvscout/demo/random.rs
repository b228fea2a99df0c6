//! Reproducible random numbers: the same seed gives the same demo on every machine.

use super::workload::Millis;

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The sequence of a seed. Streams of one seed have little in common.
    pub(super) fn new(seed: u64, stream: u64) -> Random {
        Random(mix(seed) ^ mix(!stream))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which is above 0. Even enough for an `end` far below 2^64.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// A number from `least` to `most`.
    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// The time until the next of events that come every `mean` on average (exponential).
    pub(super) fn gap(&mut self, mean: Millis) -> Millis {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - unit).ln() * mean as f64) as Millis
    }

    /// A number below `end`, `n` being as likely as `1 / (n + 1)` (Zipf's law).
    pub(super) fn zipf(&mut self, end: u64) -> u64 {
        let weight = |n: u64| 1_000_000 / (n + 1);
        let mut at = self.below((0..end).map(weight).sum());
        for n in 0..end {
            match at.checked_sub(weight(n)) {
                Some(rest) => at = rest,
                None => return n,
            }
        }
        end - 1
    }
}

/// Spreads a number over 64 bits.
pub(super) fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // First outputs of the reference implementation for state 1234567.
        let mut random = Random(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut random = Random::new(1, 2);
        for _ in 0..1000 {
            assert!((3..=5).contains(&random.between(3, 5)));
            assert!(random.zipf(4) < 4);
        }
        let mean = (0..10_000).map(|_| random.gap(1000)).sum::<u64>() / 10_000;
        assert!((900..1100).contains(&mean), "{mean}");
    }
}
