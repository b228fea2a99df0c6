//! Passwords that appear in no log.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;

use crate::error::Error;

/// A password is shorter; a larger file is some other file.
const LONGEST: u64 = 4096;

/// A password, or where it is found.
///
/// A file or an environment variable is read again for every connection, so that a changed password is
/// used without a restart. No form of it prints the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Source);

#[derive(Clone, PartialEq, Eq)]
enum Source {
    Text(Box<str>),
    File(PathBuf),
    Variable(Box<str>),
}

impl Secret {
    /// The password itself.
    pub fn new(password: impl Into<Box<str>>) -> Secret {
        Secret(Source::Text(password.into()))
    }

    /// The content of a file, without the line end.
    pub fn file(path: impl Into<PathBuf>) -> Secret {
        Secret(Source::File(path.into()))
    }

    /// The value of an environment variable.
    pub fn variable(name: impl Into<Box<str>>) -> Secret {
        Secret(Source::Variable(name.into()))
    }

    /// The password as it is now.
    ///
    /// # Errors
    ///
    /// The file or variable is missing, empty, not text, or too large for a password.
    pub(super) fn read(&self) -> Result<Box<str>, Error> {
        let password = match &self.0 {
            Source::Text(text) => return Ok(text.clone()),
            Source::File(path) => {
                let mut text = String::new();
                std::fs::File::open(path)
                    .and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text))
                    .map_err(|e| {
                        Error::missing(format!("the password file {path:?} cannot be read: {e}"))
                    })?;
                text
            }
            Source::Variable(name) => std::env::var(&**name).map_err(|e| {
                // `VarError::NotUnicode` would print the value.
                let why = match e {
                    std::env::VarError::NotPresent => "is not set",
                    std::env::VarError::NotUnicode(_) => "is not text",
                };
                Error::missing(format!("the environment variable {name:?} for the password {why}"))
            })?,
        };
        if password.len() as u64 > LONGEST {
            return Err(Error::invalid(format!("{self:?} is larger than {LONGEST} bytes")));
        }
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(Error::invalid(format!("{self:?} is empty, not a password")));
        }
        Ok(password.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Text(_) => f.write_str("a password"),
            Source::File(path) => write!(f, "the password file {path:?}"),
            Source::Variable(name) => write!(f, "the password in the variable {name:?}"),
        }
    }
}
