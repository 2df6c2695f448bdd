//! What replication asks of a machine's writable disks. [`DiskSet`](crate::disk::DiskSet) keeps them in files
//! and block devices; [`NoDisks`] is what a machine has that has none.
//!
//! # Contract
//!
//! Threads are called as in the [table of machines](super#contract). *Disks* is a standby's `disks` thread, a
//! plain one that may block. A set has one role at a time: what a backup has promoted, or a primary has
//! claimed, is the primary's.
//!
//! | method | thread | order |
//! | --- | --- | --- |
//! | [`check_whole`](Disks::check_whole), [`claim_images`](Disks::claim_images) | primary: caller | before and after the arbiter's grant, before the guest runs |
//! | [`begin_sync`](PrimaryDisks::begin_sync), [`sync_some`](PrimaryDisks::sync_some) | capture | for each backup, until nothing is left |
//! | [`hold`](PrimaryDisks::hold), then [`seal`](PrimaryDisks::seal) | capture, the guest paused | once an epoch |
//! | [`shipped`](PrimaryDisks::shipped) | capture | after `seal` |
//! | [`detach`](PrimaryDisks::detach), [`go_alone`](PrimaryDisks::go_alone) | capture | when the backup is lost; when the arbiter has granted that this side runs alone |
//! | [`release`](PrimaryDisks::release), [`durable`](PrimaryDisks::durable), [`shut`](PrimaryDisks::shut) | driver, in tokio: must not block | once the backup has the epoch; when another side runs the guest |
//! | [`describe`](BackupDisks::describe), [`begin_copy`](BackupDisks::begin_copy), [`apply_sync`](BackupDisks::apply_sync) | disks | for each primary |
//! | [`persist`](BackupDisks::persist) | disks | for each epoch, the next one after `done` of this one |
//! | [`committed`](BackupDisks::committed), [`durable_epoch`](BackupDisks::durable_epoch) | driver, in tokio: must not block | for each epoch |
//! | [`promote`](BackupDisks::promote) or [`abandon`](BackupDisks::abandon) | driver, not in tokio; disks | last |

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::DiskError;
use crate::core::disk::{DiskSyncPlan, DiskWrite, PeerDisk};
use crate::ids::{EpochId, Generation};

/// Is told that something may go on. It is called from threads of the disks, and must not call them.
pub type Callback = Arc<dyn Fn() + Send + Sync>;
/// Is told how something ended, once, possibly before the call that got it returns.
pub type Completion = Box<dyn FnOnce(Result<(), DiskError>) + Send>;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// `replicated`: each host has an image; `shared`: there is one.
    pub mode: String,
    /// Its size.
    pub bytes: u64,
}

/// What the disks of a machine keep for the other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Writes in memory on the side that runs the guest, in bytes.
    pub log_bytes: u64,
    /// What the synchronisation has still to copy, in bytes.
    pub copy_bytes_left: u64,
    /// What the backup's journal holds, in bytes.
    pub journal_bytes: u64,
    /// Writes of shared disks in the backup's memory, in bytes.
    pub backup_held_bytes: u64,
    /// Blocks that are marked in the maps, in bytes.
    pub marked_bytes: u64,
}

/// What a synchronisation will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncPlan {
    /// For each disk, in order.
    pub disks: Vec<DiskSyncPlan>,
    /// How much will be copied, beside what the guest writes meanwhile.
    pub bytes: u64,
}

/// A piece of a synchronisation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncStep {
    /// To be sent, in order.
    pub writes: Vec<DiskWrite>,
    /// What is left after them.
    pub bytes_left: u64,
}

/// The disk writes of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealedDisks {
    /// In the order in which the guest did them.
    pub writes: Vec<DiskWrite>,
    /// The guest flushed: the backup may acknowledge the epoch only once it has it durably.
    pub flush: bool,
    /// Shared images durably have the writes of all epochs up to this one: the backup may forget them.
    pub written_through: EpochId,
}

/// The writable disks of a machine, whichever role it has.
pub trait Disks: Send + Sync {
    /// The disks, in configuration order: a disk's number is its place here. Never changes.
    fn list(&self) -> Vec<DiskStatus>;

    /// Whether some have an image of their own on each host.
    fn has_replicated(&self) -> bool;

    /// Whether a guest may be run from the images, as far as can be known.
    ///
    /// # Errors
    /// If one is an unfinished copy, or it cannot be told whether it is.
    fn check_whole(&self) -> Result<(), DiskError>;

