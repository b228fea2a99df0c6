//! What is kept over a restart: the index, and how far each worker's stream was followed.
//!
//! Invariants: a snapshot is believed as a whole or not at all; every byte before the end mark is
//! under a checksum; nothing is sized by a number that a file gives before the bytes are there.
//! The digest key is never part of it, only the key's fingerprint. `docs/state.md` has the layout.

mod directory;
mod plain;
mod registrations;
mod worker;

use std::fmt;
use std::io::{self, Read, Write};

use xxhash_rust::xxh3::Xxh3;

pub use directory::{Kept, StateDirectory, parse_secret};
pub use registrations::{AdapterState, EditionState, Given, Registrations, VocabularyState};
pub use worker::{GroupState, KeptContract, Watermark, WorkerState};

use crate::error::{Error, ErrorKind};
use crate::hash::content::DigestKey;
use crate::index::Image;
use crate::index::image::Reader;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"\x89kvscout";
/// The head is a version, a number and a time.
const MOST_HEAD: u64 = 4096;

/// Everything that a scout needs to go on where another one was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The kvscout that wrote it.
    pub version: String,
    /// [`DigestKey::id`] of the key under which the index's digests were made.
    pub key: u64,
    /// When it was taken, in milliseconds since 1970 by the caller's clock.
    pub created: u64,
    /// Who is registered, and how far each stream was followed: exactly as far as the image, so the
    /// caller keeps every stream from applying anything while it takes both. A batch that is in the
    /// image and not behind the watermark would count twice.
    pub registrations: Registrations,
    /// The index.
    pub image: Image,
}

/// Why a snapshot is not used. Each says what is wrong and what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refused {
    /// It does not begin as a snapshot does.
    Foreign,
    /// A newer kvscout wrote it.
    Newer {
        /// The format that it says it has.
        format: u32,
    },
    /// It ends too early.
    Truncated {
        /// The section in which it ends.
        section: &'static str,
    },
    /// A checksum is wrong.
    Damaged {
        /// The section that was changed.
        section: &'static str,
    },
    /// Its checksums are right and what it says makes no sense.
    Contradictory {
        /// The section.
        section: &'static str,
        /// What is wrong.
        error: Error,
    },
    /// Its digests were made under another key.
    OtherKey {
        /// The fingerprint of that key.
        theirs: u64,
        /// The fingerprint of the key at hand.
        ours: u64,
    },
    /// It could not be read at all.
    Unreadable(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Foreign => f.write_str(
                "this is no snapshot of kvscout: it does not begin like one; give the state a \
                 directory of its own",
            ),
            Refused::Newer { format } => write!(
                f,
                "the snapshot has format {format}, and this kvscout ({}) reads up to {FORMAT}: a \
                 newer one wrote it; run that one, or delete the snapshot and start cold",
                env!("CARGO_PKG_VERSION")
            ),
            Refused::Truncated { section } => write!(
                f,
                "the snapshot ends within {section}: it was copied or written in part; delete it \
                 and start cold"
            ),
            Refused::Damaged { section } => write!(
                f,
                "the checksum of {section} in the snapshot is wrong: its bytes were changed since it \
                 was written; delete it and start cold, and check the disk"
            ),
            Refused::Contradictory { section, error } => write!(
                f,
                "{section} in the snapshot cannot be used: {error}; delete it and start cold"
            ),
            Refused::OtherKey { theirs, ours } => write!(
                f,
                "the snapshot was made under digest key {theirs:016x} and the key at hand is \
                 {ours:016x}: nothing in it would match; bring the key file that belongs to it, or \
                 delete the snapshot and start cold"
            ),
            Refused::Unreadable(error) => write!(f, "the snapshot cannot be read: {error}"),
        }
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Refused::Contradictory { error, .. } => Some(error),
            Refused::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        let kind = match &refused {
            Refused::Unreadable(_) => ErrorKind::Unavailable,
            _ => ErrorKind::Decode,
        };
        Error::new(kind, refused.to_string()).with_source(refused)
    }
}

/// A part of a snapshot: its tag in the file, and what a human calls it.
#[derive(Clone, Copy)]
struct Section(&'static [u8; 4], &'static str);

const HEAD: Section = Section(b"head", "the head");
const REGISTRATIONS: Section = Section(b"regs", "the list of registrations");
const INDEX: Section = Section(b"indx", "the index");
const END: Section = Section(b"end.", "the end mark");

impl Snapshot {
    /// A snapshot by this version of kvscout.
    pub fn new(
        key: &DigestKey,
        created: u64,
        registrations: Registrations,
        image: Image,
    ) -> Snapshot {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Snapshot { version, key: key.id(), created, registrations, image }
    }

