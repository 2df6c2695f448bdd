//! What an image is stored in, as the embedding VMM provides it, and where an image is.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Where the image of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskMode {
    /// Each host has an image.
    Replicated,
    /// There is one image, which both hosts reach.
    Shared,
}

impl DiskMode {
    /// All modes.
    pub const ALL: [Self; 2] = [Self::Replicated, Self::Shared];

    /// Its name in configurations and in the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Replicated => "replicated",
            Self::Shared => "shared",
        }
    }

    /// The mode with this name.
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

/// When a file was last changed, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Its content. Whoever copies a file can choose it.
    pub content_ns: u64,
    /// Anything about it, its content included. The host alone sets it.
    pub anything_ns: u64,
}

/// What a disk is stored in. Offsets and lengths are in bytes, in whole sectors, and within the disk.
pub trait Storage: Send + Sync {
    /// Size of the disk, in bytes. Never changes.
    fn bytes(&self) -> u64;

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// Any error of the host's disk.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// Any error of the host's disk. A part may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes all earlier writes survive a loss of power.
    ///
    /// # Errors
    /// Any error of the host's disk.
    fn flush(&self) -> io::Result<()>;

    /// Gives the space of a range back to the host. The range reads as zeros afterwards.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the host cannot do that to this kind of file.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Sets a range to zero. May give its space back to the host if `may_unmap`.
    ///
    /// # Errors
    /// Any error of the host's disk. A part may have been written.
    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()>;

    /// What the host keeps of this range in its memory may be dropped, so that the next read shows what the storage
    /// has. A hint: it may do nothing, and it loses nothing that was written.
    fn forget_cached(&self, offset: u64, bytes: u64) {
        let _ = (offset, bytes);
    }

    /// Takes the lock that excludes every other user of the image, unless it is held already.
    /// Returns whether it is held now. Does not wait.
    ///
    /// # Errors
    /// If the host cannot lock the image at all.
    fn lock(&self) -> io::Result<bool>;

    /// Whether another user of the image, on this or another host, holds that lock. Does not take
    /// it.
    ///
    /// # Errors
    /// If the host cannot tell.
    fn is_locked_by_other(&self) -> io::Result<bool>;

    /// A short text that another image put in its place would not have, such as a file's number and
    /// when it came to be. `None` if the host cannot tell one image from another.
    ///
    /// # Errors
    /// If the host cannot be asked.
    fn identity(&self) -> io::Result<Option<String>>;

    /// When the image was last changed, by whomever. `None` if the host does not note it.
    ///
    /// # Errors
    /// If the host cannot be asked.
    fn changed(&self) -> io::Result<Option<Changed>>;
}
