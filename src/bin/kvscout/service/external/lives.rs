//! Which messages of a worker are new, and when it begins anew.

use std::collections::VecDeque;

/// How many of the last messages are told from others by what they said.
const RECENT: usize = 256;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The next one.
    Next,
    /// It was here before.
    Again,
    /// The first one of another life.
    Anew,
}

/// How far one life of a worker came.
#[derive(Debug, Default)]
pub(super) struct Life {
    epoch: String,
    last: Option<u64>,
    /// Numbers and what was said under them.
    recent: VecDeque<(u64, u64)>,
}

impl Life {
    /// The highest number.
    pub(super) fn last(&self) -> u64 {
        self.last.unwrap_or(0)
    }

    /// Takes note of a message: `sum` stands for what it says.
    ///
    /// A number that was here before with the same message is a message sent again. Any other number that
    /// goes back is another life, since one that is only late would be among the last.
    pub(super) fn judge(&mut self, epoch: &str, seq: u64, sum: u64) -> Verdict {
        let verdict = match self.last {
            None => Verdict::Next,
            Some(_) if self.epoch != epoch => Verdict::Anew,
            // Bridges that do not number their messages; or the first one again, which changes nothing.
            Some(0) if seq == 0 => Verdict::Next,
            Some(last) if seq > last => Verdict::Next,
            Some(_) if self.recent.contains(&(seq, sum)) => Verdict::Again,
            Some(_) => Verdict::Anew,
        };
        match verdict {
            Verdict::Again => return verdict,
            Verdict::Anew => self.recent.clear(),
            Verdict::Next if self.recent.len() == RECENT => {
                self.recent.pop_front();
            }
            Verdict::Next => {}
        }
        if self.epoch != epoch {
            epoch.clone_into(&mut self.epoch);
        }
        self.last = Some(seq);
        self.recent.push_back((seq, sum));
        verdict
    }
}