    /// Writes it; returns how many bytes it has.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn write(&self, to: &mut impl Write) -> io::Result<u64> {
        let mut total = self.write_front(to)?;
        total += INDEX.write(to, self.image.as_bytes())?;
        total += END.write(to, &[])?;
        Ok(total)
    }

    /// What [`write`](Snapshot::write) writes, in the memory that the image has: nearly all of it.
    pub fn into_bytes(mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.image).into_bytes();
        let mut front = Vec::new();
        // Memory does not refuse to be written to.
        let _ = self.write_front(&mut front);
        let _ = INDEX.write_head(&mut front, &bytes);
        bytes.splice(0..0, front);
        let _ = END.write(&mut bytes, &[]);
        bytes
    }

    /// Everything before the index.
    fn write_front(&self, to: &mut impl Write) -> io::Result<u64> {
        let mut head = Vec::new();
        plain::text(&mut head, &self.version);
        head.extend_from_slice(&self.key.to_le_bytes());
        head.extend_from_slice(&self.created.to_le_bytes());
        let registrations = self.registrations.encode();

        to.write_all(&MAGIC)?;
        to.write_all(&FORMAT.to_le_bytes())?;
        let mut total = 12;
        total += HEAD.write(to, &head)?;
        total += REGISTRATIONS.write(to, &registrations)?;
        Ok(total)
    }

    /// Reads one whose digests were made under `key`, to its end mark.
    ///
    /// The image's bytes are known to be the ones that were written; what they say is looked at by
    /// [`MemoryIndex::import`](crate::index::MemoryIndex::import). As much memory is taken as bytes
    /// come: who reads from a stranger limits `from`.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn read(from: &mut impl Read, key: &DigestKey) -> Result<Snapshot, Refused> {
        let mut preface = Vec::new();
        from.take(12).read_to_end(&mut preface).map_err(Refused::Unreadable)?;
        let (magic, format) = preface.split_at(preface.len().min(MAGIC.len()));
        if !MAGIC.starts_with(magic) {
            return Err(Refused::Foreign);
        }
        let Ok(format) = format.try_into().map(u32::from_le_bytes) else {
            return Err(Refused::Truncated { section: HEAD.1 });
        };
        if format != FORMAT {
            return Err(match format {
                0 => Refused::Damaged { section: HEAD.1 },
                format => Refused::Newer { format },
            });
        }
        let head = HEAD.read(from, MOST_HEAD)?;
        let contradictory =
            |section: Section| move |error| Refused::Contradictory { section: section.1, error };
        let (version, theirs, created) = read_head(&head).map_err(contradictory(HEAD))?;
        let ours = key.id();
        if theirs != ours {
            return Err(Refused::OtherKey { theirs, ours });
        }
        let registrations = REGISTRATIONS.read(from, u64::MAX)?;
        let registrations =
            Registrations::decode(&registrations).map_err(contradictory(REGISTRATIONS))?;
        let image = Image::from_bytes(INDEX.read(from, u64::MAX)?);
        END.read(from, 0)?;
        Ok(Snapshot { version, key: theirs, created, registrations, image })
    }
}

fn read_head(bytes: &[u8]) -> Result<(String, u64, u64), Error> {
    let mut from = Reader::new(bytes);
    let head = (plain::read_text(&mut from)?, from.u64()?, from.u64()?);
    plain::ended(&from)?;
    Ok(head)
}

impl Section {
    /// Tag, length, checksum, bytes.
    fn write(self, to: &mut impl Write, bytes: &[u8]) -> io::Result<u64> {
        let head = self.write_head(to, bytes)?;
        to.write_all(bytes)?;
        Ok(head + bytes.len() as u64)
    }

    /// What comes before the bytes.
    fn write_head(self, to: &mut impl Write, bytes: &[u8]) -> io::Result<u64> {
        let length = (bytes.len() as u64).to_le_bytes();
        to.write_all(self.0)?;
        to.write_all(&length)?;
        to.write_all(&self.sum(length, bytes))?;
        Ok(4 + 8 + 16)
    }

    fn read(self, from: &mut impl Read, most: u64) -> Result<Vec<u8>, Refused> {
        let damaged = Refused::Damaged { section: self.1 };
        let (mut tag, mut length, mut sum) = ([0; 4], [0; 8], [0; 16]);
        for part in [&mut tag[..], &mut length, &mut sum] {
            read_exact(from, part, self)?;
        }
        let announced = u64::from_le_bytes(length);
        if tag != *self.0 || announced > most {
            return Err(damaged);
        }
        let mut bytes = Vec::new();
        // It grows with what comes, whatever was announced.
        from.take(announced).read_to_end(&mut bytes).map_err(Refused::Unreadable)?;
        if (bytes.len() as u64) < announced {
            return Err(Refused::Truncated { section: self.1 });
        }
        if self.sum(length, &bytes) != sum {
            return Err(damaged);
        }
        Ok(bytes)
    }

    /// XXH3-128 of tag, length and bytes, little-endian.
    fn sum(self, length: [u8; 8], bytes: &[u8]) -> [u8; 16] {
        let mut hash = Xxh3::new();
        hash.update(self.0);
        hash.update(&length);
        hash.update(bytes);
        hash.digest128().to_le_bytes()
    }
}

fn read_exact(from: &mut impl Read, into: &mut [u8], section: Section) -> Result<(), Refused> {
    from.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Refused::Truncated { section: section.1 },
        _ => Refused::Unreadable(error),
    })
}

#[cfg(test)]
mod tests;
