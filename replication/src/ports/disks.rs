//! What replication asks of a machine's writable disks. [`DiskSet`](crate::disk::DiskSet) keeps them in files
//! and block devices. [`NoDisks`] is for a machine without writable disks.
//!
//! # Contract
//!
//! Threads have the same names as in the [table of machines](super#contract). *Disks* is a standby's `disks`
//! thread, a plain thread that may block. A set has one role at a time: once it was promoted or claimed, it is
//! the primary's.
//!
//! | method | thread | order |
//! | --- | --- | --- |
//! | [`check_whole`](Disks::check_whole), [`histories`](Disks::histories), then [`claim_images`](Disks::claim_images), [`note`](Disks::note) | caller | before and after the arbiter's grant, before the guest runs |
//! | [`begin_sync`](PrimaryDisks::begin_sync), [`sync_some`](PrimaryDisks::sync_some) | capture | for each backup, until nothing is left |
//! | [`hold`](PrimaryDisks::hold) | capture, the guest running | once an epoch, before it is captured |
//! | [`seal`](PrimaryDisks::seal) | capture, the guest paused: must not wait for storage | once an epoch |
//! | [`shipped`](PrimaryDisks::shipped) | capture | after `seal` |
//! | [`detach`](PrimaryDisks::detach), [`go_alone`](PrimaryDisks::go_alone) | capture | when the backup is lost; when the arbiter has granted this side to run alone |
//! | [`release`](PrimaryDisks::release), [`flushed`](PrimaryDisks::flushed), [`durable`](PrimaryDisks::durable), [`compared`](PrimaryDisks::compared), [`shut`](PrimaryDisks::shut) | driver, in tokio: must not block | once the backup has the epoch; when another side runs the guest |
//! | [`describe`](BackupDisks::describe), [`learn`](BackupDisks::learn), [`begin_copy`](BackupDisks::begin_copy), [`apply_sync`](BackupDisks::apply_sync) | disks | for each primary |
//! | [`persist`](BackupDisks::persist) | disks | for each epoch, the next one after `done` of this one |
//! | [`flush`](BackupDisks::flush) | disks | after `done` of an epoch, the next one after `done` of this one |
//! | [`committed`](BackupDisks::committed), [`durable_epoch`](BackupDisks::durable_epoch), [`take_compared`](BackupDisks::take_compared) | driver, in tokio: must not block | for each epoch |
//! | [`promote`](BackupDisks::promote) or [`abandon`](BackupDisks::abandon) | driver, not in tokio; disks | last |

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::DiskError;
use crate::arbiter::ArbiterId;
use crate::core::disk::{DiskSyncPlan, DiskWrite, PeerDisk};
use crate::ids::{EpochId, Generation};

/// Reports that something may go on. It is called on threads of the disks, and must not call the
/// disks.
pub type Callback = Arc<dyn Fn() + Send + Sync>;
/// Reports the result of an operation, once. It may be called before the call that received it
/// returns.
pub type Completion = Box<dyn FnOnce(Result<(), DiskError>) + Send>;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// `replicated`: each host has an image; `shared`: there is one.
    pub mode: String,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// What the disks of a machine keep for the other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Writes in memory on the side that runs the guest, in bytes.
    pub log_bytes: u64,
    /// What the synchronisation still has to copy, in bytes.
    pub copy_bytes_left: u64,
    /// What the backup's journal holds, in bytes.
    pub journal_bytes: u64,
    /// Writes of shared disks in the backup's memory, in bytes.
    pub backup_held_bytes: u64,
    /// Size of the blocks that are marked in the maps, in bytes.
    pub marked_bytes: u64,
}

/// What a synchronisation will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncPlan {
    /// For each disk, in order.
    pub disks: Vec<DiskSyncPlan>,
    /// For each disk: whether nothing is known of what is in the backup's image, so that it is compared, and only
    /// what differs is sent.
    pub compared: Vec<bool>,
    /// How much will be copied or compared, in bytes. What the guest writes meanwhile is not included.
    pub bytes: u64,
}

