//! Which hash contract a worker follows: detected from its own events, never assumed.
//!
//! The first blocks of prompts are recomputed under every contract that the form of the event
//! allows; the one that gives the announced name is the worker's. A name has 64 bits, so one match
//! is proof enough. Where the engine's events hide extra keys (vLLM before 0.17, old SGLang), the
//! contract is needed before a block may be matched by content at all: only if the name of a block
//! is that of its plain tokens has the block no extra keys.

mod candidates;

use std::collections::HashMap;

use crate::block::{ExtraKey, Name, Prompt, Shape, TokenId};
use crate::error::Error;
use crate::event::{BlockExtras, ExtraKeys, Form, Stored};
use crate::hash::sglang::PageHash;
use crate::hash::vllm::{self, BlockHash, ChainMemory, Root, Version};

pub use candidates::{COMMON_SEEDS, Candidates, Told};

/// How many first blocks may fit no contract before a worker is taken to be
/// [`Status::Private`]. A salted prompt fits none either; eight in a row from an engine that can be
/// recomputed means that a gateway salts everything.
const PATIENCE: usize = 8;

/// Of how many first blocks one is compared after the contract was found: often enough to notice a second
/// engine within a few prompts, and far less work than applying them.
const SAMPLE: u64 = 8;

/// How many such in a row may fit as plain text where extra keys are hidden: all 64 that came meanwhile would have had
/// some.
const STRANGE: u64 = 8;

/// How many full hashes are kept for a worker that hides extra keys: four million tokens in blocks of
/// 16, about 20 MB. Blocks below one that is not kept are held by name, which is as exact, but counts
/// towards the share of such blocks.
const MAX_FULL: usize = 1 << 18;

/// A hash contract that can be recomputed here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Contract {
    /// vLLM's block hashes.
    Vllm(vllm::Contract),
    /// SGLang's page hashes (0.5.6 and later).
    Sglang,
}

#[derive(Clone, Copy, Debug)]
enum FullHash {
    Vllm(BlockHash),
    Sglang(PageHash),
}

impl FullHash {
    fn name(&self) -> Name {
        match self {
            FullHash::Vllm(hash) => hash.name(),
            FullHash::Sglang(hash) => hash.name(),
        }
    }
}

