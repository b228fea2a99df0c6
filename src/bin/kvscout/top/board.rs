//! What is known of the daemon, and how it is looked at.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::rates::{Asked, Rates};
use crate::status::{Status, WorkerLine};

/// So many looks are drawn as a curve.
const CURVE: usize = 60;

/// Questions of so many looks are taken together: one look has too few for a hundredth of them.
const WINDOW: usize = 10;

/// By what workers are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Whoever is least to be believed first.
    #[default]
    Trust,
    /// As the daemon lists them: by tenant, pod and rank.
    Name,
    /// Whoever holds most first.
    Blocks,
    /// Whoever sends most first.
    Events,
    /// Whoever is furthest behind, or was not heard of for longest, first.
    Lag,
}

/// A way to go through the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scroll {
    Lines(isize),
    Pages(isize),
    First,
    Last,
}

/// A daemon that does not answer.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    /// Why, in one line.
    pub(super) why: String,
    /// Since when.
    pub(super) since: Instant,
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) url: String,
    /// How often the daemon is asked.
    pub(super) every: Duration,
    /// The last answer.
    pub(super) status: Option<Status>,
    /// What went on before that.
    pub(super) rates: Option<Rates>,
    /// Events a second, the latest last.
    pub(super) curve: VecDeque<f64>,
    pub(super) trouble: Option<Trouble>,
    pub(super) order: Order,
    pub(super) reversed: bool,
    /// Workers above the first one that is shown.
    pub(super) above: usize,
    /// Earlier answers without their workers, the latest last.
    window: VecDeque<Status>,
}

impl Board {
    pub(super) fn new(url: &str, every: Duration) -> Board {
        Board {
            url: url.trim_end_matches('/').to_owned(),
            every,
            status: None,
            rates: None,
            curve: VecDeque::new(),
            trouble: None,
            order: Order::default(),
            reversed: false,
            above: 0,
            window: VecDeque::new(),
        }
    }

    /// Takes in what came of asking.
    pub(super) fn heard(&mut self, answer: Result<Status, String>) {
        let now = match answer {
            Ok(now) => now,
            Err(why) => {
                let since =
                    self.trouble.as_ref().map_or_else(Instant::now, |trouble| trouble.since);
                self.trouble = Some(Trouble { why, since });
                return;
            }
        };
        self.trouble = None;
        if let Some(mut before) = self.status.take() {
            if before.uptime_seconds > now.uptime_seconds {
                // Started anew: what was before says nothing of it.
                self.window.clear();
                self.curve.clear();
                self.rates = None;
            } else if let Some(rates) = Rates::between(&before, &now) {
                self.curve.push_back(rates.events);
                self.rates = Some(rates);
                before.workers.clear();
                self.window.push_back(before);
            }
        }
        while self.curve.len() > CURVE {
            self.curve.pop_front();
        }
        while self.window.len() > WINDOW {
            self.window.pop_front();
        }
        self.status = Some(now);
    }

    /// What was asked lately, and whether that is since the daemon began.
    pub(super) fn asked(&self) -> (Asked, bool) {
        let Some(now) = &self.status else { return (Asked::default(), true) };
        let lately = self.window.front().map(|before| Asked::between(before, now));
        match lately.filter(|asked| asked.questions > 0) {
            Some(asked) => (asked, false),
            None => (Asked::between(&Status::default(), now), true),
        }
    }

    /// The workers as they are to be shown, with their events a second.
    pub(super) fn workers(&self) -> Vec<(&WorkerLine, Option<f64>)> {
        let Some(status) = &self.status else { return Vec::new() };
        let rate = |n: usize| self.rates.as_ref()?.workers.get(n).copied();
        let mut all: Vec<_> =
            status.workers.iter().enumerate().map(|(n, line)| (line, rate(n))).collect();
        // Stable: among equals the order is the daemon's.
        match self.order {
            Order::Name => {}
            Order::Trust => all.sort_by_key(|(line, _)| {
                (rank(&line.trust), line.warnings.is_empty(), line.reason.is_none())
            }),
            Order::Blocks => all.sort_by_key(|(line, _)| std::cmp::Reverse(line.blocks.sum())),
            Order::Events => all.sort_by(|(_, a), (_, b)| most_first(*a, *b)),
            Order::Lag => all.sort_by(|(a, _), (b, _)| {
                let waits = |line: &WorkerLine| line.seconds_since_batch.unwrap_or(f64::INFINITY);
                b.behind.cmp(&a.behind).then(waits(b).total_cmp(&waits(a)))
            }),
        }
        if self.reversed {
            all.reverse();
        }
        all
    }

