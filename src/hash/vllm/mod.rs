//! Block hashes of vLLM 0.8.5 and later, bit for bit.
//!
//! Every version hashes each full block `i` of a request as
//!
//! ```text
//! H(i) = hash((H(i - 1), (token, token, ...), extra keys or None))      H(-1) = root hash
//! ```
//!
//! What differs is in the [`Contract`]: what `hash` is (the [`Algorithm`]), where the root hash
//! comes from ([`Root`]), whether hashes are integers or bytes, and which extra keys there are in
//! which form. A partial last block has no hash. Model, data type and parallelism do not enter; the
//! block size enters through the number of tokens alone, so any size works.
//!
//! # Groups
//!
//! An engine with several KV cache groups hashes blocks of one common *hash unit* (the greatest
//! common divisor of its groups' block sizes unless configured otherwise; with decode context
//! parallelism the block size times its degree): hash with that as the [`Shape`]'s size. The hash of
//! a coarser block is the hash of the last unit in it (0.24 and later) or the concatenation of all
//! its units' hashes (0.12 to 0.23), and both have the same [`name`](BlockHash::name). Inside the
//! engine the group's number follows the hash as 4 big-endian bytes; events leave it out.

mod algorithm;
mod block_hash;
mod builtin;
mod cbor;
mod chain;
mod extra;
mod memory;
mod pickle;
mod plain;
mod version;
mod writer;

use std::fmt;
use std::hash::{Hash, Hasher};

pub use algorithm::Algorithm;
pub use block_hash::BlockHash;
pub use chain::Chain;
pub use memory::{ChainMemory, Names};
pub use version::Version;

use crate::block::{Embeds, ExtraKey, Lora, Prompt, Shape, TokenId};
use crate::error::Error;
use block_hash::{Value, parse_decimal, parse_hex};
use builtin::{StringKey, text_hash};
use extra::{EmbedsForm, Extra, Forms, SaltForm};
use writer::{Encoder, Link};

/// Where an engine's root hash (vLLM's `NONE_HASH`) comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Root<'a> {
    /// `PYTHONHASHSEED` is not set. Known for `sha256` and `sha256_cbor` since 0.29, which then hash
    /// the text `vllm-none-hash`; drawn at random otherwise.
    Unset,
    /// The text of `PYTHONHASHSEED`. It is hashed as text: `0`, `00` and the empty text are three
    /// different seeds.
    Seed(&'a str),
    /// The root hash itself: hex where hashes are bytes (0.10.2 and later), decimal before.
    Hash(&'a str),
}

impl fmt::Debug for Root<'_> {
    /// Leaves the values out: who knows them can predict hashes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Root::Unset => "Unset",
            Root::Seed(_) => "Seed(..)",
            Root::Hash(_) => "Hash(..)",
        })
    }
}

/// Everything that decides how an engine hashes its blocks: version, algorithm, root hash.
///
/// Two contracts are equal when they give every block the same hash, be it that their versions
/// differ.
#[derive(Clone, Debug)]
pub struct Contract {
    version: Version,
    algorithm: Algorithm,
    root: BlockHash,
    /// Secret of CPython's string hash, where it matters and is known.
    strings: Option<StringKey>,
    forms: Forms,
    lookahead: bool,
}

