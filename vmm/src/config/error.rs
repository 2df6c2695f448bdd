//! What can be wrong with a configuration.

use std::path::PathBuf;

use super::keys::{self, Key};

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("the configuration {} has {bytes} bytes; at most {max} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most.
        max: u64,
    },
    /// The file is no JSON.
    #[error("the configuration {} is no JSON: {source}", path.display())]
    NoJson {
        /// The file.
        path: PathBuf,
        /// What, and in which line and column.
        source: serde_json::Error,
    },
    /// A key that means nothing, here or in Firecracker.
    #[error("the configuration {}: there is no key `{key}`; {known}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key, with its sections.
        key: String,
        /// Which keys there are beside it, in words.
        known: String,
    },
    /// A value is not of the kind that the key takes.
    #[error("the configuration {}: {key}: {source}; {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The key, with its sections.
        key: String,
        /// What to write instead.
        expected: String,
        /// What, and in which line and column.
        source: serde_json::Error,
    },
    /// A value is out of its range, or two contradict each other.
    #[error("{key}: {why}")]
    Value {
        /// The key, with its sections.
        key: String,
        /// The value, what is wrong with it, and what would be right.
        why: String,
    },
}

impl ConfigError {
    pub(super) fn value(key: &Key, why: impl std::fmt::Display) -> Self {
        Self::Value {
            key: key.path.into(),
            why: why.to_string(),
        }
    }

    /// A number, if it is in the key's range.
    pub(super) fn check(key: &Key, value: u64) -> Result<u64, Self> {
        match key.refuses(value) {
            None => Ok(value),
            Some(why) => Err(Self::value(key, why)),
        }
    }

    /// As [`Self::value`], for the key of an item of a list.
    pub(super) fn of_item(key: &Key, item: &str, why: impl std::fmt::Display) -> Self {
        Self::Value {
            key: key.path.replace("[]", &format!(".{item}")),
            why: why.to_string(),
        }
    }

    /// The key that it is about, if it is about one that there is.
    #[must_use]
    pub fn key(&self) -> Option<&'static Key> {
        match self {
            Self::Value { key, .. } | Self::Malformed { key, .. } => keys::find(key),
            _ => None,
        }
    }
}