/// One step of a synchronisation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncStep {
    /// The writes to send, in order.
    pub writes: Vec<DiskWrite>,
    /// How much is left after them, in bytes.
    pub bytes_left: u64,
    /// How much was found equal on both sides so far, in bytes.
    pub bytes_equal: u64,
}

/// The disk writes of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealedDisks {
    /// The writes, in the order in which the guest did them.
    pub writes: Vec<DiskWrite>,
    /// The guest flushed: it waits until the backup holds the epoch durably
    /// ([`PrimaryDisks::flushed`]).
    pub flush: bool,
    /// Writes of all epochs up to this one are durable on the shared images. The backup may forget
    /// them.
    pub written_through: EpochId,
}

/// Who decides about the guest that disks belong to, as of its last start, copy or promotion on this
/// host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The arbiter.
    pub arbiter: ArbiterId,
    /// The generation that was in force.
    pub generation: Generation,
}

impl History {
    /// Longest identity of an arbiter that is kept, in bytes. Longer ones count by their beginning.
    pub const ARBITER_BYTES: usize = 64;

    /// Whether this arbiter decided about the guest.
    #[must_use]
    pub fn is_of(&self, arbiter: &ArbiterId) -> bool {
        // The last character may have been cut off as a whole.
        let kept = |id: &ArbiterId| {
            let bytes = id.0.as_bytes();
            bytes[..bytes.len().min(Self::ARBITER_BYTES - 3)].to_vec()
        };
        kept(&self.arbiter) == kept(arbiter)
    }
}

/// The writable disks of a machine, in either role.
pub trait Disks: Send + Sync {
    /// The disks, in configuration order: a disk's number is its place here. Never changes.
    fn list(&self) -> Vec<DiskStatus>;

    /// Whether some disks have an image on each host.
    fn has_replicated(&self) -> bool;

    /// Whether some disks have one image for both hosts.
    fn has_shared(&self) -> bool;

    /// Checks, as far as possible, that a guest may be run from the images.
    ///
    /// # Errors
    /// If an image is an unfinished copy, or its map is too damaged to tell.
    fn check_whole(&self) -> Result<(), DiskError>;

    /// What is kept beside the images of the guest's history, with the name of a disk for each.
    /// Nothing by default.
    fn histories(&self) -> Vec<(String, History)> {
        Vec::new()
    }

    /// This host runs the guest from now on. Applies to the images what was left over from an
    /// earlier copy, and locks shared images. May wait for the host's storage.
    ///
    /// # Errors
    /// If [`check_whole`](Self::check_whole) fails, a shared image is in use, or the host's storage
    /// fails.
    fn claim_images(&self) -> Result<(), DiskError>;

    /// Notes the guest's history beside the images, durably. Comes after
    /// [`claim_images`](Self::claim_images). Does nothing by default.
    ///
    /// # Errors
    /// If it cannot be written.
    fn note(&self, _history: &History) -> Result<(), DiskError> {
        Ok(())
    }

    /// What the disks keep for the other side now.
    fn counts(&self) -> DiskCounts;

    /// The disks in the primary's role.
    fn primary(&self) -> Arc<dyn PrimaryDisks>;

    /// The disks in the backup's role.
    fn backup(&self) -> Arc<dyn BackupDisks>;
}

/// What a primary does with its disks.
pub trait PrimaryDisks: Send + Sync {
    /// Their names, in configuration order.
    fn names(&self) -> Vec<String>;

    /// Whether there are no disks. Every call does nothing then.
    fn is_empty(&self) -> bool {
        self.names().is_empty()
    }

    /// What the synchronisation still has to copy or compare, in bytes.
    fn copy_bytes_left(&self) -> u64;

    /// The backup has done the next checks among the writes of this session ([`What::Check`](crate::core::disk::What)),
    /// in order: whether each found a difference.
    ///
    /// # Errors
    /// If fewer checks are open. The backup is not to be trusted then.
    fn compared(&self, differ: &[bool]) -> Result<(), DiskError>;

