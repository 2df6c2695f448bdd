//! Which two images are a pair, and what a backup says about its disks.
//!
//! Two images that share an id differ at most in the blocks marked in either side's map. Must not
//! be done here: deciding anything from a peer's numbers before [`PeerDisk::check`] has checked
//! them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::SECTOR_BYTES;
use crate::peer_words::at_most;

/// Smallest block of a map, in bytes.
pub const BLOCK_BYTES_MIN: u64 = 64 << 10;
/// Most blocks that a map has.
pub const BLOCKS_MAX: u64 = 1 << 20;
/// An image carries at most this many ids: the pair it belongs to and the one it may come to belong
/// to.
const PEER_IDS_MAX: usize = 2;

/// Names a pair of images. The primary draws it at random; it is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PairId(pub u128);

impl fmt::Display for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A disk as the backup describes it in its `Welcome`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
pub struct PeerDisk {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The pairs that its image may belong to. None if it belongs to no pair or is shared.
    #[serde(deserialize_with = "at_most::<PEER_IDS_MAX, _, _>")]
    pub ids: Vec<PairId>,
    /// Whether it is an unfinished copy.
    pub unfinished: bool,
    /// Whether its operator wants all of it to be replaced, whatever is in it.
    pub replace: bool,
    /// Size of a block of its map.
    pub block_bytes: u64,
    /// The blocks that its own guest has written since it was part of the pair, lowest bit first.
    /// Missing bits at the end are 0.
    pub dirty: Bytes,
}

/// How one disk is brought up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSyncPlan {
    /// The pair that both images become once the copy is whole.
    pub candidate: PairId,
    /// Whether nothing is known of what is in the backup's image. If not, only what the maps mark is
    /// sent; if so, everything, except what a check finds equal.
    pub full: bool,
    /// The pair they are now, if anything is known.
    pub from: Option<PairId>,
}

/// Block size of the map of a disk of `bytes`: 64 KiB, doubled until there are at most
/// [`BLOCKS_MAX`] blocks.
#[must_use]
pub fn block_bytes_for(bytes: u64) -> u64 {
    let mut block = BLOCK_BYTES_MIN;
    while bytes.div_ceil(block) > BLOCKS_MAX {
        block *= 2;
    }
    block
}

/// How many blocks the map of a disk of `bytes` has.
#[must_use]
pub fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(block_bytes_for(bytes))
}

impl PeerDisk {
    /// Checks whether this can describe a disk at all.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.bytes == 0 || !self.bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(format!("it has {} bytes", self.bytes));
        }
        if self.ids.len() > PEER_IDS_MAX || self.ids.contains(&PairId(0)) {
            return Err(format!("it has {} ids", self.ids.len()));
        }
        let limit = blocks_of(self.bytes).div_ceil(8);
        if self.dirty.len() as u64 > limit {
            return Err(format!(
                "its map has {} bytes, limit {limit}",
                self.dirty.len()
            ));
        }
        Ok(())
    }
}
