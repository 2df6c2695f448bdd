//! The disk writes of one epoch. The log, the held writes of shared disks and the backup queue them.

use crate::core::disk::DiskWrite;
use crate::epoch_queue::Bucket;

/// The writes of one epoch, in the order in which the guest did them.
#[derive(Debug, Default)]
pub(super) struct EpochWrites {
    pub(super) writes: Vec<DiskWrite>,
    bytes: u64,
    /// The guest flushed.
    pub(super) flush: bool,
}

impl EpochWrites {
    pub(super) fn push(&mut self, write: DiskWrite) {
        self.bytes += write.memory_bytes();
        self.writes.push(write);
    }

    /// Appends a write whose memory is counted elsewhere.
    pub(super) fn push_uncounted(&mut self, write: DiskWrite) {
        self.writes.push(write);
    }

    /// Appends later writes.
    pub(super) fn append(&mut self, mut later: Self) {
        self.writes.append(&mut later.writes);
        self.bytes += later.bytes;
        self.flush |= later.flush;
    }

    /// Takes the writes of the disks that `is_taken` selects. These must include all counted
    /// writes.
    pub(super) fn take_counted(&mut self, is_taken: impl Fn(u16) -> bool) -> Vec<DiskWrite> {
        self.bytes = 0;
        let writes = std::mem::take(&mut self.writes).into_iter();
        let (taken, left) = writes.partition(|write| is_taken(write.disk));
        self.writes = left;
        taken
    }
}

impl Bucket for EpochWrites {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn is_empty(&self) -> bool {
        self.writes.is_empty() && !self.flush
    }
}
