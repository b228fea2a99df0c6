//! Extra keys: which ones a block has, and in what form a version hashes them.

use super::Version;
use super::writer::{Tag, Writer};
use crate::block::{Item, Lora};

/// One extra key, in the form in which it is hashed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extra<'a> {
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Digest([u8; 32]),
    Placed { identifier: &'a str, offset: i64 },
    TaggedLora { name: &'a str, path: &'a str },
    TaggedItem { identifier: &'a str, offset: i64 },
    TaggedSalt(&'a str),
    TaggedEmbeds([u8; 32]),
}

impl Extra<'_> {
    pub(super) fn write(&self, writer: &mut impl Writer) {
        match *self {
            Extra::Int(n) => writer.int(n),
            Extra::Text(text) => writer.text(text),
            Extra::Bytes(bytes) => writer.bytes(bytes),
            Extra::Digest(digest) => writer.bytes(&digest),
            Extra::Placed { identifier, offset } => {
                writer.open(2);
                writer.text(identifier);
                writer.int(offset);
                writer.close(2);
            }
            Extra::TaggedLora { name, path } => {
                writer.open(3);
                writer.tag(Tag::Lora);
                writer.text(name);
                writer.text(path);
                writer.close(3);
            }
            Extra::TaggedItem { identifier, offset } => {
                writer.open(3);
                writer.tag(Tag::Item);
                writer.text(identifier);
                writer.int(offset);
                writer.close(3);
            }
            Extra::TaggedSalt(salt) => {
                writer.open(2);
                writer.tag(Tag::Salt);
                writer.text(salt);
                writer.close(2);
            }
            Extra::TaggedEmbeds(digest) => {
                writer.open(2);
                writer.tag(Tag::Embeds);
                writer.bytes(&digest);
                writer.close(2);
            }
        }
    }
}

/// The forms of a version's extra keys. Each boundary is the first release that was seen to have
/// the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Forms {
    pub(super) lora: LoraForm,
    pub(super) item: ItemForm,
    pub(super) salt: SaltForm,
    pub(super) embeds: EmbedsForm,
    pub(super) scan: ScanRule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LoraForm {
    Id,
    Name,
    /// `("lora", name, path)`
    Tagged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ItemForm {
    Identifier,
    /// `(identifier, offset)`
    Placed,
    /// `("mm", identifier, offset)`
    Tagged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SaltForm {
    /// The version knows no salts.
    Ignored,
    Plain,
    /// `("cache_salt", salt)`
    Tagged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum EmbedsForm {
    /// The version hashes no prompt embeddings.
    Unsupported,
    /// The rows as they are.
    Raw,
    /// Their SHA-256.
    Digest,
    /// `("prompt_embeds", SHA-256)`
    Tagged,
}

/// How a version looks for the items of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ScanRule {
    /// Whether an item that ends where a block begins belongs to the block (before 0.19).
    touching: bool,
    restart: Restart,
}

/// Where the scan begins when generated tokens have filled more blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Restart {
    /// At the last item, for every block anew (before 0.10.1).
    LastEachBlock,
    /// At the last item, unless the first block is hashed (before 0.31).
    Last,
    /// At the first item.
    First,
}

impl Forms {
    pub(super) fn of(version: Version) -> Forms {
        let since = |major, minor, patch| version >= Version::new(major, minor, patch);
        let tagged = since(0, 31, 0);
        Forms {
            lora: match () {
                () if tagged => LoraForm::Tagged,
                () if since(0, 11, 1) => LoraForm::Name,
                () => LoraForm::Id,
            },
            item: match () {
                () if tagged => ItemForm::Tagged,
                () if since(0, 19, 0) => ItemForm::Placed,
                () => ItemForm::Identifier,
            },
            salt: match () {
                () if tagged => SaltForm::Tagged,
                () if since(0, 9, 0) => SaltForm::Plain,
                () => SaltForm::Ignored,
            },
            embeds: match () {
                () if tagged => EmbedsForm::Tagged,
                () if since(0, 17, 0) => EmbedsForm::Digest,
                () if since(0, 11, 1) => EmbedsForm::Raw,
                () => EmbedsForm::Unsupported,
            },
            scan: ScanRule {
                touching: !since(0, 19, 0),
                restart: match () {
                    () if tagged => Restart::First,
                    () if since(0, 10, 1) => Restart::Last,
                    () => Restart::LastEachBlock,
                },
            },
        }
    }

    /// Whether both give every prompt's own blocks the same keys. Where a scan begins again counts for what is generated
    /// after a prompt only.
    pub(super) fn tell_prompts_alike(&self, other: &Forms) -> bool {
        let of =
            |forms: &Forms| (forms.lora, forms.item, forms.salt, forms.embeds, forms.scan.touching);
        of(self) == of(other)
    }

    /// The key of an adapter, or which fact about it is missing.
    pub(super) fn lora<'a>(&self, lora: Lora<'a>) -> Result<Extra<'a>, &'static str> {
        match self.lora {
            LoraForm::Id => lora.id.map(Extra::Int).ok_or("integer id"),
            LoraForm::Name => Ok(Extra::Text(lora.name)),
            LoraForm::Tagged => {
                let path = lora.path.ok_or("path, as the engine sees it,")?;
                Ok(Extra::TaggedLora { name: lora.name, path })
            }
        }
    }

    pub(super) fn item<'a>(&self, identifier: &'a str, offset: i64) -> Extra<'a> {
        match self.item {
            ItemForm::Identifier => Extra::Text(identifier),
            ItemForm::Placed => Extra::Placed { identifier, offset },
            ItemForm::Tagged => Extra::TaggedItem { identifier, offset },
        }
    }

    /// The key of a salt, if it counts; an empty one never does.
    pub(super) fn salt<'a>(&self, salt: &'a str) -> Option<Extra<'a>> {
        match self.salt {
            _ if salt.is_empty() => None,
            SaltForm::Ignored => None,
            SaltForm::Plain => Some(Extra::Text(salt)),
            SaltForm::Tagged => Some(Extra::TaggedSalt(salt)),
        }
    }
}

