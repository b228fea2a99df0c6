//! Versions of vLLM.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A release of vLLM.
///
/// Hash rules change with releases, so a pre-release, a post-release and a local build count as the
/// release that they name: `0.20.2rc1`, `v0.20.2` and `0.20.2+cu128` are all 0.20.2. A missing
/// third number is 0.
///
/// ```
/// use kvscout::hash::vllm::Version;
///
/// assert_eq!("v0.20".parse::<Version>()?, Version::new(0, 20, 0));
/// assert!("0.9.2".parse::<Version>()? < "0.10.0".parse()?);
/// # Ok::<(), kvscout::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number; 0 so far.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

impl Version {
    /// The oldest version whose hashes this crate knows.
    pub const OLDEST: Version = Version::new(0, 8, 5);

    /// The newest version whose hashes were checked against vLLM itself; later ones are assumed to
    /// hash like this one.
    pub const NEWEST: Version = Version::new(0, 33, 0);

    /// The version `major.minor.patch`.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Version {
        Version { major, minor, patch }
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Parses a release number as Python packages write it (PEP 440).
    ///
    /// # Errors
    ///
    /// Anything that does not begin with two or three numbers, or goes on with more than a pre-,
    /// post-, development or local part.
    fn from_str(text: &str) -> Result<Version, Error> {
        parse(text)
            .ok_or_else(|| Error::invalid(format!("{text:?} is no vLLM version such as 0.33.0")))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

fn parse(text: &str) -> Option<Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let (major, rest) = number(text)?;
    let (minor, rest) = number(rest.strip_prefix('.')?)?;
    let (patch, rest) = match rest.strip_prefix('.').map(number) {
        Some(Some(found)) => found,
        _ => (0, rest),
    };
    let suffix = ["a", "b", "rc", ".rc", "-rc", ".post", ".dev", "+"];
    let known = rest.is_empty() || suffix.iter().any(|start| rest.starts_with(start));
    let plain = rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-_".contains(&b));
    (known && plain).then_some(Version { major, minor, patch })
}

/// The decimal number that `text` begins with, and what follows.
fn number(text: &str) -> Option<(u16, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_python_packages_use_are_read_as_their_release() {
        for (text, version) in [
            ("0.11.1", Version::new(0, 11, 1)),
            ("0.20.2rc1", Version::new(0, 20, 2)),
            ("v0.20", Version::new(0, 20, 0)),
            ("0.20rc2", Version::new(0, 20, 0)),
            ("0.8.5.post1", Version::new(0, 8, 5)),
            ("0.11.1rc2.dev5+g1234abc.d20250101", Version::new(0, 11, 1)),
            ("0.32.0+cpu", Version::new(0, 32, 0)),
            ("1.0", Version::new(1, 0, 0)),
        ] {
            assert_eq!(text.parse::<Version>().unwrap(), version, "{text}");
        }
    }

    #[test]
    fn what_is_no_release_number_is_refused_by_name() {
        for text in
            ["", "v", "1", "0.", "0.x", "latest", "0.8.5.1", "0.8.5 ", "0.8.5rc\n", "0.99999"]
        {
            let error = text.parse::<Version>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("{text:?}")), "{error}");
        }
    }
}
