//! The side that runs the guest: what its devices write, and what a backup gets of it.
//!
//! ```text
//!  Disk (device) ── write ──► image, and log ── seal ──► shipped
//!                └─ shared ──► overlay ── seal, release ──► image     (releaser's thread)
//! ```

mod device;
pub(super) mod log;
pub(super) mod overlay;
mod release;
mod sync;
mod write_log;

pub use device::Disk;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use release::Releaser;
use write_log::WriteLog;

use super::image::Drives;
use super::{Callback, Completion, DiskError, DiskLimits};
use crate::ids::EpochId;

/// What the side that runs the guest does with its disks. Clones are the same disks.
///
/// For each backup: [`begin_sync`](Self::begin_sync), [`sync_some`](Self::sync_some) until nothing is left,
/// and [`hold`](Self::hold) and [`seal`](Self::seal) at each capture. Whoever runs the guest has called
/// [`DiskSet::claim_images`](super::DiskSet::claim_images) or
/// [`BackupDisks::promote`](super::BackupDisks::promote) before.
#[derive(Clone)]
pub struct PrimaryDisks(Arc<PrimaryState>);

/// What the clones of a handle have in common.
struct PrimaryState {
    drives: Drives,
    log: Arc<WriteLog>,
    limits: DiskLimits,
    releaser: Releaser,
    /// Synchronisations begun.
    sessions: AtomicU64,
}

impl PrimaryDisks {
    pub(super) fn new(drives: Drives, limits: DiskLimits) -> Self {
        let log = Arc::new(WriteLog::new(drives.len(), limits.log_bytes_max));
        Self(Arc::new(PrimaryState {
            releaser: Releaser::new(drives.clone(), log.clone(), limits.log_bytes_max / 4),
            drives,
            log,
            limits,
            sessions: AtomicU64::new(0),
        }))
    }

    /// The disks for their devices.
    pub(super) fn devices(&self) -> Vec<Disk> {
        let drives = self.0.drives.iter().cloned();
        drives
            .map(|drive| Disk::new(drive, self.0.log.clone()))
            .collect()
    }

    /// Whether there is none: then every call does nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.drives.is_empty()
    }

    /// Their names, in configuration order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.drives.iter().map(|drive| drive.name.as_str())
    }

    /// Writes in memory, logged or held, in bytes.
    pub(super) fn log_bytes(&self) -> u64 {
        self.0.log.lock().bytes()
    }

    /// What the synchronisation has still to copy, in bytes.
    #[must_use]
    pub fn copy_bytes_left(&self) -> u64 {
        self.0.log.lock().copy_left()
    }

    fn is_holding(&self) -> bool {
        self.0.log.lock().held.is_holding()
    }

    /// From now on writes of shared disks are held; what was written before is made durable. The guest is
    /// paused. Calling it again does nothing.
    ///
    /// # Errors
    /// If a shared image cannot be flushed; nothing is held then.
    pub fn hold(&self) -> Result<(), DiskError> {
        if self.is_holding() {
            return Ok(());
        }
        self.flush_shared()?;
        self.0.log.lock().held.hold();
        Ok(())
    }

    /// The epoch was sealed, but will never be shipped: its writes are part of the next one.
    pub fn unseal(&self, epoch: EpochId) {
        self.0.log.with_log(|log| log.unseal(epoch));
    }

    /// Everything up to `epoch` has been handed to the link: its log may be freed.
    pub fn shipped(&self, epoch: EpochId) {
        self.0.log.with_log(|log| log.shipped(epoch));
    }

    /// Who is told, once an epoch, that the log is half full: the epoch should end soon.
    pub fn set_listener(&self, listener: Callback) {
        self.0.log.set_listener(listener);
    }

    /// The backup has `epoch`: held writes of shared disks up to it go to the image, and are made durable
    /// if the guest asked for it. On another thread; `done` is told at the end, at once if there is
    /// nothing to do. After an error the writes are still held, and the next release tries again.
    pub fn release(&self, epoch: EpochId, done: Completion) {
        if self.is_holding() {
            self.0.releaser.release(epoch, done);
        } else {
            done(Ok(()));
        }
    }

    /// The backup has all epochs up to `epoch` on its images for good.
    pub fn durable(&self, epoch: EpochId) {
        if epoch.0 > 0 && self.0.drives.iter().any(|drive| drive.map.is_some()) {
            self.0.releaser.durable(epoch);
        }
    }

    /// There is no backup any more: nothing is logged from now on. Held writes stay held.
    pub fn detach(&self) {
        self.0.log.with_log(|log| log.end());
    }

    /// This side runs alone under a grant: detaches, brings what is held to the images (on another
    /// thread), and then lets writes pass at once. `done` is told at the end, at once if nothing is held;
    /// after an error the writes are still held, and it may be called again.
    pub fn go_alone(&self, done: Completion) {
        self.detach();
        if self.is_holding() {
            self.0.releaser.go_alone(done);
        } else {
            done(Ok(()));
        }
    }

    /// Another side runs the guest: what is held is dropped, and every call of a [`Disk`] fails from
    /// now on.
    pub fn shut(&self) {
        self.0.log.with_log(|log| {
            log.shut = true;
            log.held.let_go();
            log.end();
        });
    }
}
