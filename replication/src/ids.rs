//! Newtypes for the numbers that must not be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Size of a guest page in bytes. Everything here counts in 4 KiB pages, also where the host uses
/// larger ones.
pub const PAGE_BYTES: usize = 4096;

/// One guest page's content.
pub type Page = [u8; PAGE_BYTES];

/// One reign of one primary, handed out once by the arbiter. Generation 0 is "nobody yet".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Number of an epoch within a generation. Epoch 0 is "none yet"; the epoch that completes the
/// initial synchronisation is 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct EpochId(pub u64);

/// Guest-physical page number: guest-physical address divided by [`PAGE_BYTES`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PageIndex(pub u64);

impl Generation {
    /// The generation that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        // A peer may say any number; what comes after the last is granted to nobody.
        Self(self.0.saturating_add(1))
    }
}

impl EpochId {
    /// The epoch that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.0)
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.0)
    }
}
