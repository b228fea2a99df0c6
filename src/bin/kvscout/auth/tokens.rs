//! A token file: what is read of it, and when.

use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::Choice;

use super::any_is;
use super::file::{Stamp, read_secret};

/// What `openssl rand -hex 16` gives: shorter ones can be guessed, or were chosen by people.
const SHORTEST: usize = 32;
const LONGEST: usize = 4096;

/// An old one and its successor, and some more.
const MOST: usize = 16;

/// The tokens of a file, as their digests: nothing here can tell them.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    stamp: Option<Stamp>,
    digests: Vec<[u8; 32]>,
}

impl TokenFile {
    /// The tokens of this file.
    pub(super) fn open(path: &Path) -> Result<TokenFile, String> {
        let (digests, stamp) = read(path).map_err(|(error, _)| error)?;
        let state = RwLock::new(State { stamp: Some(stamp), digests });
        Ok(TokenFile { path: path.to_owned(), state })
    }

    /// Reads it again if it changed: how many tokens it has now. One that is gone has none; one that cannot be used
    /// leaves what there was.
    pub(super) fn refresh(&self) -> Option<Result<usize, String>> {
        let stamp = Stamp::of(&self.path);
        if stamp == self.state.read().stamp {
            return None;
        }
        let read = match stamp {
            Some(_) => read(&self.path),
            None => {
                *self.state.write() = State { stamp: None, digests: Vec::new() };
                return Some(Ok(0));
            }
        };
        let mut state = self.state.write();
        Some(match read {
            Ok((digests, stamp)) => {
                let count = digests.len();
                *state = State { stamp: Some(stamp), digests };
                Ok(count)
            }
            Err((error, stamp)) => {
                state.stamp = stamp;
                Err(error)
            }
        })
    }

    /// Whether a token of this digest is in it.
    pub(super) fn has(&self, digest: &[u8; 32]) -> Choice {
        any_is(&self.state.read().digests, digest)
    }

    /// Whether it has a token of another one.
    pub(super) fn shares_with(&self, other: &TokenFile) -> bool {
        let own = self.state.read();
        other.state.read().digests.iter().any(|digest| bool::from(any_is(&own.digests, digest)))
    }
}

/// The first token of a file, to be shown to another daemon.
pub(crate) fn first_token(path: &str) -> Result<String, String> {
    let (text, _) = read_secret(Path::new(path)).map_err(|(error, _)| error)?;
    let first = lines(&text).next().map(str::to_owned);
    first.ok_or_else(|| format!("{path}: has no token"))
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

type Read = Result<(Vec<[u8; 32]>, Stamp), (String, Option<Stamp>)>;

/// One token a line, so that a new one can be brought out before the old one ends; lines that are empty or begin with `#`
/// do not count.
fn read(path: &Path) -> Read {
    let (text, stamp) = read_secret(path)?;
    let tokens: Vec<&str> = lines(&text).collect();
    let wrong = |what: &str| Err((format!("{}: {what}", path.display()), Some(stamp)));
    if tokens.is_empty() {
        return wrong("has no token");
    }
    if tokens.len() > MOST {
        return wrong(&format!("has {} tokens, one a line; up to {MOST} may count", tokens.len()));
    }
    // The characters of RFC 6750.
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    let mut digests = Vec::with_capacity(tokens.len());
    for token in tokens {
        // What is wrong is not repeated.
        if !token.bytes().all(is_plain) {
            return wrong("a token has letters, digits and -._~+/= only, and no spaces");
        }
        if !(SHORTEST..=LONGEST).contains(&token.len()) {
            return wrong(&format!(
                "a token has {SHORTEST} to {LONGEST} characters, this one {}; openssl rand -hex 32 makes one",
                token.len()
            ));
        }
        digests.push(Sha256::digest(token).into());
    }
    Ok((digests, stamp))
}
