//! Where a model's tokenizer files are, and reading them within limits.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Larger than any published `tokenizer.json` (some 35 MB) by far.
pub(super) const MAX_TOKENIZER: u64 = 256 << 20;
/// Larger than any published `tokenizer_config.json` (some 1 MB).
pub(super) const MAX_CONFIG: u64 = 16 << 20;
/// Larger than any published chat template (some 20 KB).
pub(super) const MAX_TEMPLATE: u64 = 512 << 10;

/// The files of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) tokenizer: PathBuf,
    /// Where the other files are, if they are there.
    pub(super) folder: PathBuf,
}

impl Files {
    /// Finds them: a `tokenizer.json`, a folder that has one, or the name of a model in the hub cache
    /// (`org/name`, or `org/name@revision`).
    ///
    /// # Errors
    ///
    /// Nothing is there; the message names what was looked for.
    pub(super) fn find(source: &str, cache: &Path) -> Result<Files, Error> {
        let path = Path::new(source);
        if path.is_file() {
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            return Ok(Files { tokenizer: path.to_owned(), folder });
        }
        if path.is_dir() {
            return Files::in_folder(path);
        }
        let Some((name, revision)) = hub_name(source) else {
            return Err(Error::invalid(format!(
                "no tokenizer at {source:?}: it has to be a tokenizer.json, a folder with one, or a name in the \
                 Hugging Face cache such as \"org/name\""
            )));
        };
        Files::in_folder(&snapshot(cache, name, revision)?)
    }

    fn in_folder(folder: &Path) -> Result<Files, Error> {
        let tokenizer = folder.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Err(Error::invalid(format!(
                "{}: no tokenizer.json in it (a tokenizer.model or tekken.json alone is not supported: use \
                 the engine's /tokenize)",
                folder.display()
            )));
        }
        Ok(Files { tokenizer, folder: folder.to_owned() })
    }
}

/// `org/name[@revision]`, of which nothing can lead out of the cache.
fn hub_name(source: &str) -> Option<(&str, &str)> {
    let (name, revision) = source.split_once('@').unwrap_or((source, "main"));
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let mut parts = name.split('/');
    let org = parts.next()?;
    // Some old models have no organization.
    let plain = parts.next().is_none_or(is_part) && parts.next().is_none();
    (is_part(org) && plain && revision.split('/').all(is_part)).then_some((name, revision))
}

fn snapshot(cache: &Path, name: &str, revision: &str) -> Result<PathBuf, Error> {
    let model = cache.join(format!("models--{}", name.replace('/', "--")));
    if !model.is_dir() {
        return Err(Error::invalid(format!(
            "no model {name:?} in the Hugging Face cache {} (HF_HUB_CACHE or HF_HOME say where it is); kvscout \
             downloads nothing",
            cache.display()
        )));
    }
    let reference = model.join("refs").join(revision);
    let commit = match reference.is_file() {
        true => read(&reference, 4096)?.trim().to_owned(),
        false => revision.to_owned(),
    };
    let folder = model.join("snapshots").join(&commit);
    // What the file says must not lead elsewhere either.
    if commit.contains(['/', '\\']) || commit.starts_with('.') || !folder.is_dir() {
        return Err(Error::invalid(format!(
            "{}: revision {revision:?} of {name:?} is not there (snapshots/{commit})",
            model.display()
        )));
    }
    Ok(folder)
}

/// The hub cache as Hugging Face's tools look for it: `HF_HUB_CACHE`, `HF_HOME/hub`,
/// `XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub`.
pub(super) fn hub_cache(var: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| {
        let home = set("HF_HOME").unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME")
                .unwrap_or_else(|| set("HOME").unwrap_or_default().join(".cache"));
            cache.join("huggingface")
        });
        home.join("hub")
    })
}

/// The text of a file of at most `limit` bytes.
///
/// # Errors
///
/// The file cannot be read, is longer, or is no UTF-8.
pub(super) fn read(path: &Path, limit: u64) -> Result<String, Error> {
    let refuse = |what: String| Error::invalid(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| refuse(error.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(refuse(format!("larger than {limit} bytes")));
    }
    String::from_utf8(bytes)
        .map_err(|error| refuse(format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())))
}

/// As [`read`]; `None` where there is no such file.
pub(super) fn read_if_there(path: &Path, limit: u64) -> Result<Option<String>, Error> {
    if path.is_file() { read(path, limit).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_name_cannot_lead_out_of_the_cache() {
        assert_eq!(hub_name("Qwen/Qwen3-8B"), Some(("Qwen/Qwen3-8B", "main")));
        assert_eq!(hub_name("gpt2@refs/pr/1"), Some(("gpt2", "refs/pr/1")));
        for bad in ["../x", "a/../b", "a/b/c", "/etc/x", "a/b@../../x", "", "a/", "a/b@", "a b/c"] {
            assert_eq!(hub_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let with = |vars: &[(&str, &str)]| {
            hub_cache(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
        };
        assert_eq!(with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), Path::new("/c"));
        assert_eq!(with(&[("HF_HOME", "/h"), ("HOME", "/me")]), Path::new("/h/hub"));
        assert_eq!(
            with(&[("HF_HOME", ""), ("HOME", "/me")]),
            Path::new("/me/.cache/huggingface/hub")
        );
    }
}
