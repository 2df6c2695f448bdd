//! The primary: what its devices write, and what a backup gets of it.
//!
//! ```text
//!  Disk (device) ── write ──► image, and log ── seal ──► shipped
//!                └─ shared ──► overlay ── seal, release ──► image     (releaser's thread)
//! ```

pub(super) mod checks;
mod device;
pub(super) mod log;
mod marks;
pub(super) mod overlay;
mod release;
mod sync;
mod verify;
mod write_log;

pub use device::{Disk, GuestFlush};
pub(super) use verify::ANSWER_PATIENCE;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use log::Log;
use marks::Marks;
use parking_lot::Mutex;
use release::Releaser;
use write_log::WriteLog;

use super::image::{Drives, all_turns, shared};
use super::{DiskError, DiskLimits};
use crate::core::disk::PeerDisk;
use crate::ids::EpochId;
use crate::ports::PrimaryDisks;
use crate::ports::disks::{Callback, Completion, SealedDisks, SyncPlan, SyncStep};

/// What a primary does with its images.
pub(super) struct PrimaryImages {
    drives: Drives,
    log: Arc<WriteLog>,
    limits: DiskLimits,
    releaser: Releaser,
    marks: Marks,
    /// The number of the next synchronisation. 0 stands for none.
    next_session: AtomicU64,
    /// Held while the images are compared with the backup's.
    verifying: Mutex<()>,
}

impl PrimaryImages {
    pub(super) fn new(drives: Drives, limits: DiskLimits) -> Self {
        let log = Arc::new(WriteLog::new(drives.len(), limits.log_bytes_max));
        Self {
            releaser: Releaser::new(drives.clone(), log.clone(), limits.log_bytes_max / 4),
            marks: Marks::new(drives.clone()),
            drives,
            log,
            limits,
            next_session: AtomicU64::new(1),
            verifying: Mutex::new(()),
        }
    }

    /// The disks for their devices.
    pub(super) fn devices(&self) -> Vec<Disk> {
        let drives = self.drives.iter().cloned();
        drives
            .map(|drive| Disk::new(drive, self.log.clone()))
            .collect()
    }

    /// Writes in memory, logged or held, in bytes.
    pub(super) fn log_bytes(&self) -> u64 {
        self.log.lock().bytes()
    }

    fn is_holding(&self) -> bool {
        self.log.lock().held.is_holding()
    }
}

impl PrimaryDisks for PrimaryImages {
    fn names(&self) -> Vec<String> {
        self.drives.iter().map(|drive| drive.name.clone()).collect()
    }

    fn copy_bytes_left(&self) -> u64 {
        self.log.lock().copy_left()
    }

    fn compared(&self, differ: &[bool]) -> Result<(), DiskError> {
        if self.log.answered(differ) {
            return Ok(());
        }
        Err(DiskError::PeerDiffers {
            what: format!(
                "{} checks are said to be done, fewer are open",
                differ.len()
            ),
        })
    }

    fn set_listener(&self, listener: Callback) {
        self.log.set_listener(listener);
    }

    fn set_flush_listener(&self, listener: Callback) {
        self.log.set_flush_listener(listener);
    }

    fn flush_waits(&self) -> bool {
        self.log.lock().flush_waits()
    }

    fn begin_sync(&self, peer: &[PeerDisk]) -> Result<SyncPlan, DiskError> {
        self.begin(peer)
    }

    fn sync_some(&self) -> Result<SyncStep, DiskError> {
        self.next_step()
    }

    fn hold(&self) -> Result<(), DiskError> {
        if self.is_holding() {
            return Ok(());
        }
        // Most of it while the guest writes on, the rest while its writes must wait: what passed is on the image
        // durably, and everything else is held.
        self.flush_shared()?;
        let _turns = all_turns(shared(&self.drives));
        self.flush_shared()?;
        self.log.lock().held.hold();
        Ok(())
    }

    fn seal(&self, epoch: EpochId) -> Result<SealedDisks, DiskError> {
        self.end_epoch(epoch)
    }

    fn shipped(&self, epoch: EpochId) {
        self.log.with_log(|log| log.shipped(epoch));
    }

    fn release(&self, epoch: EpochId, done: Completion) {
        if self.is_holding() {
            self.releaser.release(epoch, done);
        } else {
            done(Ok(()));
        }
    }

    fn flushed(&self, epoch: EpochId) {
        self.log.with_log(|log| log.backup_flushed(epoch));
    }

    fn durable(&self, epoch: EpochId) {
        if self.drives.iter().any(|drive| drive.map.is_some()) {
            self.marks.durable(epoch);
        }
    }

    fn detach(&self) {
        self.log.end();
    }

    fn go_alone(&self, done: Completion) {
        self.detach();
        self.log.with_log(Log::let_flushes_go);
        if self.is_holding() {
            self.releaser.go_alone(done);
        } else {
            done(Ok(()));
        }
    }

    fn shut(&self) {
        self.log.with_log(|log| {
            log.shut = true;
            log.held.let_go();
        });
        self.log.end();
    }
}