    /// Orders the workers by something, from the first one on.
    pub(super) fn order_by(&mut self, order: Order) {
        (self.order, self.above) = (order, 0);
    }

    /// Goes through the workers, of which so many are shown at a time.
    pub(super) fn scroll(&mut self, by: Scroll, shown: usize) {
        let last = self.last_above(shown);
        let page = shown.max(2) as isize - 1;
        self.above = match by {
            Scroll::Lines(n) => self.above.saturating_add_signed(n).min(last),
            Scroll::Pages(n) => self.above.saturating_add_signed(n * page).min(last),
            Scroll::First => 0,
            Scroll::Last => last,
        };
    }

    /// How many workers are above those shown, once the last one is the last line.
    pub(super) fn last_above(&self, shown: usize) -> usize {
        let workers = self.status.as_ref().map_or(0, |status| status.workers.len());
        workers.saturating_sub(shown)
    }
}

/// The place of a trust, the worst first; one that we do not know is looked at first of all.
fn rank(trust: &str) -> usize {
    let known = ["silent", "degraded", "syncing", "exact"];
    known.iter().position(|known| *known == trust).map_or(0, |at| at + 1)
}

fn most_first(a: Option<f64>, b: Option<f64>) -> Ordering {
    b.unwrap_or(0.0).total_cmp(&a.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::TierBlocks;

    fn worker(name: &str, trust: &str, gpu: u64, behind: u64, events: u64) -> WorkerLine {
        WorkerLine {
            worker: name.into(),
            trust: trust.into(),
            blocks: TierBlocks { gpu, ..TierBlocks::default() },
            behind,
            events,
            ..WorkerLine::default()
        }
    }

    fn board(workers: Vec<WorkerLine>) -> Board {
        let mut board = Board::new("http://x/", Duration::from_secs(1));
        board.heard(Ok(Status { uptime_seconds: 1.0, ..Status::default() }));
        board.heard(Ok(Status { uptime_seconds: 2.0, workers, ..Status::default() }));
        board
    }

    fn names(board: &Board) -> Vec<&str> {
        board.workers().iter().map(|(line, _)| line.worker.as_str()).collect()
    }

    #[test]
    fn workers_are_ordered_by_what_was_chosen() {
        let mut board = board(vec![
            worker("a", "exact", 3, 0, 5),
            worker("b", "degraded", 1, 2, 9),
            worker("c", "silent", 2, 9, 0),
            worker("d", "syncing", 9, 1, 7),
        ]);
        for (order, expected) in [
            (Order::Trust, ["c", "b", "d", "a"]),
            (Order::Name, ["a", "b", "c", "d"]),
            (Order::Blocks, ["d", "a", "c", "b"]),
            (Order::Events, ["b", "d", "a", "c"]),
            (Order::Lag, ["c", "b", "d", "a"]),
        ] {
            board.order_by(order);
            assert_eq!(names(&board), expected, "{order:?}");
        }
        board.reversed = true;
        assert_eq!(names(&board), ["a", "d", "b", "c"]);
    }

    #[test]
    fn scrolling_ends_with_the_last_worker_in_the_last_line() {
        let workers = (0..100).map(|n| worker(&n.to_string(), "exact", 0, 0, 0)).collect();
        let mut board = board(workers);
        for (by, above) in [
            (Scroll::Lines(-1), 0),
            (Scroll::Pages(1), 9),
            (Scroll::Lines(1), 10),
            (Scroll::Last, 90),
            (Scroll::Pages(1), 90),
            (Scroll::Pages(-1), 81),
            (Scroll::First, 0),
        ] {
            board.scroll(by, 10);
            assert_eq!(board.above, above, "{by:?}");
        }
    }

    #[test]
    fn what_was_known_stays_while_the_daemon_is_gone_and_starts_anew_with_it() {
        let mut board = board(vec![worker("a", "exact", 0, 0, 5)]);
        board.heard(Err("refused".into()));
        let since = board.trouble.as_ref().unwrap().since;
        board.heard(Err("refused".into()));
        assert_eq!(board.trouble.as_ref().unwrap().since, since);
        assert_eq!((names(&board), board.curve.len()), (vec!["a"], 1));
        board.heard(Ok(Status { uptime_seconds: 0.5, ..Status::default() }));
        assert!(board.trouble.is_none() && board.rates.is_none() && board.curve.is_empty());
    }
}
