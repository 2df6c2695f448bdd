//! What the guest has written and the backup does not have yet, or a shared image must not have yet.
//!
//! Bounded: [`Log::has_room`] says when devices must wait. What must not be done here: I/O.

use super::overlay::Held;
use crate::core::disk::DiskWrite;
use crate::disk::epoch_writes::EpochWrites;
use crate::disk::image::BitSet;
use crate::epoch_queue::{Bucket, EpochQueue};
use crate::ids::EpochId;

/// The blocks of a disk that are still to be copied.
pub(crate) struct ToCopy {
    pub(crate) blocks: BitSet,
    pub(crate) block_bytes: u64,
    pub(crate) disk_bytes: u64,
}

impl ToCopy {
    pub(crate) fn bytes_left(&self) -> u64 {
        self.blocks.count() * self.block_bytes
    }
}

/// The log of a set.
pub(crate) struct Log {
    bytes_max: u64,
    /// There is a backup, or will be.
    logging: bool,
    /// Writes that are not shipped. Only writes to replicated disks count here; the others count as
    /// held.
    epochs: EpochQueue<EpochWrites>,
    /// For each disk of the set.
    pub(crate) to_copy: Vec<Option<ToCopy>>,
    /// Writes of shared disks that are not on the image.
    pub(crate) held: Held,
    pub(crate) shut: bool,
    /// The listener was told in this epoch.
    told: bool,
    /// A device was told that there is no room.
    waiting: bool,
}

impl Log {
    pub(crate) fn new(disks: usize, bytes_max: u64) -> Self {
        Self {
            bytes_max,
            logging: false,
            epochs: EpochQueue::default(),
            to_copy: (0..disks).map(|_| None).collect(),
            held: Held::new(disks),
            shut: false,
            told: false,
            waiting: false,
        }
    }

    pub(crate) fn is_logging(&self) -> bool {
        self.logging
    }

    /// Memory in use.
    pub(crate) fn bytes(&self) -> u64 {
        self.epochs.bytes() + self.held.bytes()
    }

    pub(crate) fn has_room(&mut self) -> bool {
        let room = self.shut || self.bytes() < self.bytes_max;
        self.waiting |= !room;
        room
    }

    /// Whether the waiting devices must be told that there is room now.
    pub(crate) fn take_wakeup(&mut self) -> bool {
        let room = self.shut || self.bytes() < self.bytes_max;
        let wake = self.waiting && room;
        self.waiting &= !wake;
        wake
    }

    /// Whether the listener must be told that the log is half full.
    pub(crate) fn take_half_full(&mut self) -> bool {
        let active = self.logging || self.held.is_holding();
        let full = active && self.bytes() >= self.bytes_max / 2;
        let news = full && !self.told;
        self.told |= full;
        news
    }

    pub(crate) fn begin(&mut self, to_copy: Vec<Option<ToCopy>>) {
        self.end();
        self.to_copy = to_copy;
        self.logging = true;
        // Writes may be held from an earlier synchronisation. This backup has none of them.
        self.held.unseal(EpochId(0));
        let current = self.epochs.current_mut();
        let held = self.held.current().iter().cloned();
        held.for_each(|write| current.push_uncounted(write));
    }

    /// Nothing is logged from now on.
    pub(crate) fn end(&mut self) {
        self.logging = false;
        self.epochs = EpochQueue::default();
        self.to_copy.fill_with(|| None);
    }

    /// A replicated disk has been written. Parts that the copier still has to read are not logged:
    /// the copier will see them. (It takes a block off the set first and then reads it.)
    pub(crate) fn wrote(&mut self, write: DiskWrite) {
        if !self.logging {
            return;
        }
        let Some(to_copy) = &self.to_copy[usize::from(write.disk)] else {
            return self.push(write);
        };
        let block = to_copy.block_bytes;
        let end = write.offset + write.bytes();
        let (mut parts, mut from) = (Vec::new(), write.offset);
        // Block by block: a logged part must never follow a newer copy of the same block.
        for at in write.offset / block..end.div_ceil(block) {
            if to_copy.blocks.contains(at) {
                parts.extend(write.part(from, at * block));
                from = (at + 1) * block;
            }
        }
        parts.extend(write.part(from, end));
        parts.into_iter().for_each(|part| self.push(part));
    }

    fn push(&mut self, write: DiskWrite) {
        self.epochs.current_mut().push(write);
    }

    /// A shared disk is written while writes are held.
    pub(crate) fn hold_write(&mut self, write: DiskWrite) {
        self.held.push(write.clone());
        if self.logging {
            self.epochs.current_mut().push_uncounted(write);
        }
    }

    /// A replicated disk was flushed.
    pub(crate) fn flushed(&mut self) {
        self.epochs.current_mut().flush |= self.logging;
    }

    /// During synchronisation, takes what was written to replicated disks since the last call. Held
    /// writes of shared disks are left for the epoch that ends the synchronisation.
    pub(crate) fn drain(&mut self) -> Vec<DiskWrite> {
        self.told = false;
        let to_copy = &self.to_copy;
        let is_replicated = |disk: u16| to_copy[usize::from(disk)].is_some();
        self.epochs.current_mut().take_counted(is_replicated)
    }

    /// What the synchronisation still has to send, in bytes.
    pub(crate) fn bytes_left(&self) -> u64 {
        self.copy_left() + self.epochs.current().bytes()
    }

    /// What the synchronisation still has to copy, in bytes.
    pub(crate) fn copy_left(&self) -> u64 {
        self.to_copy.iter().flatten().map(ToCopy::bytes_left).sum()
    }

    /// Ends the epoch. Returns its writes, and whether the guest flushed.
    pub(crate) fn seal(&mut self, epoch: EpochId) -> (Vec<DiskWrite>, bool) {
        let current = self.epochs.current();
        let sealed = (current.writes.clone(), current.flush);
        self.held.seal(epoch);
        if self.logging {
            self.epochs.seal(epoch);
        }
        self.told = false;
        sealed
    }

    pub(crate) fn shipped(&mut self, epoch: EpochId) {
        self.epochs.release(epoch).for_each(drop);
    }
}
