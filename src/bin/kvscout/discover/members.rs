//! Which addresses count as there: a new one at once, a missing one for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How many answers in a row have to leave an address out. One alone may come from a name server that was just started.
const LOOKS: u32 = 2;

/// The addresses behind a name.
#[derive(Debug)]
pub(super) struct Members {
    grace: Duration,
    most: usize,
    known: BTreeMap<IpAddr, Option<Absence>>,
}

/// Answers in a row without an address.
#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    looks: u32,
}

/// What an answer changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Addresses of the answer that count.
    pub(super) present: Vec<IpAddr>,
    /// Addresses that count no more.
    pub(super) gone: Vec<IpAddr>,
    /// How many of the answer were too many.
    pub(super) surplus: usize,
}

impl Members {
    /// Those that are `known` from before, and may have gone meanwhile.
    pub(super) fn new(
        grace: Duration,
        most: usize,
        known: BTreeSet<IpAddr>,
        now: Instant,
    ) -> Members {
        let absence = Absence { since: now, looks: 0 };
        let known = known.into_iter().map(|address| (address, Some(absence))).collect();
        Members { grace, most, known }
    }

    /// Takes an answer in.
    pub(super) fn take(&mut self, answer: &BTreeSet<IpAddr>, now: Instant) -> Change {
        let mut change = Change::default();
        self.known.retain(|&address, absence| {
            if answer.contains(&address) {
                *absence = None;
                return true;
            }
            let Absence { since, looks } = absence.unwrap_or(Absence { since: now, looks: 0 });
            let looks = looks.saturating_add(1);
            *absence = Some(Absence { since, looks });
            let stays = looks < LOOKS || now.duration_since(since) < self.grace;
            if !stays {
                change.gone.push(address);
            }
            stays
        });
        for &address in answer {
            if self.known.len() < self.most {
                self.known.entry(address).or_insert(None);
            }
            match self.known.contains_key(&address) {
                true => change.present.push(address),
                false => change.surplus += 1,
            }
        }
        change
    }

    /// Every address that counts.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.known.keys().copied().collect()
    }

    /// How many of them the last answer left out.
    pub(super) fn missing(&self) -> usize {
        self.known.values().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn at(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    const NONE: [IpAddr; 0] = [];

    fn answer(last: &[u8]) -> BTreeSet<IpAddr> {
        last.iter().map(|&last| at(last)).collect()
    }

    fn members(most: usize, known: &[u8]) -> (Members, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let members = Members::new(GRACE, most, answer(known), start);
        (members, move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_new_address_counts_at_once() {
        let (mut members, after) = members(9, &[]);
        assert_eq!(members.take(&answer(&[1, 2]), after(0)).present, [at(1), at(2)]);
        assert_eq!(members.take(&answer(&[1, 2, 3]), after(5)).present, [at(1), at(2), at(3)]);
    }

    #[test]
    fn a_missing_address_goes_after_the_grace_and_two_answers_without_it() {
        let (mut members, after) = members(9, &[]);
        members.take(&answer(&[1, 2]), after(0));
        assert_eq!(members.take(&answer(&[1]), after(5)).gone, NONE);
        assert_eq!(members.missing(), 1);
        assert_eq!(members.take(&answer(&[1]), after(34)).gone, NONE, "within the grace");
        assert_eq!(members.take(&answer(&[1]), after(35)).gone, [at(2)]);
        assert_eq!(members.addresses(), answer(&[1]));
    }

    #[test]
    fn one_answer_takes_nothing_away_however_late_it_comes() {
        let (mut members, after) = members(9, &[]);
        members.take(&answer(&[1]), after(0));
        assert_eq!(members.take(&answer(&[]), after(500)).gone, NONE, "nothing was heard before");
        assert_eq!(members.take(&answer(&[]), after(530)).gone, [at(1)]);
    }

    #[test]
    fn an_address_that_comes_back_was_never_gone() {
        let (mut members, after) = members(9, &[]);
        members.take(&answer(&[1]), after(0));
        members.take(&answer(&[]), after(5));
        assert_eq!(members.take(&answer(&[1]), after(10)).present, [at(1)]);
        assert_eq!(
            (members.missing(), members.take(&answer(&[]), after(40)).gone),
            (0, NONE.to_vec())
        );
        assert_eq!(
            members.take(&answer(&[]), after(69)).gone,
            NONE,
            "counted from when it went again"
        );
    }

    #[test]
    fn those_of_a_former_run_stay_until_answers_leave_them_out() {
        let (mut members, after) = members(9, &[1, 2]);
        assert_eq!(members.take(&answer(&[1]), after(100)).gone, NONE);
        assert_eq!(members.take(&answer(&[1]), after(101)).gone, [at(2)]);
    }

    #[test]
    fn no_more_addresses_count_than_may_be_and_known_ones_come_first() {
        let (mut members, after) = members(2, &[]);
        members.take(&answer(&[8, 9]), after(0));
        let change = members.take(&answer(&[1, 2, 3, 8, 9]), after(5));
        assert_eq!((change.present, change.surplus), (vec![at(8), at(9)], 3));
        assert_eq!(members.take(&answer(&[1, 8]), after(10)).surplus, 1, "9 may come back");
        assert_eq!(members.take(&answer(&[1, 8]), after(60)).present, [at(1), at(8)]);
    }
}