/// A walk over a request's items, block by block.
///
/// vLLM keeps the position between the blocks of one call of its hasher, and where it puts it when
/// a later call begins is part of the hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    rule: ScanRule,
    next: Next,
    each_block_anew: bool,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Item(usize),
    Last,
}

/// The tokens that a scan looks at: `start..end` is the block, `end..seen` its look-ahead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) seen: usize,
}

impl Scan {
    /// The scan of a prompt's own blocks, standing at the block that begins with token `start`.
    pub(super) fn within_prompt(rule: ScanRule, items: &[Item<'_>], start: usize) -> Scan {
        let passed = items.iter().take_while(|item| end_of(item) <= start).count();
        Scan { rule, next: Next::Item(passed), each_block_anew: false }
    }

    /// The scan of a later call that begins with block number `block`.
    pub(super) fn after_prompt(rule: ScanRule, block: usize) -> Scan {
        let next = match rule.restart {
            Restart::First => Next::Item(0),
            Restart::Last if block == 0 => Next::Item(0),
            Restart::Last | Restart::LastEachBlock => Next::Last,
        };
        Scan { rule, next, each_block_anew: rule.restart == Restart::LastEachBlock }
    }

    /// Calls `found` with each item that the version counts to the block; blocks come in order.
    pub(super) fn block<'i>(
        &mut self,
        items: &[Item<'i>],
        window: Window,
        mut found: impl FnMut(&Item<'i>),
    ) {
        let Some(last) = items.last() else { return };
        if self.each_block_anew {
            self.next = Next::Last;
        }
        if self.passed(last, window.start) {
            return;
        }
        let mut next = match self.next {
            Next::Item(next) => next,
            Next::Last => items.len() - 1,
        };
        while let Some(item) = items.get(next) {
            if window.seen <= item.offset as usize {
                break;
            }
            if self.passed(item, window.start) {
                next += 1;
                continue;
            }
            found(item);
            if window.seen < end_of(item) {
                break;
            }
            next += 1;
        }
        // Items that the look-ahead finished may reach into the next block.
        while next > 0 && window.end < window.seen && end_of(&items[next - 1]) > window.end {
            next -= 1;
        }
        self.next = Next::Item(next);
    }

    fn passed(&self, item: &Item<'_>, start: usize) -> bool {
        if self.rule.touching { end_of(item) < start } else { end_of(item) <= start }
    }
}

fn end_of(item: &Item<'_>) -> usize {
    item.offset as usize + item.length as usize
}
