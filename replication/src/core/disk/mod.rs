//! What the two sides say about disks: the writes of an epoch, and which images are a pair.
//!
//! A [`DiskWrite`] is a guest's change of a disk. A batch of them travels in one message and is
//! stored in the backup's journal exactly as it travelled. Must not be done here: using files or
//! threads, and trusting a peer's numbers.

mod batch;
mod pair;

pub use batch::{
    DISK_BATCH_BYTES_DEFAULT, DISK_BATCH_BYTES_MAX, DiskBatch, DiskBatchError, DiskBatchWriter,
    decode_batch,
};
pub use pair::{
    BLOCK_BYTES_MIN, BLOCKS_MAX, DiskSyncPlan, PairId, PeerDisk, block_bytes_for, blocks_of,
};

use bytes::Bytes;

/// Bytes of a sector. Offsets and lengths are multiples of it.
pub const SECTOR_BYTES: u64 = 512;

/// A change of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskWrite {
    /// Number of the disk, in configuration order.
    pub disk: u16,
    /// Where it begins, in bytes; a multiple of [`SECTOR_BYTES`].
    pub offset: u64,
    /// What is there from now on.
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
}

impl DiskWrite {
    /// How many bytes of the disk it changes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.what {
            What::Data(data) => data.len() as u64,
            What::Zero { bytes } | What::Discard { bytes } => *bytes,
        }
    }

    /// How much memory it takes: its data and the value itself.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let data = match &self.what {
            What::Data(data) => data.len(),
            What::Zero { .. } | What::Discard { .. } => 0,
        };
        (data + std::mem::size_of::<Self>()) as u64
    }

    /// The part of it that lies in `from..to` (bytes of the disk). Shares its data.
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
