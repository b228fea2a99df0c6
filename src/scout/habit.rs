//! What an engine does that its events do not show, and an operator knows.

use std::fmt;
use std::str::FromStr;

/// What `AllBlocksCleared` takes away when it names no tier, as all engines so far write it.
///
/// # Defaults
///
/// [`All`](OnClear::All): a block too few costs a prefill, a block too many sends requests to a worker
/// that has to compute them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnClear {
    /// Everything the worker holds, in every tier.
    #[default]
    All,
    /// What it holds on the GPU; an engine whose connector keeps host memory and disks through a
    /// reset of the prefix cache. Such a clear makes a worker no sounder than it was: what is
    /// missing may be missing in the other tiers.
    Gpu,
}

/// What a second store of a block that is already there means.
///
/// # Defaults
///
/// [`Count`](Copies::Count): that is how vLLM announces physical blocks, and counting is what gives
/// its own answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// A further physical copy: the block is there until as many removals came.
    #[default]
    Count,
    /// The same copy, reported again: the block is there until the next removal. For vLLM 0.26 and
    /// later where requests ask for `kv_cache_report_mode: "full"`.
    Presence,
}

macro_rules! texts {
    ($of:ty { $($value:path => $text:literal),* }) => {
        impl $of {
            /// As configuration and answers name it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($value => $text),*
                }
            }
        }

        impl fmt::Display for $of {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $of {
            type Err = ();

            fn from_str(text: &str) -> Result<$of, ()> {
                match text {
                    $($text => Ok($value),)*
                    _ => Err(()),
                }
            }
        }
    };
}

texts! { OnClear { OnClear::All => "all", OnClear::Gpu => "gpu" } }
texts! { Copies { Copies::Count => "count", Copies::Presence => "presence" } }