impl Contract {
    /// The hash of a prompt's first block, without an adapter.
    fn first(&self, first: &First<'_>, keys: &[ExtraKey<'_>]) -> Option<FullHash> {
        match (self, keys) {
            (_, []) => self.plain(None, first.block, &first.after),
            (Contract::Vllm(contract), keys) => {
                let (root, keys) = (contract.root(), keys.iter().copied());
                let hash = contract.child(&root, first.block, &first.after, keys, None);
                hash.ok().map(FullHash::Vllm)
            }
            (Contract::Sglang, [ExtraKey::Salt(salt)]) if first.after.is_empty() => {
                let root = PageHash::salted_root(salt);
                Some(FullHash::Sglang(PageHash::of(Some(&root), first.block)))
            }
            (Contract::Sglang, _) => None,
        }
    }

    /// The hash of a block without extra keys; `parent` is `None` for the first block of a prompt.
    fn plain(
        &self,
        parent: Option<&FullHash>,
        tokens: &[TokenId],
        lookahead: &[TokenId],
    ) -> Option<FullHash> {
        match (self, parent) {
            (Contract::Vllm(contract), Some(FullHash::Vllm(parent))) => {
                contract.child(parent, tokens, lookahead, [], None).ok().map(FullHash::Vllm)
            }
            (Contract::Vllm(contract), None) => {
                let root = contract.root();
                contract.child(&root, tokens, lookahead, [], None).ok().map(FullHash::Vllm)
            }
            (Contract::Sglang, Some(FullHash::Sglang(parent))) if lookahead.is_empty() => {
                Some(FullHash::Sglang(PageHash::of(Some(parent), tokens)))
            }
            (Contract::Sglang, None) if lookahead.is_empty() => {
                Some(FullHash::Sglang(PageHash::of(None, tokens)))
            }
            _ => None,
        }
    }

    /// The names of a prompt's blocks, one after the other; hashes of prompts that begin alike are
    /// taken from `memory`.
    ///
    /// # Errors
    ///
    /// A fact that the contract needs is missing from the prompt.
    pub fn names<'p, 'm>(
        &self,
        shape: Shape,
        prompt: &Prompt<'p>,
        memory: &'m ChainMemory,
    ) -> Result<Names<'p, 'm>, Error> {
        Ok(match self {
            Contract::Vllm(contract) => Names(Source::Vllm(memory.names(contract, shape, prompt)?)),
            Contract::Sglang => {
                if prompt.lora.is_some() || !prompt.items.is_empty() || prompt.embeds.is_some() {
                    return Err(Error::missing(
                        "sglang's hash of a prompt with an adapter, items or embeddings cannot be \
                         recomputed",
                    ));
                }
                let salt = prompt.cache_salt.filter(|salt| !salt.is_empty());
                let size = shape.size.tokens();
                Names(Source::Sglang {
                    pages: prompt.token_ids.chunks_exact(size),
                    parent: salt.map(PageHash::salted_root),
                })
            }
        })
    }

    /// The oldest version of vLLM whose events have the form of this contract's version. Plain text is hashed alike
    /// from there on, so that it does not tell which version an engine has; what extra keys add may differ.
    pub fn plain_since(&self) -> Option<Version> {
        const FIRST: [Version; 8] = [
            Version::new(0, 9, 0),
            Version::new(0, 10, 0),
            Version::new(0, 10, 2),
            Version::new(0, 14, 0),
            Version::new(0, 17, 0),
            Version::new(0, 20, 0),
            Version::new(0, 22, 0),
            Version::new(0, 24, 0),
        ];
        match self {
            Contract::Vllm(contract) => {
                FIRST.into_iter().rev().find(|first| *first <= contract.version())
            }
            Contract::Sglang => None,
        }
    }

    /// What the oldest engines follow that hash plain text alike, if they hash extra keys otherwise: an engine whose
    /// plain text proved this contract may be one of them.
    pub(crate) fn elder(&self) -> Option<Contract> {
        let Contract::Vllm(contract) = self else { return None };
        let root = contract.root().to_string();
        let elder =
            vllm::Contract::new(self.plain_since()?, contract.algorithm(), Root::Hash(&root))
                .ok()?;
        (!elder.hashes_extra_keys_like(contract)).then_some(Contract::Vllm(elder))
    }

    /// Engine, version whose rules apply, and algorithm, for humans. Not its root hash: who has that can tell the name
    /// of any block.
    pub fn describe(&self) -> String {
        let since = match self.plain_since() {
            Some(since) => format!(" (plain text alike since {since})"),
            None => String::new(),
        };
        match self {
            Contract::Vllm(contract) => {
                format!("vllm {}{since} {}", contract.version(), contract.algorithm().as_str())
            }
            Contract::Sglang => "sglang 0.5.6".to_owned(),
        }
    }
}

/// Iterator over the names of a prompt's blocks; see [`Contract::names`].
#[derive(Debug)]
pub struct Names<'p, 'm>(Source<'p, 'm>);

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on a lookup's stack; a box would be an allocation for each"
)]
enum Source<'p, 'm> {
    Vllm(vllm::Names<'p, 'm>),
    Sglang { pages: std::slice::ChunksExact<'p, TokenId>, parent: Option<PageHash> },
}

impl Iterator for Names<'_, '_> {
    type Item = Name;

    fn next(&mut self) -> Option<Name> {
        match &mut self.0 {
            Source::Vllm(names) => names.next(),
            Source::Sglang { pages, parent } => {
                let hash = PageHash::of(parent.as_ref(), pages.next()?);
                *parent = Some(hash);
                Some(hash.name())
            }
        }
    }
}

/// What is known of a worker's contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// No first block has been seen yet that tells: one of plain text, or with a salt or items that its event lists.
    Undecided,
    /// Names can be recomputed.
    Verified(Contract),
    /// No known contract fits: a random seed, most likely.
    Private,
}

