//! Files with secrets: read within bounds, for few eyes only, and noticed when they change.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Larger than any token, key or chain of certificates.
const LARGEST: u64 = 1 << 20;

/// Who may neither read nor change a secret: everyone but its owner, and, to read it, its group. Kubernetes gives
/// secrets to a group where a pod has one.
const FORBIDDEN: u32 = 0o027;

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
    mode: u32,
}

impl Stamp {
    /// That of a file as it is now; none if it cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Stamp> {
        fs::metadata(path).ok().map(|data| Stamp::new(&data))
    }

    fn new(data: &Metadata) -> Stamp {
        Stamp {
            device: data.dev(),
            inode: data.ino(),
            bytes: data.len(),
            // Of its content or of its mode.
            changed: (data.ctime(), data.ctime_nsec()),
            mode: data.mode(),
        }
    }
}

/// A secret's text, and its stamp as it was read.
///
/// # Errors
///
/// It cannot be read, is no text, or is not for its owner and group alone; in words for whoever configured it, with the
/// stamp if there is such a file.
pub(crate) fn read_secret(path: &Path) -> Result<(String, Stamp), (String, Option<Stamp>)> {
    let shown = path.display();
    let failed = |error: io::Error| format!("{shown}: {error}");
    let mut file = File::open(path).map_err(|error| (failed(error), Stamp::of(path)))?;
    let data = file.metadata().map_err(|error| (failed(error), None))?;
    let stamp = Stamp::new(&data);
    let wrong = |what: String| (format!("{shown}: {what}"), Some(stamp));
    if data.mode() & FORBIDDEN != 0 {
        return Err(wrong(format!(
            "others may read or change it (mode {:04o}): chmod 600, or in Kubernetes defaultMode: 0440 and fsGroup",
            data.mode() & 0o7777
        )));
    }
    let mut bytes = Vec::new();
    let read = file.by_ref().take(LARGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| (failed(error), Some(stamp)))?;
    if bytes.len() as u64 > LARGEST {
        return Err(wrong(format!("is larger than {LARGEST} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("is no text".to_owned()))?;
    Ok((text, stamp))
}
