//! The hash algorithms of vLLM.

use std::fmt;
use std::str::FromStr;

use super::Version;
use crate::error::Error;

/// A value of vLLM's `--prefix-caching-hash-algo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// CPython's `hash()`, 64 bits, signed; the default of 0.8.5 to 0.10.1. Rules of CPython 3.12
    /// and later, where `hash(None)` is a constant: before, it was the address of an object, and
    /// blocks without extra keys could not be reproduced outside their process.
    Builtin,
    /// SHA-256 over the pickle (protocol 5) of the block; the default since 0.10.2.
    Sha256,
    /// SHA-256 over canonical CBOR; 0.10.2 and later.
    Sha256Cbor,
    /// The last 64 bits of SHA-256 over canonical CBOR; 0.10.0 and 0.10.1 only.
    Sha256Cbor64Bit,
    /// XXH3-128 over the pickle of the block; 0.13 and later.
    Xxhash,
    /// XXH3-128 over canonical CBOR; 0.13 and later.
    XxhashCbor,
}

impl Algorithm {
    /// Every algorithm that some version offers.
    pub const ALL: [Algorithm; 6] = [
        Algorithm::Builtin,
        Algorithm::Sha256,
        Algorithm::Sha256Cbor,
        Algorithm::Sha256Cbor64Bit,
        Algorithm::Xxhash,
        Algorithm::XxhashCbor,
    ];

    /// The name that vLLM's option takes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Builtin => "builtin",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha256Cbor => "sha256_cbor",
            Algorithm::Sha256Cbor64Bit => "sha256_cbor_64bit",
            Algorithm::Xxhash => "xxhash",
            Algorithm::XxhashCbor => "xxhash_cbor",
        }
    }

    /// Whether a version offers the algorithm.
    pub fn exists_in(self, version: Version) -> bool {
        let bytes = version >= Version::new(0, 10, 2);
        match self {
            Algorithm::Builtin => !bytes,
            Algorithm::Sha256 => true,
            Algorithm::Sha256Cbor => bytes,
            Algorithm::Sha256Cbor64Bit => !bytes && version >= Version::new(0, 10, 0),
            Algorithm::Xxhash | Algorithm::XxhashCbor => version >= Version::new(0, 13, 0),
        }
    }

    /// Whether the result is XXH3's, 16 bytes.
    pub(super) const fn is_xxhash(self) -> bool {
        matches!(self, Algorithm::Xxhash | Algorithm::XxhashCbor)
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    /// Parses the name that vLLM's option takes.
    ///
    /// # Errors
    ///
    /// Any other text.
    fn from_str(name: &str) -> Result<Algorithm, Error> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name).ok_or_else(|| {
            let all = Algorithm::ALL.map(Algorithm::as_str).join(", ");
            Error::invalid(format!("{name:?} is no hash algorithm of vLLM; these are: {all}"))
        })
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_is_found_by_its_own_name() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.as_str().parse::<Algorithm>().unwrap(), algorithm);
        }
        let error = "md5".parse::<Algorithm>().unwrap_err().to_string();
        assert!(error.contains("\"md5\"") && error.contains("sha256_cbor_64bit"), "{error}");
    }

    #[test]
    fn every_known_version_offers_its_default() {
        assert!(Algorithm::Builtin.exists_in(Version::new(0, 10, 1)));
        assert!(!Algorithm::Builtin.exists_in(Version::new(0, 10, 2)));
        assert!(!Algorithm::Sha256Cbor64Bit.exists_in(Version::new(0, 9, 2)));
        assert!(!Algorithm::XxhashCbor.exists_in(Version::new(0, 12, 0)));
    }
}