/// How often announced names were compared with those that a contract gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Names compared.
    pub checked: u64,
    /// Those of plain text, by the event's own word, that were others; where events hide extra keys, those at the
    /// end of a long row of others. The first one also if it is not what the registered version or contract gives, but another one.
    pub failed: u64,
    /// Of those that failed, the one that showed another contract than was registered.
    pub misled: u64,
}

/// The contract check of one incarnation of a worker.
#[derive(Clone, Debug)]
pub struct Verifier {
    status: Status,
    /// First blocks that fitted no contract, for [`Verifier::settle`].
    roots: Vec<Unfit>,
    /// How many first blocks with listed extra keys fitted none.
    unfit_with_keys: usize,
    /// How the blocks were cut that proved the contract; those of other groups may be hashed in parts.
    shape: Option<Shape>,
    checks: Checks,
    /// First blocks that could be looked at since the contract is known.
    passed: u64,
    /// How many of those compared were others, since one was not.
    strange: u64,
    /// Whether events with tokens left extra keys out.
    hides_extras: bool,
    /// Whether blocks whose extra keys are hidden were taken for plain text unseen, since all were gone.
    guessed: bool,
    /// Full hashes of plain blocks, kept only where events hide extra keys.
    full: HashMap<Name, FullHash>,
}

impl Default for Verifier {
    fn default() -> Verifier {
        Verifier {
            status: Status::Undecided,
            roots: Vec::new(),
            unfit_with_keys: 0,
            shape: None,
            checks: Checks::default(),
            passed: 0,
            strange: 0,
            hides_extras: false,
            guessed: false,
            full: HashMap::new(),
        }
    }
}

/// A first block that fitted no contract.
#[derive(Clone, Copy, Debug)]
struct Unfit {
    form: Form,
    shape: Shape,
    name: Name,
    /// Whether it is plain text by the event's own word; otherwise it may have been salted.
    sure: bool,
}

/// The first block of a prompt without an adapter.
struct First<'t> {
    name: Name,
    block: &'t [TokenId],
    after: Vec<TokenId>,
}

impl<'t> First<'t> {
    fn of(stored: &Stored<'_>, shape: Shape, tokens: &'t [TokenId]) -> Option<First<'t>> {
        let starts_prompt = stored.parent.is_none() && tokens.len() >= shape.size.tokens();
        let no_adapter = stored.lora_name.is_none() && stored.lora_id.is_none_or(|id| id == 0);
        let name = stored.names.names().next()?;
        if !starts_prompt || !no_adapter {
            return None;
        }
        let mut after = Vec::new();
        if let Some(list) = stored.lookahead.and_then(|lists| lists.iter().next()) {
            list.read_into(&mut after).ok()?;
        }
        Some(First { name, block: &tokens[..shape.size.tokens()], after })
    }
}

/// What a block with hidden extra keys turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Plain tokens.
    Plain,
    /// Something else; only its name counts.
    Opaque,
}

impl Verifier {
    /// A check that goes on where another one was. The full hashes that it kept are gone: blocks below
    /// those are held by name.
    /// Names are compared on where all blocks have one `shape`.
    pub fn resume(status: Status, hides_extras: bool, shape: Option<Shape>) -> Verifier {
        let guessed = hides_extras && status == Status::Private;
        Verifier { status, hides_extras, shape, guessed, ..Verifier::default() }
    }

    /// Whether the worker's events leave extra keys out.
    pub fn hides_extras(&self) -> bool {
        self.hides_extras
    }

    /// What is known.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Whether the worker's batches must wait until the contract is known, because their blocks
    /// could be plain or not.
    pub fn must_wait(&self) -> bool {
        self.hides_extras && self.status == Status::Undecided
    }

    /// Whether the worker hides extra keys and its contract cannot be recomputed, so that salted
    /// blocks are taken for plain ones.
    pub fn is_blind(&self) -> bool {
        self.hides_extras && self.status == Status::Private
    }

    /// Whether salted blocks may be among what was taken for plain text before the contract was known. They
    /// stay when it is found later.
    pub fn has_guessed(&self) -> bool {
        self.guessed
    }

