//! What a host has of the replicated disk: an image and a journal, both behind a page cache. A sync
//! that fails drops what was written since the last one, as Linux does: it can be read for a while,
//! but no later sync, though it succeeds, brings it to the disk.

use std::collections::VecDeque;

use understudy_replication::ids::EpochId;

use super::disk::{Image, REPLICATED, SECTORS, Write};
use super::rng::Rng;

/// Survives processes; what survives a loss of power is decided then.
#[derive(Default, Clone)]
pub struct HostDisk {
    /// As the host reads it.
    pub image: Image,
    /// What has reached the disk.
    platter: Image,
    /// Written since the last sync.
    dirty: [bool; SECTORS],
    journal: VecDeque<Record>,
    /// The image has everything through this epoch of the present copy, for good.
    pub durable: EpochId,
    /// All that was copied before the first epoch is on the disk.
    pub whole: bool,
    /// A file could not be written or synced. Nothing more is taken before the next copy.
    pub failed: bool,
}

/// An epoch in the journal.
#[derive(Clone)]
struct Record {
    epoch: EpochId,
    writes: Vec<Write>,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    InCache,
    OnDisk,
    Dropped,
}

impl HostDisk {
    pub fn write(&mut self, sector: usize, value: u64) {
        self.image[sector] = value;
        self.dirty[sector] = true;
    }

    pub fn write_all<'a>(&mut self, writes: impl IntoIterator<Item = &'a Write>) {
        for write in writes.into_iter().filter(|it| it.disk == REPLICATED) {
            self.write(write.sector, write.value);
        }
    }

    pub fn append(&mut self, epoch: EpochId, writes: Vec<Write>) {
        let fate = Fate::InCache;
        self.journal.push_back(Record {
            epoch,
            writes,
            fate,
        });
    }

    /// What was appended later than `through` may be lost. Returns whether it works, as it was told.
    pub fn sync_journal(&mut self, through: EpochId, works: bool) -> bool {
        for record in self.journal.iter_mut().filter(|it| it.epoch <= through) {
            if record.fate == Fate::InCache {
                record.fate = if works { Fate::OnDisk } else { Fate::Dropped };
            }
        }
        self.failed |= !works;
        works
    }

    /// Returns whether it works, as it was told.
    pub fn sync_image(&mut self, works: bool, rng: &mut Rng) -> bool {
        for sector in 0..SECTORS {
            if !std::mem::take(&mut self.dirty[sector]) {
                continue;
            }
            if works {
                self.platter[sector] = self.image[sector];
            } else if rng.chance(500) {
                // The page has left the cache.
                self.image[sector] = self.platter[sector];
            }
        }
        self.failed |= !works;
        works
    }

    /// The last epoch in the journal.
    pub fn persisted(&self) -> Option<EpochId> {
        self.journal.back().map(|record| record.epoch)
    }

    /// Whether everything through `epoch` would survive a loss of power.
    pub fn is_safe(&self, epoch: EpochId) -> bool {
        let mut records = self.journal.iter();
        !self.whole || records.all(|it| it.fate == Fate::OnDisk || it.epoch > epoch)
    }

    /// Brings the image to `epoch`: first the journal is synced, last the image.
    pub fn destage(&mut self, epoch: EpochId, works: [bool; 2], rng: &mut Rng) -> bool {
        if !self.sync_journal(EpochId(u64::MAX), works[0]) {
            return false;
        }
        self.apply(epoch);
        if !self.sync_image(works[1], rng) {
            return false;
        }
        self.journal.retain(|record| record.epoch > epoch);
        self.durable = epoch;
        self.whole = true;
        true
    }

    fn apply(&mut self, epoch: EpochId) {
        let journal = std::mem::take(&mut self.journal);
        for record in journal.iter().filter(|record| record.epoch <= epoch) {
            self.write_all(&record.writes);
        }
        self.journal = journal;
    }

    /// The image as it would be at `epoch`.
    pub fn at(&self, epoch: EpochId) -> Image {
        let mut image = self.image;
        for record in self.journal.iter().filter(|record| record.epoch <= epoch) {
            super::disk::apply(&record.writes, REPLICATED, &mut image);
        }
        image
    }

    /// The copy is given up, or the host starts again: all of the journal goes to the image.
    pub fn recover(&mut self, rng: &mut Rng) {
        self.apply(EpochId(u64::MAX));
        self.sync_image(true, rng);
        self.journal.clear();
        self.durable = EpochId(0);
        self.whole = false;
        self.failed = false;
    }

    /// Later epochs than this one never were.
    pub fn cut(&mut self, epoch: EpochId) {
        self.journal.retain(|record| record.epoch <= epoch);
    }

    /// The host loses power. What was not synced may have reached the disk, or not; the journal ends
    /// where something is missing.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for sector in 0..SECTORS {
            let lucky = self.dirty[sector] && rng.chance(500);
            if !lucky {
                self.image[sector] = self.platter[sector];
            }
            self.platter[sector] = self.image[sector];
        }
        self.dirty = [false; SECTORS];
        let is_there = |record: &Record, rng: &mut Rng| match record.fate {
            Fate::OnDisk => true,
            Fate::InCache => rng.chance(500),
            Fate::Dropped => false,
        };
        let lost = (self.journal.iter()).position(|record| !is_there(record, rng));
        self.journal.truncate(lost.unwrap_or(self.journal.len()));
        for record in &mut self.journal {
            record.fate = Fate::OnDisk;
        }
    }
}
