//! `on_gap`: what becomes of workers that lost something.

use std::fmt;
use std::str::FromStr;

/// What answers do with a worker that may hold less than the index shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnGap {
    /// It is scored, and its trust says what is wrong.
    Flag,
    /// It is scored as if it held nothing, and its trust says why.
    Exclude,
}

impl fmt::Display for OnGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnGap::Flag => "flag",
            OnGap::Exclude => "exclude",
        })
    }
}

impl FromStr for OnGap {
    type Err = ();

    fn from_str(text: &str) -> Result<OnGap, ()> {
        match text {
            "flag" => Ok(OnGap::Flag),
            "exclude" => Ok(OnGap::Exclude),
            _ => Err(()),
        }
    }
}