    /// This host runs the guest from now on: locks shared images, and brings to the images what was left
    /// over of an earlier copy. May wait for the host's storage.
    ///
    /// # Errors
    /// If an image is an unfinished copy, a shared one is in use, or the host's storage fails.
    fn claim_images(&self) -> Result<(), DiskError>;

    /// What is kept for the other side now.
    fn counts(&self) -> DiskCounts;

    /// What the side that runs the guest does with them.
    fn primary(&self) -> Arc<dyn PrimaryDisks>;

    /// What the side that keeps the copy does with them.
    fn backup(&self) -> Arc<dyn BackupDisks>;
}

/// What the side that runs the guest does with its disks.
pub trait PrimaryDisks: Send + Sync {
    /// Their names, in configuration order.
    fn names(&self) -> Vec<String>;

    /// Whether there is none: then every call does nothing.
    fn is_empty(&self) -> bool {
        self.names().is_empty()
    }

    /// What the synchronisation has still to copy, in bytes.
    fn copy_bytes_left(&self) -> u64;

    /// Who is told, once an epoch, that the log is half full: the epoch should end soon.
    fn set_listener(&self, listener: Callback);

    /// Begins to bring a backup's images up to date, the guest running; from now on writes are logged.
    /// May wait for the host's storage.
    ///
    /// # Errors
    /// If the backup's disks are not these, or a map cannot be written.
    fn begin_sync(&self, peer: &[PeerDisk]) -> Result<SyncPlan, DiskError>;

    /// The next piece of the synchronisation: what the guest has written meanwhile, then some more
    /// blocks. Once none is left it only gives what the guest has written.
    ///
    /// # Errors
    /// If an image cannot be read.
    fn sync_some(&self) -> Result<SyncStep, DiskError>;

    /// From now on writes of shared disks are held; what was written before is made durable. Calling it
    /// again does nothing.
    ///
    /// # Errors
    /// If a shared image cannot be flushed; nothing is held then.
    fn hold(&self) -> Result<(), DiskError>;

    /// Ends an epoch: all that was written since the last one is its.
    ///
    /// # Errors
    /// If blocks are left to be synchronised; nothing has changed then.
    fn seal(&self, epoch: EpochId) -> Result<SealedDisks, DiskError>;

    /// Everything up to `epoch` has been handed to the link: its log may be freed.
    fn shipped(&self, epoch: EpochId);

    /// The backup has `epoch`: held writes of shared disks up to it go to the image, and are made durable
    /// if the guest asked for it. On another thread; `done` is told at the end, at once if there is
    /// nothing to do. After an error the writes are still held, and the next release tries again.
    fn release(&self, epoch: EpochId, done: Completion);

    /// The backup has all epochs up to `epoch` on its images for good.
    fn durable(&self, epoch: EpochId);

    /// There is no backup any more: nothing is logged from now on. Held writes stay held.
    fn detach(&self);

    /// This side runs alone under a grant: detaches, brings what is held to the images (on another
    /// thread), and then lets writes pass at once. `done` is told at the end, at once if nothing is held;
    /// after an error the writes are still held, and it may be called again.
    fn go_alone(&self, done: Completion);

    /// Another side runs the guest: what is held is dropped, and every request of the guest fails from
    /// now on.
    fn shut(&self);
}

/// An epoch's disk writes, to be kept by a backup.
pub struct EpochToPersist {
    /// Under which generation.
    pub generation: Generation,
    /// Which epoch.
    pub epoch: EpochId,
    /// The writes, as they were received.
    pub batches: Vec<Bytes>,
    /// Whether they must survive a loss of power before the epoch is acknowledged.
    pub flush: bool,
    /// See [`SealedDisks::written_through`].
    pub written_through: EpochId,
}

/// What a backup does with its disks.
pub trait BackupDisks: Send + Sync {
    /// What the primary must know of these disks. Waits until an abandoned journal is on the images. The primary
    /// owns its disks already, so its locks of shared images must be seen here.
    ///
    /// # Errors
    /// If the journal cannot be brought to the images, a map cannot be read, or a shared image is not locked:
    /// then it is not the primary's, or its lock would not keep the two apart.
    fn describe(&self) -> Result<Vec<PeerDisk>, DiskError>;