impl Contract {
    /// The contract of an engine.
    ///
    /// A version between two whose rules are known follows the lower one; a version after
    /// [`Version::NEWEST`] follows that one and is [`assumed`](Contract::assumed).
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput): a version before [`Version::OLDEST`], an
    ///   algorithm that the version does not have, a root hash that is not of its form.
    /// - [`MissingFact`](crate::ErrorKind::MissingFact): the root hash is random and not given.
    pub fn new(version: Version, algorithm: Algorithm, root: Root<'_>) -> Result<Contract, Error> {
        if version < Version::OLDEST {
            let oldest = Version::OLDEST;
            return Err(Error::invalid(format!(
                "the block hashes of vLLM {version} are not known; the oldest known version is {oldest}"
            )));
        }
        if !algorithm.exists_in(version) {
            let offered: Vec<_> = Algorithm::ALL
                .into_iter()
                .filter(|a| a.exists_in(version))
                .map(Algorithm::as_str)
                .collect();
            let offered = offered.join(", ");
            return Err(Error::invalid(format!(
                "vLLM {version} has no hash algorithm {algorithm}; it has {offered}"
            )));
        }
        let strings = match (algorithm, root) {
            (Algorithm::Builtin, Root::Seed(seed)) => StringKey::from_seed(seed),
            _ => None,
        };
        Ok(Contract {
            version,
            algorithm,
            root: root_hash(version, algorithm, root, strings)?,
            strings,
            forms: Forms::of(version),
            lookahead: looks_ahead(version),
        })
    }

    /// The version that was asked for.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The hash algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What takes the place of the first block's parent.
    pub fn root(&self) -> BlockHash {
        self.root
    }

    /// Whether extra keys count alike in both: then what has some has one name, too, where plain text has one.
    pub(crate) fn hashes_extra_keys_like(&self, other: &Contract) -> bool {
        self.forms.tell_prompts_alike(&other.forms)
    }

    /// Whether an engine of this version hashes by the same rules, whatever its root hash is.
    pub(crate) fn has_rules_of(&self, version: Version) -> bool {
        let rules = |version| (Forms::of(version), looks_ahead(version), is_bytes(version));
        self.algorithm.exists_in(version) && rules(version) == rules(self.version)
    }

    /// Whether both roots are of one form and are different.
    pub(crate) fn differs_in_root(&self, other: &Contract) -> bool {
        is_bytes(self.version) == is_bytes(other.version) && self.root != other.root
    }

    /// Whether the version is newer than any that was checked, so that its rules are assumed.
    pub fn assumed(&self) -> bool {
        self.version > Version::NEWEST
    }

    /// The hash of the block of `tokens` that follows `parent` ([`root`](Contract::root) for a first
    /// block).
    ///
    /// `lookahead` are the tokens after the block that count to its identity (0.33 with drafters),
    /// empty otherwise. `extra_keys` are the block's own, in the order of [`ExtraKey`], as an event
    /// lists them; the facts that an event leaves out are taken from `adapter`. For a whole prompt,
    /// [`chain`](Contract::chain) finds each block's extra keys and reuses its memory.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput): a parent of another form; look-ahead or
    ///   embeddings in a version that has none.
    /// - [`MissingFact`](crate::ErrorKind::MissingFact): a LoRA key without the adapter's path (0.31
    ///   and later) or id (up to 0.11.0); embeddings in 0.11.1 to 0.16, which hash the raw rows;
    ///   texts under `builtin` without a decimal seed.
    pub fn child<'a>(
        &self,
        parent: &BlockHash,
        tokens: &[TokenId],
        lookahead: &[TokenId],
        extra_keys: impl IntoIterator<Item = ExtraKey<'a>>,
        adapter: Option<Lora<'a>>,
    ) -> Result<BlockHash, Error> {
        self.check_parent(parent)?;
        self.check_lookahead(lookahead.len())?;
        let mut extras = Vec::new();
        for key in extra_keys {
            extras.extend(match key {
                ExtraKey::Lora(name) => {
                    let known = adapter.filter(|adapter| adapter.name == name);
                    Some(self.lora(known.unwrap_or(Lora { name, id: None, path: None }))?)
                }
                ExtraKey::Item { identifier, offset } => {
                    self.check_text(identifier, "an item's identifier")?;
                    Some(self.forms.item(identifier, offset))
                }
                ExtraKey::Salt(salt) => self.salt(salt)?,
                ExtraKey::Embeds(digest) => Some(self.embeds_digest(digest)?),
            });
        }
        let parent = self.or_root(*parent);
        let link = Link { parent: &parent, tokens, lookahead, extras: &extras };
        Ok(self.encoder().link(&link))
    }

    /// The chain of a request's blocks, at its first block.
    ///
    /// The prompt's tokens are not read here: [`Chain::extend`] takes them.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput): look-ahead or embeddings in a version that
    ///   has none; items that are not by position; rows that do not divide into whole ones.
    /// - [`MissingFact`](crate::ErrorKind::MissingFact): a LoRA adapter without its path (0.31 and
    ///   later) or id (up to 0.11.0); digests of embeddings in 0.11.1 to 0.16, which hash the raw
    ///   rows; texts under `builtin` without a decimal seed. A salt in 0.8, which has none, is
    ///   ignored as the engine does.
    pub fn chain<'p>(&self, shape: Shape, prompt: &Prompt<'p>) -> Result<Chain<'p>, Error> {
        self.check_lookahead(shape.lookahead as usize)?;
        let lora = prompt.lora.map(|lora| self.lora(lora)).transpose()?;
        for (n, item) in prompt.items.iter().enumerate() {
            self.check_text(item.identifier, "an item's identifier")?;
            if n > 0 && prompt.items[n - 1].offset > item.offset {
                return Err(Error::invalid(format!(
                    "item {n} begins at {} before its predecessor; items come by position",
                    item.offset
                )));
            }
        }
        let salt = match prompt.cache_salt {
            Some(salt) => self.salt(salt)?,
            None => None,
        };
        match prompt.embeds {
            None => {}
            Some(Embeds::Rows { bytes, row }) => {
                self.check_embeds()?;
                if row == 0 || bytes.len() % row != 0 {
                    return Err(Error::invalid(format!(
                        "{} bytes of embeddings are no whole number of rows of {row} bytes",
                        bytes.len()
                    )));
                }
            }
            Some(Embeds::Digests(_)) => {
                self.embeds_digest([0; 32])?;
            }
        }
        Ok(Chain::new(self.clone(), shape, lora, prompt.items, salt, prompt.embeds))
    }

    fn encoder(&self) -> Encoder {
        Encoder::new(self.version, self.algorithm, self.strings)
    }

    /// vLLM takes a parent that Python calls false for a missing one.
    fn or_root(&self, parent: BlockHash) -> BlockHash {
        if parent.is_false() { self.root } else { parent }
    }

    fn lora<'a>(&self, lora: Lora<'a>) -> Result<Extra<'a>, Error> {
        self.forms.lora(lora).map_err(|fact| {
            let (name, version) = (lora.name, self.version);
            Error::missing(format!(
                "the {fact} of LoRA adapter {name:?} is missing; vLLM {version} hashes it"
            ))
        })
    }

    fn salt<'a>(&self, salt: &'a str) -> Result<Option<Extra<'a>>, Error> {
        if self.forms.salt != SaltForm::Ignored {
            self.check_text(salt, "a cache salt")?;
        }
        Ok(self.forms.salt(salt))
    }

    fn embeds_digest(&self, digest: [u8; 32]) -> Result<Extra<'static>, Error> {
        self.check_embeds()?;
        match self.forms.embeds {
            EmbedsForm::Tagged => Ok(Extra::TaggedEmbeds(digest)),
            EmbedsForm::Digest => Ok(Extra::Digest(digest)),
            EmbedsForm::Raw | EmbedsForm::Unsupported => Err(Error::missing(format!(
                "the raw rows of the prompt embeddings are missing; vLLM {} hashes them, not their \
                 digest",
                self.version
            ))),
        }
    }

    fn check_embeds(&self) -> Result<(), Error> {
        if self.forms.embeds == EmbedsForm::Unsupported {
            return Err(Error::invalid(format!(
                "vLLM {} hashes no prompt embeddings; 0.11.1 and later do",
                self.version
            )));
        }
        Ok(())
    }

    fn check_lookahead(&self, tokens: usize) -> Result<(), Error> {
        if tokens > 0 && !self.lookahead {
            return Err(Error::invalid(format!(
                "vLLM {} hashes no look-ahead, so {tokens} tokens of it should be 0; 0.33 and later do",
                self.version
            )));
        }
        Ok(())
    }

    /// Under `builtin` a text can be hashed only if the interpreter's key is known.
    fn check_text(&self, text: &str, what: &str) -> Result<(), Error> {
        if self.algorithm == Algorithm::Builtin && text_hash(self.strings, text).is_none() {
            return Err(Error::missing(format!(
                "{what} cannot be hashed by `builtin` without the engine's PYTHONHASHSEED as a plain \
                 decimal number of 32 bits"
            )));
        }
        Ok(())
    }

    fn check_parent(&self, parent: &BlockHash) -> Result<(), Error> {
        let (fits, form) = match (self.algorithm, parent.0) {
            _ if *parent == self.root => (true, ""),
            (Algorithm::Builtin, value) => {
                (matches!(value, Value::Signed(_)), "a signed 64-bit integer")
            }
            (a, value) if a.is_xxhash() => (matches!(value, Value::Bytes16(_)), "16 bytes"),
            (_, value) if is_bytes(self.version) => {
                (matches!(value, Value::Bytes32(_)), "32 bytes")
            }
            (_, value) => (matches!(value, Value::Int(_)), "an unsigned integer"),
        };
        if fits {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{parent} is no parent for {} of vLLM {}, whose hashes are {form}",
            self.algorithm, self.version
        )))
    }

    /// What decides hashes.
    fn identity(&self) -> impl Eq + Hash {
        let int = !is_bytes(self.version);
        (self.algorithm, self.root, self.strings, self.forms, self.lookahead, int)
    }
}

