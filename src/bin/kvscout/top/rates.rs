//! What two looks at a daemon say of the time between them.

use std::collections::HashMap;

use serde::Serialize;

use crate::status::{Bucket, Status, WorkerLine};

/// Looks that are closer together say nothing of how fast something goes.
const LEAST_SECONDS: f64 = 0.05;

/// How fast things went between two looks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// The time between them, by the daemon's clock.
    pub(super) over_seconds: f64,
    /// Batches applied, a second.
    pub(super) batches: f64,
    /// Events in them, a second.
    pub(super) events: f64,
    /// Copies added, a second.
    pub(super) stored: f64,
    /// Copies taken away one by one, a second.
    pub(super) removed: f64,
    /// Questions, a second.
    pub(super) questions: f64,
    /// What was asked meanwhile.
    pub(super) asked: Asked,
    /// Events a second, in the order of the later look's workers.
    #[serde(skip)]
    pub(super) workers: Vec<f64>,
}

/// What questions of some time found, and how long they took.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Asked {
    /// How many there were.
    pub(super) questions: u64,
    /// Tokens of all of them.
    pub(super) asked_tokens: u64,
    /// The part of these tokens that the first worker of each answer held; null where nothing was asked.
    pub(super) hit_ratio: Option<f64>,
    /// Half of them took no longer.
    pub(super) p50_seconds: Option<f64>,
    /// All but one in a hundred took no longer.
    pub(super) p99_seconds: Option<f64>,
}

impl Rates {
    /// Between two looks at the same daemon; `None` if it was started in between, or they are too close.
    pub(super) fn between(before: &Status, now: &Status) -> Option<Rates> {
        let seconds = now.uptime_seconds - before.uptime_seconds;
        // What is no number is neither.
        if seconds.is_nan() || seconds < LEAST_SECONDS {
            return None;
        }
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let events: HashMap<_, u64> =
            before.workers.iter().map(|line| (key(line), line.events)).collect();
        // One that was not there before had no events before.
        let of = |line: &WorkerLine| events.get(&key(line)).copied().unwrap_or(0);
        let (was, is) = (&before.events, &now.events);
        Some(Rates {
            over_seconds: seconds,
            batches: rate(was.batches, is.batches),
            events: rate(was.events, is.events),
            stored: rate(was.stored, is.stored),
            removed: rate(was.removed, is.removed),
            questions: rate(before.scores.questions, now.scores.questions),
            asked: Asked::between(before, now),
            workers: now.workers.iter().map(|line| rate(of(line), line.events)).collect(),
        })
    }
}

impl Asked {
    /// What was asked between two looks.
    pub(super) fn between(before: &Status, now: &Status) -> Asked {
        let (was, is) = (&before.scores, &now.scores);
        let asked = is.asked_tokens.saturating_sub(was.asked_tokens);
        let expected = is.expected_tokens.saturating_sub(was.expected_tokens);
        let more = |(n, bucket): (usize, &Bucket)| {
            let before = was.latency.get(n).map_or(0, |bucket| bucket.questions);
            Bucket { questions: bucket.questions.saturating_sub(before), ..*bucket }
        };
        let latency: Vec<Bucket> = is.latency.iter().enumerate().map(more).collect();
        Asked {
            questions: is.questions.saturating_sub(was.questions),
            asked_tokens: asked,
            hit_ratio: (asked > 0).then(|| expected as f64 / asked as f64),
            p50_seconds: quantile(&latency, 0.5),
            p99_seconds: quantile(&latency, 0.99),
        }
    }
}

/// Who a line is about.
fn key(line: &WorkerLine) -> (&str, &str, u32) {
    (&line.tenant, &line.worker, line.rank)
}

/// The time that a part of all questions did not exceed, taken as evenly spread within its bucket; of what took
/// longer than all bounds, the last bound.
fn quantile(buckets: &[Bucket], part: f64) -> Option<f64> {
    let all: u64 = buckets.iter().map(|bucket| bucket.questions).sum();
    let wanted = part * all as f64;
    let (mut below, mut from) = (0.0, 0.0);
    for &Bucket { up_to_seconds, questions } in buckets.iter() {
        let Some(to) = up_to_seconds else { break };
        let here = questions as f64;
        if here > 0.0 && below + here >= wanted {
            return Some(from + (to - from) * (wanted - below) / here);
        }
        (below, from) = (below + here, to);
    }
    (all > 0).then_some(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{EventCounts, ScoreCounts};

    fn look(uptime_seconds: f64, events: u64, workers: &[(&str, u64)]) -> Status {
        let line = |&(worker, events): &(&str, u64)| WorkerLine {
            worker: worker.into(),
            events,
            ..WorkerLine::default()
        };
        Status {
            uptime_seconds,
            events: EventCounts { events, ..EventCounts::default() },
            workers: workers.iter().map(line).collect(),
            ..Status::default()
        }
    }

    #[test]
    fn rates_are_over_the_daemon_s_own_time_and_by_worker() {
        let before = look(10.0, 100, &[("a", 60), ("b", 40)]);
        let now = look(12.0, 180, &[("b", 60), ("c", 20), ("a", 100)]);
        let rates = Rates::between(&before, &now).unwrap();
        assert_eq!((rates.over_seconds, rates.events), (2.0, 40.0));
        assert_eq!(rates.workers, [10.0, 10.0, 20.0]);
    }

    #[test]
    fn a_daemon_that_was_started_anew_has_no_rates_yet() {
        assert_eq!(Rates::between(&look(10.0, 9, &[]), &look(1.0, 0, &[])), None);
        assert_eq!(Rates::between(&look(1.0, 9, &[]), &look(1.001, 9, &[])), None);
        assert_eq!(Rates::between(&look(f64::NAN, 0, &[]), &look(1.0, 9, &[])), None);
    }

    #[test]
    fn quantiles_and_the_hit_ratio_are_those_of_the_time_between() {
        let asked = |asked_tokens, expected_tokens, counts: [u64; 3]| Status {
            scores: ScoreCounts {
                asked_tokens,
                expected_tokens,
                latency: [Some(0.001), Some(0.002), None]
                    .into_iter()
                    .zip(counts)
                    .map(|(up_to_seconds, questions)| Bucket { up_to_seconds, questions })
                    .collect(),
                ..ScoreCounts::default()
            },
            ..Status::default()
        };
        let between = Asked::between(&asked(10, 10, [100, 0, 0]), &asked(110, 35, [150, 50, 0]));
        assert_eq!(between.hit_ratio, Some(0.25));
        assert_eq!(between.p50_seconds, Some(0.001));
        assert!((between.p99_seconds.unwrap() - 0.00198).abs() < 1e-9);
        // What is beyond all bounds took at least the last one.
        let slow = Asked::between(&asked(0, 0, [0, 0, 0]), &asked(0, 0, [0, 0, 5]));
        assert_eq!((slow.hit_ratio, slow.p50_seconds), (None, Some(0.002)));
        assert_eq!(Asked::default().p99_seconds, None);
    }
}
