//! Where snapshots and the digest key lie.
//!
//! Invariants: under its name a file is whole or not there, for it is written under another one,
//! brought to the disk and renamed; what is here can be read by its owner only; one process at a
//! time uses a directory.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Refused, Snapshot};
use crate::error::{Error, ErrorKind};
use crate::hash::content::DigestKey;

const SNAPSHOT: &str = "snapshot";
const KEY: &str = "key";
/// The secret of the store that this kvscout shares with others, as it was there last.
const SECRET: &str = "secret";
const LOCK: &str = "lock";
/// What a snapshot is called that was refused; a number follows if there are several.
const REFUSED: &str = "snapshot.refused";
/// What a file is called until it is whole.
const UNFINISHED: &str = ".unfinished";

/// A directory with the state of one kvscout: `snapshot`, `key` and a `lock`.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    /// Held as long as this is.
    _lock: File,
}

/// What it cost to keep a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of the file.
    pub bytes: u64,
    /// From the first byte until the disk had all of them.
    pub took: Duration,
}

impl StateDirectory {
    /// A directory for this process alone, made if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be made or written to, or another process uses it.
    pub fn open(path: impl Into<PathBuf>) -> Result<StateDirectory, Error> {
        let path = path.into();
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).map_err(|e| failed("make the state directory", &path, e))?;
        let at = path.join(LOCK);
        let mut options = private();
        options.create(true).truncate(false);
        let lock = options.open(&at).map_err(|e| failed("open", &at, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::invalid(format!(
                    "the state directory {} is in use by another kvscout: give each one its own",
                    path.display()
                )));
            }
            // Some file systems have no locks; whoever uses those looks out for himself.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(failed("lock", &at, e)),
        }
        Ok(StateDirectory { path, _lock: lock })
    }

    /// The directory's digest key; the first call ever draws one at random.
    ///
    /// # Errors
    ///
    /// A key that others than its owner may read, or that is none, is refused; it is never replaced.
    pub fn key(&self) -> Result<DigestKey, Error> {
        let at = self.path.join(KEY);
        match File::open(&at) {
            Ok(file) => read_key(file, &at),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key = DigestKey::random()?;
                let hex: String = key.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
                self.replace(KEY, |file| writeln!(file, "{hex}"))
                    .map_err(|e| failed("write", &at, e))?;
                Ok(key)
            }
            Err(e) => Err(failed("read", &at, e)),
        }
    }

    /// The secret of the shared store that was [kept](StateDirectory::keep_secret) last: it may have to be known while
    /// the store is away.
    ///
    /// # Errors
    ///
    /// A secret that others than its owner may read, or that is none, is refused.
    pub fn secret(&self) -> Result<Option<[u8; 32]>, Error> {
        let at = self.path.join(SECRET);
        let file = match File::open(&at) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &at, e)),
        };
        let text = read_private(file, &at, 128, "the store's secret")?;
        let secret = parse_secret(&text).ok_or_else(|| {
            let at = at.display();
            Error::invalid(format!(
                "{at} is no secret of 64 hex digits: delete it and the snapshot"
            ))
        })?;
        Ok(Some(secret))
    }

    /// Keeps the secret of a shared store.
    ///
    /// # Errors
    ///
    /// It could not be written.
    pub fn keep_secret(&self, secret: &[u8; 32]) -> Result<(), Error> {
        let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
        let written = self.replace(SECRET, |file| writeln!(file, "{hex}"));
        written.map_err(|e| failed("write", &self.path.join(SECRET), e))
    }

    /// The snapshot, `None` if there never was one.
    ///
    /// # Errors
    ///
    /// See [`Refused`]. The file stays where it is.
    pub fn load(&self, key: &DigestKey) -> Result<Option<Snapshot>, Refused> {
        match File::open(self.path.join(SNAPSHOT)) {
            Ok(mut file) => Snapshot::read(&mut file, key).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Refused::Unreadable(e)),
        }
    }

    /// Gives a snapshot that was refused another name, which nothing else has, so that the next one
    /// does not take its place. Returns the file.
    ///
    /// # Errors
    ///
    /// It could not be renamed.
    pub fn set_aside(&self) -> Result<PathBuf, Error> {
        let at = self.path.join(SNAPSHOT);
        let mut aside = self.path.join(REFUSED);
        let mut n = 1;
        while fs::symlink_metadata(&aside).is_ok() {
            n += 1;
            aside = self.path.join(format!("{REFUSED}.{n}"));
        }
        fs::rename(&at, &aside).map_err(|e| failed("set aside", &at, e))?;
        Ok(aside)
    }

    /// Keeps a snapshot in the place of the last one.
    ///
    /// # Errors
    ///
    /// It could not be written; the last one is still there.
    pub fn save(&self, snapshot: &Snapshot) -> Result<Kept, Error> {
        let start = Instant::now();
        let bytes = self
            .replace(SNAPSHOT, |file| snapshot.write(file))
            .map_err(|e| failed("write", &self.path.join(SNAPSHOT), e))?;
        Ok(Kept { bytes, took: start.elapsed() })
    }

    /// Writes a file so that it is under its name as a whole or not at all.
    fn replace<T>(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
    ) -> io::Result<T> {
        let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
        // What a crash left over may have another mode.
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let done = (|| {
            let mut file = BufWriter::new(private().create_new(true).open(&unfinished)?);
            let done = write(&mut file)?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&unfinished, self.path.join(name))?;
            // The name itself is in the directory.
            #[cfg(unix)]
            File::open(&self.path)?.sync_all()?;
            Ok(done)
        })();
        if done.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        done
    }
}

/// For files that their owner alone may read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn read_key(file: File, at: &Path) -> Result<DigestKey, Error> {
    let text = read_private(file, at, 64, "the digest key")?;
    parse_key(text.trim_end()).ok_or_else(|| {
        Error::invalid(format!(
            "{} is no digest key of 32 hex digits: bring the right one, or delete it and the snapshot",
            at.display()
        ))
    })
}

/// The beginning of a file that nobody but its owner may read.
fn read_private(file: File, at: &Path, most: u64, what: &str) -> Result<String, Error> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let mode = file.metadata().map_err(|e| failed("look at", at, e))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Error::invalid(format!(
                "{what} {} has mode {mode:04o}, so that others than its owner may read it: \
                 if nobody did, `chmod 600` it; otherwise delete it and the snapshot",
                at.display()
            )));
        }
    }
    let mut text = String::new();
    file.take(most).read_to_string(&mut text).map_err(|e| failed("read", at, e))?;
    Ok(text)
}

/// A secret of 64 hex digits.
pub fn parse_secret(text: &str) -> Option<[u8; 32]> {
    let digits = text.trim_end().as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
    let mut secret = [0; 32];
    for (byte, pair) in secret.iter_mut().zip(digits.chunks(2)) {
        *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
    }
    Some(secret)
}

fn parse_key(text: &str) -> Option<DigestKey> {
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let key = u128::from_str_radix(text, 16).ok()?;
    Some(DigestKey::from_bytes(key.to_be_bytes()))
}

#[cold]
fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let message = format!("cannot {what} {}: {error}", path.display());
    Error::new(ErrorKind::Unavailable, message).with_source(error)
}