    /// Sets who is told, once per epoch, that the log is half full and the epoch should end soon.
    fn set_listener(&self, listener: Callback);

    /// Sets who is told that a flush of the guest waits for the backup, so that its epoch should end.
    /// Nobody by default.
    fn set_flush_listener(&self, _listener: Callback) {}

    /// Whether a flush of the guest waits for the backup whose epoch has not ended.
    fn flush_waits(&self) -> bool {
        false
    }

    /// Begins to bring a backup's images up to date while the guest runs. Writes are logged from
    /// now on. May wait for the host's storage.
    ///
    /// # Errors
    /// If the backup's disks differ from these, a map cannot be written, or an image cannot be
    /// flushed.
    fn begin_sync(&self, peer: &[PeerDisk]) -> Result<SyncPlan, DiskError>;

    /// The next step of the synchronisation: what the guest has written meanwhile, then some more
    /// blocks. Once no blocks are left, it returns only what the guest has written. While answers of the
    /// backup must come first, it waits for them a moment.
    ///
    /// # Errors
    /// If an image cannot be read, or a shared image cannot be flushed.
    fn sync_some(&self) -> Result<SyncStep, DiskError>;

    /// Makes earlier writes of shared disks durable and holds later ones. Calling it again does
    /// nothing. May wait for the host's storage.
    ///
    /// # Errors
    /// If a shared image cannot be flushed. Nothing is held then.
    fn hold(&self) -> Result<(), DiskError>;

    /// Ends an epoch. It gets everything that was written since the last one.
    ///
    /// # Errors
    /// If blocks are still to be synchronised. Nothing has changed then.
    fn seal(&self, epoch: EpochId) -> Result<SealedDisks, DiskError>;

    /// Everything up to `epoch` has been handed to the link. Its log may be freed.
    fn shipped(&self, epoch: EpochId);

    /// The backup has `epoch`. Another thread writes the held writes of shared disks up to it to
    /// the image, makes them durable if the guest asked for it, and calls `done` at the end. If
    /// holding is off, `done` is called at once. After an error the writes are still held, and the
    /// next release tries again.
    fn release(&self, epoch: EpochId, done: Completion);

    /// The backup holds the writes of all epochs up to `epoch` durably. From the first
    /// [`seal`](Self::seal) of a session until [`go_alone`](Self::go_alone), the guest is told of a
    /// flush only after that has been said of the epoch in which it flushed.
    fn flushed(&self, epoch: EpochId);

    /// All epochs up to `epoch` are durable on the backup's images.
    fn durable(&self, epoch: EpochId);

    /// There is no backup any more. Nothing is logged from now on. Held writes stay held.
    fn detach(&self);

    /// This side runs alone under a grant. Detaches, lets the guest know of its flushes, writes what is held to the images on another
    /// thread, and then lets writes pass at once. `done` is called at the end, or at once if writes
    /// are not held. After an error the writes are still held, and it may be called again.
    fn go_alone(&self, done: Completion);

    /// Another side runs the guest. Held writes are dropped, and every request of the guest fails
    /// from now on.
    fn shut(&self);
}

/// An epoch's disk writes for a backup to keep.
pub struct EpochToPersist {
    /// The generation in force.
    pub generation: Generation,
    /// The epoch.
    pub epoch: EpochId,
    /// The writes as received.
    pub batches: Vec<Bytes>,
    /// See [`SealedDisks::written_through`].
    pub written_through: EpochId,
}

/// What a backup does with its disks.
pub trait BackupDisks: Send + Sync {
    /// What the primary must know about these disks. Waits until an abandoned journal is on the
    /// images. The primary owns its disks already, so its locks on shared images must be visible
    /// here.
    ///
    /// # Errors
    /// If the journal cannot be applied to the images, or a shared image is not locked. In that
    /// case the image is not the primary's, or its lock would not exclude the other host.
    fn describe(&self) -> Result<Vec<PeerDisk>, DiskError>;

