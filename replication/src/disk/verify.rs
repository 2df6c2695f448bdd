//! What a comparison of a protected guest's images is told and says.

use serde::{Deserialize, Serialize};

/// At most so many ranges are named.
pub const VERIFY_RANGES_MAX: usize = 64;

/// How the images are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Each host reads at most so much of its images for it, in bytes a second.
    pub bytes_per_second: u64,
    /// Blocks that differ are sent to the standby once more, as this side has them.
    pub repair: bool,
}

/// What a comparison has found so far, or in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Size of all replicated disks, in bytes.
    pub bytes: u64,
    /// How much has been compared, in bytes.
    pub compared_bytes: u64,
    /// Blocks of 64 KiB that differ.
    pub differing_blocks: u64,
    /// The first ranges of them, adjacent ones as one; at most [`VERIFY_RANGES_MAX`].
    pub first: Vec<Differing>,
    /// Blocks that were sent once more.
    pub repaired_blocks: u64,
}

/// A range of a disk that is not equal on both hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differing {
    /// The disk's name.
    pub disk: String,
    /// Where the range begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub bytes: u64,
}