    /// The primary begins to bring these images up to date: they are unfinished copies from now on,
    /// durably.
    ///
    /// # Errors
    /// If the plan is not one for these disks, or a map cannot be written.
    fn begin_copy(&self, plan: &[DiskSyncPlan]) -> Result<(), DiskError>;

    /// A batch of the synchronisation: written to the images at once.
    ///
    /// # Errors
    /// If it is malformed, or the host's storage fails.
    fn apply_sync(&self, batch: &Bytes) -> Result<(), DiskError>;

    /// Keeps the disk writes of a whole epoch, on another thread. `done` is told at the end, and only then the
    /// epoch may be acknowledged. Called for epochs that have batches or `flush`.
    fn persist(&self, epoch: EpochToPersist, done: Completion);

    /// Memory stands at `epoch`, or will for certain: the images may too. Called for every epoch, with
    /// or without disk writes, at the latest when it is acknowledged.
    fn committed(&self, epoch: EpochId);

    /// The images have all epochs up to this one for good. Epoch 0 until the copy is whole.
    fn durable_epoch(&self) -> EpochId;

    /// Brings the images to exactly `epoch`, which is committed in memory, and owns them from now on. What has
    /// arrived of later epochs is dropped. Waits for the lock of shared images as long as it takes,
    /// and calls `waiting` with what it waits for, repeatedly; it says whether to wait on.
    ///
    /// # Errors
    /// If the host's storage fails, the images are at another epoch already, or a lock was not waited for. The guest
    /// must not be run then.
    fn promote(
        &self,
        epoch: EpochId,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), DiskError>;

    /// The copy is given up. What has been acknowledged is still brought to the images.
    fn abandon(&self);
}

/// What a machine has that has no writable disks.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDisks;

impl NoDisks {
    fn only_none(disks: usize) -> Result<(), DiskError> {
        if disks == 0 {
            return Ok(());
        }
        Err(DiskError::PeerDiffers {
            what: format!("it has {disks} disks, here are none"),
        })
    }
}

impl Disks for NoDisks {
    fn list(&self) -> Vec<DiskStatus> {
        Vec::new()
    }

    fn has_replicated(&self) -> bool {
        false
    }

    fn check_whole(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn claim_images(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn counts(&self) -> DiskCounts {
        DiskCounts::default()
    }

    fn primary(&self) -> Arc<dyn PrimaryDisks> {
        Arc::new(Self)
    }

    fn backup(&self) -> Arc<dyn BackupDisks> {
        Arc::new(Self)
    }
}

impl PrimaryDisks for NoDisks {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn copy_bytes_left(&self) -> u64 {
        0
    }

    fn set_listener(&self, _listener: Callback) {}

    fn begin_sync(&self, peer: &[PeerDisk]) -> Result<SyncPlan, DiskError> {
        Self::only_none(peer.len()).map(|()| SyncPlan {
            disks: Vec::new(),
            bytes: 0,
        })
    }

    fn sync_some(&self) -> Result<SyncStep, DiskError> {
        Ok(SyncStep::default())
    }

    fn hold(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn seal(&self, _epoch: EpochId) -> Result<SealedDisks, DiskError> {
        Ok(SealedDisks::default())
    }

    fn shipped(&self, _epoch: EpochId) {}

    fn release(&self, _epoch: EpochId, done: Completion) {
        done(Ok(()));
    }

    fn durable(&self, _epoch: EpochId) {}

    fn detach(&self) {}

    fn go_alone(&self, done: Completion) {
        done(Ok(()));
    }

    fn shut(&self) {}
}

impl BackupDisks for NoDisks {
    fn describe(&self) -> Result<Vec<PeerDisk>, DiskError> {
        Ok(Vec::new())
    }

    fn begin_copy(&self, plan: &[DiskSyncPlan]) -> Result<(), DiskError> {
        Self::only_none(plan.len())
    }

    fn apply_sync(&self, _batch: &Bytes) -> Result<(), DiskError> {
        Self::only_none(1)
    }

    fn persist(&self, epoch: EpochToPersist, done: Completion) {
        done(Self::only_none(epoch.batches.len()));
    }

    fn committed(&self, _epoch: EpochId) {}

    fn durable_epoch(&self) -> EpochId {
        EpochId(0)
    }

    fn promote(
        &self,
        _epoch: EpochId,
        _waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), DiskError> {
        Ok(())
    }

    fn abandon(&self) {}
}