    /// From now on the guest's history is this one. It is noted beside the images with whatever is
    /// noted there next: when the copy begins, or in a promotion. Does nothing by default.
    fn learn(&self, _history: &History) {}

    /// The primary begins to bring these images up to date. They are durably marked as unfinished
    /// copies from now on.
    ///
    /// # Errors
    /// If the plan is not for these disks, or a map or the journal cannot be written.
    fn begin_copy(&self, plan: &[DiskSyncPlan]) -> Result<(), DiskError>;

    /// Writes a batch of the synchronisation to the images at once, and does its checks. Returns whether there were
    /// any.
    ///
    /// # Errors
    /// If the batch is malformed, or the host's storage fails.
    fn apply_sync(&self, batch: &Bytes) -> Result<bool, DiskError>;

    /// Keeps the disk writes of a whole epoch, on another thread. `done` is called at the end. The
    /// epoch may be acknowledged only after that. Called for epochs that have batches, or in which
    /// the guest flushed.
    fn persist(&self, epoch: EpochToPersist, done: Completion);

    /// Makes everything that was persisted up to `epoch` survive a loss of power, on another thread:
    /// further epochs are persisted meanwhile. `done` is called at the end.
    fn flush(&self, epoch: EpochId, done: Completion);

    /// Memory is at `epoch`, or certainly will be, so the images may advance to it. Called for
    /// every epoch, with or without disk writes, at the latest when the epoch is acknowledged.
    fn committed(&self, epoch: EpochId);

    /// All epochs up to this one are durable on the images. Epoch 0 until the copy is whole.
    fn durable_epoch(&self) -> EpochId;

    /// Why the present copy cannot be kept any more, if that is found out between two epochs: for
    /// example, an image cannot be written. Nobody asks for another epoch then, so it is asked for
    /// again and again. Must not wait for storage. `None` by default.
    fn failure(&self) -> Option<String> {
        None
    }

    /// Takes what the next checks of this session have found, in order: whether each found a difference. At most
    /// `most` of them.
    fn take_compared(&self, most: usize) -> Vec<bool>;

    /// Brings the images to exactly `epoch`, which is committed in memory, and owns them from now
    /// on. Drops what has arrived of later epochs. Waits for the locks of shared images, and until
    /// these images can be written. Meanwhile it repeatedly calls `waiting` with the reason, which
    /// returns whether to keep waiting.
    ///
    /// # Errors
    /// If the host's storage fails, the images are already at a later epoch, records are missing,
    /// or `waiting` ended the wait. The guest must not be run then.
    fn promote(
        &self,
        epoch: EpochId,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), DiskError>;

    /// Gives the copy up. What has been acknowledged is still applied to the images later.
    fn abandon(&self);
}

/// The disks of a machine without writable disks.
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

    fn has_shared(&self) -> bool {
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

    fn compared(&self, differ: &[bool]) -> Result<(), DiskError> {
        Self::only_none(differ.len())
    }

    fn set_listener(&self, _listener: Callback) {}

    fn begin_sync(&self, peer: &[PeerDisk]) -> Result<SyncPlan, DiskError> {
        Self::only_none(peer.len()).map(|()| SyncPlan {
            disks: Vec::new(),
            compared: Vec::new(),
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

    fn flushed(&self, _epoch: EpochId) {}

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

    fn apply_sync(&self, _batch: &Bytes) -> Result<bool, DiskError> {
        Self::only_none(1).map(|()| false)
    }

    fn persist(&self, epoch: EpochToPersist, done: Completion) {
        done(Self::only_none(epoch.batches.len()));
    }

    fn flush(&self, _epoch: EpochId, done: Completion) {
        done(Ok(()));
    }

    fn committed(&self, _epoch: EpochId) {}

    fn durable_epoch(&self) -> EpochId {
        EpochId(0)
    }

    fn take_compared(&self, _most: usize) -> Vec<bool> {
        Vec::new()
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
