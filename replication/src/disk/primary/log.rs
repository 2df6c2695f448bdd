//! What the guest has written and the backup does not have yet, or a shared image must not have yet.
//!
//! Bounded: [`Log::has_room`] says when devices must wait. What must not be done here: I/O.

use std::collections::VecDeque;

use super::checks::{Check, Checks, Pace};
use super::overlay::Held;
use crate::core::disk::{Digest, DiskWrite, What};
use crate::disk::digest::DigestKey;
use crate::disk::epoch_writes::EpochWrites;
use crate::disk::image::BitSet;
use crate::epoch_queue::{Bucket, EpochQueue};
use crate::ids::EpochId;

/// So many epochs with flushes are told apart. A flush in further ones waits for the last of them.
const UNFLUSHED_MAX: usize = 64;

/// The blocks of a disk that are still to be copied.
pub(crate) struct ToCopy {
    /// They are sent.
    pub(crate) blocks: BitSet,
    /// Nothing is known of these; they may be compared first. None of them is in `blocks`.
    pub(crate) unknown: BitSet,
    pub(crate) block_bytes: u64,
    pub(crate) disk_bytes: u64,
}

impl ToCopy {
    pub(crate) fn bytes_left(&self) -> u64 {
        (self.blocks.count() + self.unknown.count()) * self.block_bytes
    }

    /// Whether the copier still has to read the block.
    fn contains(&self, block: u64) -> bool {
        self.blocks.contains(block) || self.unknown.contains(block)
    }