    /// Looks at a stored event whose tokens are `tokens`, before it is translated.
    pub fn observe(
        &mut self,
        stored: &Stored<'_>,
        shape: Shape,
        tokens: &[TokenId],
        candidates: &Candidates,
        told: Told<'_>,
    ) {
        let (extras, keys) = match stored.extra_keys {
            ExtraKeys::Hidden => (true, Some(Vec::new())),
            ExtraKeys::Listed(listed) => match listed.iter().next() {
                Some(BlockExtras::Plain) => (false, Some(Vec::new())),
                Some(BlockExtras::Keys(keys)) => (false, Some(keys.collect())),
                Some(BlockExtras::Opaque) | None => (false, None),
            },
        };
        self.hides_extras |= extras;
        if matches!(self.status, Status::Verified(_)) || self.roots.len() >= 8 * PATIENCE {
            return;
        }
        let (Some(first), Some(keys)) = (First::of(stored, shape, tokens), keys) else { return };
        if !keys.is_empty() && self.unfit_with_keys >= 8 * PATIENCE {
            return;
        }
        let name = first.name;
        let found = candidates
            .of(stored.form, told)
            .into_iter()
            .find(|contract| contract.first(&first, &keys).is_some_and(|hash| hash.name() == name));
        match found {
            Some(contract) => {
                self.checks.checked += 1;
                // What failed in other shapes may have been hashed in parts.
                self.checks.failed =
                    self.roots.iter().filter(|root| root.sure && root.shape == shape).count()
                        as u64;
                self.verified(contract, shape, told);
            }
            // An engine may name more items than it hashed.
            None if !keys.is_empty() => self.unfit_with_keys += 1,
            None => {
                let sure = !extras;
                self.checks.checked += 1;
                self.checks.failed += u64::from(sure);
                if !self.roots.iter().any(|root| root.name == name) {
                    self.roots.push(Unfit { form: stored.form, shape, name, sure });
                }
                if self.roots.len() >= PATIENCE {
                    self.status = Status::Private;
                }
            }
        }
    }

    fn verified(&mut self, contract: Contract, shape: Shape, told: Told<'_>) {
        self.checks.misled = u64::from(told.contradicts(&contract));
        self.checks.failed += self.checks.misled;
        self.shape = Some(shape);
        self.status = Status::Verified(contract);
    }

    /// How often names were compared.
    pub fn checks(&self) -> Checks {
        self.checks
    }

    /// Goes on comparing once the contract is known: one first block in eight, of those that are plain text by the
    /// event's own word, or may be where that hides extra keys.
    pub fn sample(&mut self, stored: &Stored<'_>, shape: Shape, tokens: &[TokenId]) {
        let Status::Verified(contract) = &self.status else { return };
        let (is_plain, is_sure) = match stored.extra_keys {
            ExtraKeys::Hidden => (true, false),
            ExtraKeys::Listed(listed) => {
                (matches!(listed.iter().next(), Some(BlockExtras::Plain)), true)
            }
        };
        if stored.parent.is_some() || self.shape != Some(shape) || !is_plain {
            return;
        }
        self.passed += 1;
        if !self.passed.is_multiple_of(SAMPLE) {
            return;
        }
        let Some(First { name, block, after }) = First::of(stored, shape, tokens) else { return };
        self.checks.checked += 1;
        let fits = contract.plain(None, block, &after).is_some_and(|hash| hash.name() == name);
        self.strange = if fits { 0 } else { self.strange + 1 };
        self.checks.failed += u64::from(!fits && (is_sure || self.strange >= STRANGE));
    }

    /// Says that waiting any longer costs too much.
    pub fn give_up(&mut self) {
        if self.status == Status::Undecided {
            self.status = Status::Private;
        }
    }

