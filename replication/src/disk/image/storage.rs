//! What an image is stored in, as the embedding VMM gives it, and where an image is.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Where the image of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskMode {
    /// Each host has its own.
    Replicated,
    /// There is one, which both hosts reach.
    Shared,
}

impl DiskMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Replicated, Self::Shared];

    /// What it is called in configurations and in the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Replicated => "replicated",
            Self::Shared => "shared",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

impl fmt::Display for DiskMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a disk is stored in. Offsets and lengths are in bytes, in whole sectors, and within the disk.
pub trait Storage: Send + Sync {
    /// Size of the disk. Never changes.
    fn bytes(&self) -> u64;

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// What the host's disk says.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// What the host's disk says; some of it may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes all that was written survive a loss of power.
    ///
    /// # Errors
    /// What the host's disk says.
    fn flush(&self) -> io::Result<()>;

    /// Gives the room of a range back to the host; it reads as zeros then.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the host cannot do that to this kind of file.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Makes a range zero, giving its room back if `may_unmap`.
    ///
    /// # Errors
    /// What the host's disk says; some of it may have been written.
    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()>;

    /// Takes the lock that excludes every other user of the image, if it is not held yet; says whether
    /// it is held now. Does not wait.
    ///
    /// # Errors
    /// If the host cannot lock it at all.
    fn lock(&self) -> io::Result<bool>;

    /// Whether another user of the image holds that lock, on this host or another one. Takes nothing.
    ///
    /// # Errors
    /// If the host cannot tell.
    fn is_locked_by_other(&self) -> io::Result<bool>;
}