    fn copy_again(&mut self, check: &Check) {
        let end = check.offset + check.bytes;
        self.blocks
            .insert(check.offset / self.block_bytes..end.div_ceil(self.block_bytes));
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
    /// For each disk of the set: a write that is under way, from before its blocks are marked until it is logged.
    under_way: Vec<Option<(u64, u64)>>,
    /// For each disk of the set.
    pub(crate) to_copy: Vec<Option<ToCopy>>,
    /// What the backup was asked to compare in this session: during the copy by the copier, later by whoever
    /// verifies the copy.
    pub(crate) checks: Checks,
    pub(super) pace: Pace,
    /// For each disk of the set, in this session.
    keys: Vec<DigestKey>,
    /// An epoch of this session has ended, so that the copy is whole once the backup has it.
    whole: bool,
    /// Counts sessions, also those that have ended.
    session: u64,
    /// A range that is being read. Whether it was written since.
    watched: Option<(Check, bool)>,
    /// Writes of shared disks that are not on the image.
    pub(crate) held: Held,
    /// Number of the last flush of the guest that began while there was a backup.
    flushes: u64,
    /// The backup holds durably what the flushes up to this one are to make safe.
    flushed: u64,
    /// Epochs with flushes that the backup may not hold durably, and the last flush in each.
    unflushed: VecDeque<(EpochId, u64)>,
    /// The guest is told of a flush only once the backup has its part.
    awaits_flushes: bool,
    /// A flush has begun, and a flush may be answered, since it was last looked at.
    flush_news: (bool, bool),
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
            under_way: vec![None; disks],
            to_copy: (0..disks).map(|_| None).collect(),
            checks: Checks::default(),
            pace: Pace::default(),
            keys: Vec::new(),
            whole: false,
            session: 0,
            watched: None,
            held: Held::new(disks),
            flushes: 0,
            flushed: 0,
            unflushed: VecDeque::new(),
            awaits_flushes: false,
            flush_news: (false, false),
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

    /// Whether others than devices may add to the log: devices need not end their epoch early because of it.
    pub(crate) fn bytes_are_few(&self) -> bool {
        self.bytes() < self.bytes_max / 4
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

    pub(crate) fn begin(&mut self, to_copy: Vec<Option<ToCopy>>, keys: Vec<DigestKey>) {
        self.end();
        self.to_copy = to_copy;
        self.keys = keys;
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
        self.whole = false;
        self.session += 1;
        self.epochs = EpochQueue::default();
        self.to_copy.fill_with(|| None);
        (self.checks, self.pace) = (Checks::default(), Pace::default());
        self.keys.clear();
        self.unflushed.clear();
    }

    /// The present session, if the backup's copy is whole in it.
    pub(crate) fn whole_session(&self) -> Option<u64> {
        (self.whole && !self.shut).then_some(self.session)
    }

    pub(crate) fn key(&self, disk: u16) -> Option<DigestKey> {
        self.keys.get(usize::from(disk)).cloned()
    }

    /// From now on, it is noted whether this range is written.
    pub(crate) fn watch(&mut self, range: Check) {
        self.watched = Some((range, false));
    }

    /// Whether the watched range was written.
    pub(crate) fn was_written(&mut self) -> bool {
        self.watched.take().is_none_or(|(_, written)| written)
    }

    /// Asks the backup to compare this range at this point of the stream of writes.
    pub(crate) fn ask(&mut self, check: Check, digest: Digest) {
        self.checks.ask(check);
        self.push(DiskWrite {
            disk: check.disk,
            offset: check.offset,
            what: What::Check {
                bytes: check.bytes,
                digest,
            },
        });
    }

    /// The backup's answers to the oldest checks. Returns whether there are so many.
    pub(crate) fn answered(&mut self, differ: &[bool]) -> bool {
        let Some(found) = self.checks.answer(differ) else {
            return false;
        };
        self.pace.answered(found);
        true
    }

    /// A step of the synchronisation begins: what the backup found to differ is to be sent. A write to it is not
    /// logged any more from here on, so what is logged must be drained before the copier reads it.
    pub(crate) fn begin_step(&mut self) -> Vec<DiskWrite> {
        if !self.whole {
            for check in self.checks.take_differing() {
                if let Some(to_copy) = &mut self.to_copy[usize::from(check.disk)] {
                    to_copy.copy_again(&check);
                }
            }
        }
        self.drain()
    }

    /// A write of so many bytes at `offset` begins. A disk has one at a time.
    pub(crate) fn begin_write(&mut self, disk: u16, offset: u64, bytes: u64) {
        self.under_way[usize::from(disk)] = Some((offset, bytes));
    }

    /// The write is over: if there is anything to log of it, that was done under the same lock.
    pub(crate) fn end_write(&mut self, disk: u16) {
        self.under_way[usize::from(disk)] = None;
    }

    /// Where a write is under way, whose epoch is not known yet, and of how many bytes.
    pub(crate) fn under_way(&self, disk: u16) -> Option<(u64, u64)> {
        self.under_way[usize::from(disk)]
    }

    /// A replicated disk has been written. Parts that the copier still has to read are not logged:
    /// the copier will see them. (It takes a block off the set first and then reads it.)
    pub(crate) fn wrote(&mut self, write: DiskWrite) {
        if let Some((range, written)) = &mut self.watched {
            let (from, to) = (range.offset, range.offset + range.bytes);
            *written |= range.disk == write.disk && write.part(from, to).is_some();
        }
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
            if to_copy.contains(at) {
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

    /// The guest begins to flush a replicated disk. Returns the number of this flush, or 0 if there is
    /// no backup to wait for.
    pub(crate) fn begin_flush(&mut self) -> u64 {
        if !self.logging && !self.awaits_flushes {
            return 0;
        }
        self.epochs.current_mut().flush |= self.logging;
        self.flushes += 1;
        self.flush_news.0 |= self.flush_waits();
        self.flushes
    }

    /// Whether a flush waits for the backup whose epoch has not ended.
    pub(crate) fn flush_waits(&self) -> bool {
        self.awaits_flushes && self.epochs.current().flush
    }

    /// Whether the guest may be told of this flush, as far as the backup is concerned.
    pub(crate) fn may_answer(&self, flush: u64) -> bool {
        !self.awaits_flushes || flush <= self.flushed
    }

    /// The backup holds everything up to `epoch` durably.
    pub(crate) fn backup_flushed(&mut self, epoch: EpochId) {
        while let Some((_, flush)) = self.unflushed.pop_front_if(|(of, _)| *of <= epoch) {
            self.flushed = flush;
            self.flush_news.1 = true;
        }
    }

    /// No backup is waited for any more.
    pub(crate) fn let_flushes_go(&mut self) {
        self.awaits_flushes = false;
        self.flush_news.1 = true;
    }

    /// Whether a flush has begun that waits for its epoch's end, and whether one may be answered, if
    /// that is news.
    pub(crate) fn take_flush_news(&mut self) -> (bool, bool) {
        std::mem::take(&mut self.flush_news)
    }

    /// During synchronisation, takes what was written to replicated disks since the last call. Held
    /// writes of shared disks are left for the epoch that ends the synchronisation.
    fn drain(&mut self) -> Vec<DiskWrite> {
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
        let blocks: u64 = self.to_copy.iter().flatten().map(ToCopy::bytes_left).sum();
        // After the copy, checks are another matter.
        let open = if self.whole {
            0
        } else {
            self.checks.open_bytes()
        };
        blocks + open
    }

    /// Ends the epoch. Returns its writes, and whether the guest flushed.
    pub(crate) fn seal(&mut self, epoch: EpochId) -> (Vec<DiskWrite>, bool) {
        // The first one always: it has the copy made safe, which may take long, before the guest waits for that. And what
        // the guest flushes when nobody is waited for may end when this backup is.
        let is_first = self.logging && !self.awaits_flushes;
        let has_copy = self.to_copy.iter().any(Option::is_some);
        let current = self.epochs.current();
        let sealed = (
            current.writes.clone(),
            current.flush || (is_first && has_copy),
        );
        self.held.seal(epoch);
        if self.logging {
            if self.flushes > self.flushed && sealed.1 {
                self.unflushed.truncate(UNFLUSHED_MAX - 1);
                self.unflushed.push_back((epoch, self.flushes));
            }
            self.epochs.seal(epoch);
            self.whole = true;
            self.awaits_flushes = true;
        }
        self.told = false;
        sealed
    }

    pub(crate) fn shipped(&mut self, epoch: EpochId) {
        self.epochs.release(epoch).for_each(drop);
    }
}
