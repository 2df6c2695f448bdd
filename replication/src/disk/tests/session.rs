//! Two hosts with their sets of disks, and the epochs that go from one to the other.

use super::host::*;
use crate::core::disk::DiskWrite;
use crate::disk::{DiskError, DiskLimits, DiskMode, DiskSet};
use crate::ids::{EpochId, Generation};
use crate::ports::disks::EpochToPersist;
pub(super) use crate::ports::disks::SealedDisks;
pub(super) use crate::ports::{Disks, PrimaryDisks};

/// Two hosts with a set each of which `a`'s is to run the guest: with these disks, all of them of so many bytes.
pub(super) struct Setup {
    pub(super) modes: &'static [DiskMode],
    pub(super) bytes: u64,
    /// Of the primary's set and of the backup's.
    pub(super) limits: [DiskLimits; 2],
    pub(super) seed: u64,
}

impl Setup {
    pub(super) fn new(modes: &'static [DiskMode], bytes: u64, seed: u64) -> Self {
        Self {
            modes,
            bytes,
            limits: [limits(), limits()],
            seed,
        }
    }

    /// The hosts, and the sets, of which the first one owns its images. Shared images are the same on both hosts,
    /// others are not alike.
    pub(super) fn sets(self) -> (Host, Host, DiskSet, DiskSet) {
        let mut random = seeded(self.seed);
        let a = Host::new("a");
        let b = if self.modes.contains(&DiskMode::Shared) {
            a.as_user("b")
        } else {
            Host::new("b")
        };
        for host in [&a, &b] {
            for number in 0..self.modes.len() {
                host.make_image(&format!("disk{number}"), self.bytes, &mut random);
            }
        }
        let (primary, backup) = (
            a.open(self.modes, self.limits[0]),
            b.open(self.modes, self.limits[1]),
        );
        primary.claim_images().unwrap();
        (a, b, primary, backup)
    }

    /// As [`Setup::sets`], and the backup has epoch 1, durably on both sides.
    pub(super) fn protected(self) -> (Host, Host, DiskSet, DiskSet, Session) {
        let (a, b, primary, backup) = self.sets();
        let session = Session::protect(&primary, &backup, 1);
        (a, b, primary, backup, session)
    }
}

/// A primary's and a backup's set, with the epochs that go from one to the other.
pub(super) struct Session {
    pub(super) primary: DiskSet,
    pub(super) backup: DiskSet,
    pub(super) generation: u64,
    pub(super) epoch: u64,
    pub(super) sent_bytes: u64,
    /// For each disk: whether nothing was known of the backup's image.
    pub(super) full: Vec<bool>,
    /// For each disk: whether it was compared.
    pub(super) compared: Vec<bool>,
    /// As the last epoch says.
    pub(super) written_through: EpochId,
}

impl Session {
    /// Begins to bring the backup up to date.
    pub(super) fn begin(primary: &DiskSet, backup: &DiskSet, generation: u64) -> Self {
        let plan = primary
            .primary()
            .begin_sync(&backup.backup().describe().unwrap())
            .unwrap();
        backup.backup().begin_copy(&plan.disks).unwrap();
        Self {
            primary: primary.clone(),
            backup: backup.clone(),
            generation,
            epoch: 0,
            sent_bytes: 0,
            full: plan.disks.iter().map(|disk| disk.full).collect(),
            compared: plan.compared,
            written_through: EpochId(0),
        }
    }

    /// One step of the synchronisation; what is left.
    pub(super) fn sync_step(&mut self) -> u64 {
        let step = self.primary.primary().sync_some().unwrap();
        for batch in batches(&step.writes) {
            self.sent_bytes += batch.len() as u64;
            self.backup.backup().apply_sync(&batch).unwrap();
        }
        self.answer();
        step.bytes_left
    }

    /// Brings the backup's answers to the primary.
    pub(super) fn answer(&self) {
        let differ = self.backup.backup().take_compared(usize::MAX);
        self.primary.primary().compared(&differ).unwrap();
    }

    pub(super) fn sync(&mut self) {
        while self.sync_step() > 0 {}
    }

    /// Ends an epoch and ships it; it is acknowledged when this returns.
    pub(super) fn epoch(&mut self) -> EpochId {
        let epoch = self.ship();
        self.backup.backup().committed(epoch);
        self.primary
            .primary()
            .durable(self.backup.backup().durable_epoch());
        self.answer();
        epoch
    }

    /// Ends an epoch and has it persisted, but not committed.
    pub(super) fn ship(&mut self) -> EpochId {
        self.epoch += 1;
        let epoch = EpochId(self.epoch);
        self.primary.primary().hold().unwrap();
        let sealed = self.primary.primary().seal(epoch).unwrap();
        let bytes = batches(&sealed.writes)
            .iter()
            .map(|b| b.len() as u64)
            .sum::<u64>();
        self.sent_bytes += bytes;
        self.written_through = sealed.written_through;
        if bytes > 0 || sealed.flush {
            persist(&self.backup, self.generation, epoch, sealed).unwrap();
        }
        self.primary.primary().shipped(epoch);
        epoch
    }

    /// Waits until the backup's images have all epochs, and tells the primary.
    pub(super) fn settle(&mut self) {
        until("the images have the last epoch", || {
            self.backup.backup().durable_epoch() == EpochId(self.epoch)
        });
        self.primary.primary().durable(EpochId(self.epoch));
    }

    /// Brings the backup to epoch 1, durably on both sides.
    pub(super) fn protect(primary: &DiskSet, backup: &DiskSet, generation: u64) -> Self {
        let mut session = Self::begin(primary, backup, generation);
        session.sync();
        session.epoch();
        session.settle();
        session
    }
}

/// Has a backup persist an epoch, durably if the guest flushed, and gives what it says.
pub(super) fn persist(
    backup: &DiskSet,
    generation: u64,
    epoch: EpochId,
    sealed: SealedDisks,
) -> Result<(), DiskError> {
    let (told, persisted) = done();
    let epoch = EpochToPersist {
        generation: Generation(generation),
        epoch,
        batches: batches(&sealed.writes),
        written_through: sealed.written_through,
    };
    let number = epoch.epoch;
    backup.backup().persist(epoch, told);
    persisted.recv_timeout(DEADLINE).unwrap()?;
    match sealed.flush {
        true => flush(backup, number),
        false => Ok(()),
    }
}

/// Has a backup make its journal durable, and gives what it says.
pub(super) fn flush(backup: &DiskSet, epoch: EpochId) -> Result<(), DiskError> {
    let (told, flushed) = done();
    backup.backup().flush(epoch, told);
    flushed.recv_timeout(DEADLINE).unwrap()
}

/// What an epoch of these writes alone is.
pub(super) fn only(writes: impl Into<Vec<DiskWrite>>) -> SealedDisks {
    SealedDisks {
        writes: writes.into(),
        ..SealedDisks::default()
    }
}