/// Whether blocks are hashed with tokens behind them, where an engine announces these.
fn looks_ahead(version: Version) -> bool {
    version >= Version::new(0, 33, 0)
}

impl PartialEq for Contract {
    fn eq(&self, other: &Contract) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Contract {}

impl Hash for Contract {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// Whether a version's hashes are bytes rather than integers.
fn is_bytes(version: Version) -> bool {
    version >= Version::new(0, 10, 2)
}

fn root_hash(
    version: Version,
    algorithm: Algorithm,
    root: Root<'_>,
    strings: Option<StringKey>,
) -> Result<BlockHash, Error> {
    let seed = match root {
        Root::Hash(text) => return parse_root(version, algorithm, text),
        Root::Seed(seed) => seed,
        Root::Unset if version >= Version::new(0, 29, 0) && !algorithm.is_xxhash() => {
            "vllm-none-hash"
        }
        Root::Unset => {
            return Err(Error::missing(format!(
                "without PYTHONHASHSEED, {algorithm} of vLLM {version} draws its root hash at random; \
                 the seed or the root hash (NONE_HASH) is missing"
            )));
        }
    };
    // Up to 0.9.2 the seed is hashed by SHA-256 whatever the algorithm, later by the algorithm.
    let algorithm = match version < Version::new(0, 10, 0) {
        true => Algorithm::Sha256,
        false => algorithm,
    };
    match Encoder::new(version, algorithm, None).text(seed) {
        Some(BlockHash(root)) => Ok(BlockHash(root)),
        None => text_hash(strings, seed).map(BlockHash::from).ok_or_else(|| {
            Error::missing(format!(
                "PYTHONHASHSEED {seed:?} gives `builtin` of vLLM {version} a random root hash; a plain \
                 decimal seed of 32 bits or the root hash (NONE_HASH) is missing"
            ))
        }),
    }
}

fn parse_root(version: Version, algorithm: Algorithm, text: &str) -> Result<BlockHash, Error> {
    let (root, form) = if is_bytes(version) {
        // An unset seed drew 32 bytes even for the 16-byte hashes of `xxhash` before 0.29.
        let root = parse_hex(text).and_then(|bytes| BlockHash::from_bytes(&bytes));
        match algorithm.is_xxhash() {
            true => (root, "32 or 64 hex digits"),
            false => (root.filter(|root| matches!(root.0, Value::Bytes32(_))), "64 hex digits"),
        }
    } else {
        let signed =
            text.parse().ok().filter(|_| algorithm == Algorithm::Builtin).map(Value::Signed);
        let root = signed.or_else(|| parse_decimal(text).map(Value::Int)).map(BlockHash);
        (root, "a decimal integer of up to 256 bits")
    };
    root.ok_or_else(|| {
        Error::invalid(format!(
            "the root hash given is not of the form that {algorithm} of vLLM {version} has: {form}"
        ))
    })
}