    /// Tries a query's prompt, extra keys and all, on first blocks that fitted no contract as plain
    /// text: a prompt whose first name is one of theirs proves the contract.
    ///
    /// Returns whether it did.
    pub fn settle(
        &mut self,
        prompt: &Prompt<'_>,
        candidates: &Candidates,
        told: Told<'_>,
        memory: &ChainMemory,
    ) -> bool {
        if self.status != Status::Undecided {
            return false;
        }
        for &Unfit { form, shape, name, .. } in &self.roots {
            let fits = |contract: &Contract| {
                contract
                    .names(shape, prompt, memory)
                    .is_ok_and(|mut names| names.next() == Some(name))
            };
            if let Some(contract) = candidates.of(form, told).into_iter().find(fits) {
                self.verified(contract, shape, told);
                return true;
            }
        }
        false
    }

    /// What a block with hidden extra keys is, by its name; `parent` is the announced hash before
    /// it, `None` for the first block of a prompt.
    pub fn content(
        &mut self,
        parent: Option<Name>,
        parent_bytes: Option<&[u8]>,
        name: Name,
        tokens: &[TokenId],
        lookahead: &[TokenId],
    ) -> Content {
        let Status::Verified(contract) = &self.status else {
            self.guessed = true;
            return Content::Plain;
        };
        let before = match parent {
            None => None,
            Some(parent) => {
                let full = self.full.get(&parent).copied().or_else(|| {
                    // An event in the form of bytes carries the whole hash.
                    parent_bytes.and_then(BlockHash::from_bytes).map(FullHash::Vllm)
                });
                match full {
                    Some(full) => Some(full),
                    None => return Content::Opaque,
                }
            }
        };
        match contract.plain(before.as_ref(), tokens, lookahead) {
            Some(hash) if hash.name() == name => {
                if self.full.len() < MAX_FULL {
                    self.full.insert(name, hash);
                }
                Content::Plain
            }
            _ => Content::Opaque,
        }
    }

    /// Says that the worker announced a removal of this block.
    pub fn removed(&mut self, name: Name) {
        // Hashing the name costs more than the question.
        if !self.full.is_empty() {
            self.full.remove(&name);
        }
    }

    /// Says that all blocks of the worker are gone.
    pub fn cleared(&mut self) {
        self.guessed = false;
        self.full.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockSize, Item};
    use crate::hash::content::DigestKey;

    const TOKENS: [TokenId; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn a_chain_of_sglang_goes_on_from_the_page_before() {
        let (first, second) = (&TOKENS[..4], &TOKENS[4..8]);
        let root = PageHash::of(None, first);
        let hashed = |parent: Option<PageHash>, tokens, lookahead| {
            let parent = parent.map(FullHash::Sglang);
            Contract::Sglang.plain(parent.as_ref(), tokens, lookahead).map(|hash| hash.name())
        };
        assert_eq!(hashed(None, first, &[]), Some(root.name()));
        assert_eq!(hashed(Some(root), second, &[]), Some(PageHash::of(Some(&root), second).name()));
        assert_eq!(hashed(None, first, &[4]), None, "its pages do not look ahead");
        assert_eq!(hashed(Some(root), second, &[8]), None, "its pages do not look ahead");
    }

    #[test]
    fn a_prompt_has_names_of_sglang_unless_it_carries_what_they_hide() {
        let memory = ChainMemory::new(DigestKey::from_bytes([7; 16]), 1 << 10);
        let shape = Shape::plain(BlockSize::new(4).unwrap());
        let names = |prompt: &Prompt<'_>| {
            let names = Contract::Sglang.names(shape, prompt, &memory);
            names.map(Iterator::collect::<Vec<Name>>).ok()
        };
        let chain = |root: Option<PageHash>| {
            let first = PageHash::of(root.as_ref(), &TOKENS[..4]);
            Some(vec![first.name(), PageHash::of(Some(&first), &TOKENS[4..8]).name()])
        };
        let plain = Prompt::new(&TOKENS);
        assert_eq!(names(&plain), chain(None));
        assert_eq!(names(&Prompt { cache_salt: Some(""), ..plain }), chain(None));
        let salted = Prompt { cache_salt: Some("s"), ..plain };
        assert_eq!(names(&salted), chain(Some(PageHash::salted_root("s"))));
        let items = [Item { identifier: "image", offset: 1, length: 2 }];
        assert_eq!(names(&Prompt { items: &items, ..plain }), None);
    }
}
