//! What the two sides say about disks: the writes of an epoch, checks of what is there, and which
//! images are a pair.
//!
//! A [`DiskWrite`] is a guest's change of a disk, or a check: what is there at this point of the
//! stream of writes. A batch of them travels in one message and is stored in the backup's journal
//! exactly as it travelled. Must not be done here: using files or
//! threads, and trusting a peer's numbers.

mod batch;
mod pair;

pub use batch::{
    CHECK_BYTES_MAX, CHECKED_BYTES_MAX, DISK_BATCH_BYTES_DEFAULT, DISK_BATCH_BYTES_MAX, DiskBatch,
    DiskBatchError, DiskBatchWriter, decode_batch,
};
pub use pair::{
    BLOCK_BYTES_MIN, BLOCKS_MAX, DiskSyncPlan, PairId, PeerDisk, block_bytes_for, blocks_of,
};

use bytes::Bytes;

/// Bytes of a sector. Offsets and lengths are multiples of it.
pub const SECTOR_BYTES: u64 = 512;

/// A change of a disk, or a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskWrite {
    /// Number of the disk, in configuration order.
    pub disk: u16,
    /// Where it begins, in bytes; a multiple of [`SECTOR_BYTES`].
    pub offset: u64,
    /// What is there from now on, or, for a check, is there already.
    pub what: What,
}

/// What a [`DiskWrite`] writes. All lengths are multiples of [`SECTOR_BYTES`] and not 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// These bytes.
    Data(Bytes),
    /// Zeros.
    Zero {
        /// How many.
        bytes: u64,
    },
    /// Zeros, and the space is given back to the host if the host can take it.
    Discard {
        /// How many bytes.
        bytes: u64,
    },
    /// Nothing. The other side compares what it has there after all earlier writes.
    Check {
        /// How many bytes, at most [`CHECK_BYTES_MAX`].
        bytes: u64,
        /// Of the content.
        digest: Digest,
    },
}

/// A digest of a range of a disk, with a key that only the two sides have. The guest chooses what is
/// on its disks, but it cannot choose two contents with the same digest.
pub type Digest = [u8; DIGEST_BYTES];
/// Length of a [`Digest`].
pub const DIGEST_BYTES: usize = 16;

impl DiskWrite {
    /// How many bytes of the disk it changes or checks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.what {
            What::Data(data) => data.len() as u64,
            What::Zero { bytes } | What::Discard { bytes } | What::Check { bytes, .. } => *bytes,
        }
    }

    /// How much memory it takes: its data and the value itself.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let data = match &self.what {
            What::Data(data) => data.len(),
            What::Zero { .. } | What::Discard { .. } | What::Check { .. } => 0,
        };
        (data + std::mem::size_of::<Self>()) as u64
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_check(&self) -> bool {
        matches!(self.what, What::Check { .. })
    }

    /// The part of it that lies in `from..to` (bytes of the disk). Shares its data. A part of a check
    /// cannot be checked, so there is none.
    #[must_use]
    pub fn part(&self, from: u64, to: u64) -> Option<Self> {
        let (from, to) = (from.max(self.offset), to.min(self.offset + self.bytes()));
        if from >= to {
            return None;
        }
        let bytes = to - from;
        let what = match &self.what {
            What::Data(data) => {
                let at = (from - self.offset) as usize;
                What::Data(data.slice(at..at + bytes as usize))
            }
            What::Zero { .. } => What::Zero { bytes },
            What::Discard { .. } => What::Discard { bytes },
            What::Check { .. } if bytes == self.bytes() => self.what.clone(),
            What::Check { .. } => return None,
        };
        Some(Self {
            disk: self.disk,
            offset: from,
            what,
        })
    }
}

#[cfg(test)]
mod tests;
