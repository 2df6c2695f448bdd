//! The set of a machine's disks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::desk::Desk;
use super::device::{Common, Disk, Drive, lock};
use super::files::{FileSystem, HostFiles};
use super::map::DirtyMap;
use super::replica::{Job, Replica};
use super::{
    DiskCounts, DiskError, DiskLimits, DiskMode, DiskSpec, SealedDisks, SyncPlan, SyncStep,
};
use crate::core::disk::{DiskSyncPlan, PeerDisk};
use crate::ids::{EpochId, Generation};

/// Is told that something may go on.
pub type Listener = Arc<dyn Fn() + Send + Sync>;
/// Is told how something ended, once, possibly before the call that got it returns.
pub type Done = Box<dyn FnOnce(Result<(), DiskError>) + Send>;

/// The writable disks of a machine. Clones are the same set.
///
/// Who runs the guest calls [`own`](Self::own) first; then, for each backup,
/// [`begin_sync`](Self::begin_sync), [`sync_some`](Self::sync_some) until nothing is left, and
/// [`hold`](Self::hold) and [`seal`](Self::seal) at each capture. A backup calls
/// [`describe`](Self::describe), [`begin_copy`](Self::begin_copy), [`apply_sync`](Self::apply_sync),
/// then [`persist`](Self::persist) and [`committed`](Self::committed) for each epoch, and in the end
/// [`promote`](Self::promote) or [`abandon`](Self::abandon).
#[derive(Clone)]
pub struct DiskSet(pub(super) Arc<Inner>);

/// What the clones of a set share.
pub(super) struct Inner {
    disks: Vec<Disk>,
    pub(super) drives: Vec<Arc<Drive>>,
    pub(super) common: Arc<Common>,
    pub(super) limits: DiskLimits,
    pub(super) desk: Desk,
    /// Synchronisations begun.
    pub(super) sessions: AtomicU64,
    replica: Replica,
}

impl Default for DiskSet {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for DiskSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.0.disks).finish()
    }
}

impl DiskSet {
    /// A set of these disks. Nothing is written yet. `journal_path` is needed if one is replicated; the
    /// journal's two files are called so with `.0` and `.1` at the end.
    ///
    /// # Errors
    /// If the journal is needed and missing, or a map cannot be read.
    pub fn open(
        specs: Vec<DiskSpec>,
        journal_path: Option<PathBuf>,
        limits: DiskLimits,
    ) -> Result<Self, DiskError> {
        Self::open_in(specs, journal_path, limits, Arc::new(FileSystem))
    }

    /// As [`DiskSet::open`], with maps and journal in `files`.
    pub(super) fn open_in(
        specs: Vec<DiskSpec>,
        journal_path: Option<PathBuf>,
        limits: DiskLimits,
        files: Arc<dyn HostFiles>,
    ) -> Result<Self, DiskError> {
        let common = Arc::new(Common::new(specs.len(), limits.log_bytes_max));
        let mut drives = Vec::new();
        for (number, spec) in specs.into_iter().enumerate() {
            let bytes = spec.storage.bytes();
            let map = match spec.mode {
                DiskMode::Shared => None,
                DiskMode::Replicated if journal_path.is_none() => {
                    return Err(DiskError::NoJournal { disk: spec.name });
                }
                DiskMode::Replicated => Some(Mutex::new(DirtyMap::open(
                    spec.map_path.clone(),
                    bytes,
                    files.clone(),
                )?)),
            };
            drives.push(Arc::new(Drive {
                number: u16::try_from(number).map_err(|_| DiskError::TooManyDisks)?,
                name: spec.name,
                mode: spec.mode,
                storage: spec.storage,
                map_path: spec.map_path,
                map,
                turn: Mutex::new(()),
                flush_failed: AtomicBool::new(false),
                common: common.clone(),
            }));
        }
        let desk = Desk::new(drives.clone(), common.clone(), limits.log_bytes_max / 4);
        Ok(Self(Arc::new(Inner {
            disks: drives.iter().cloned().map(Disk).collect(),
            replica: Replica::new(drives.clone(), limits, journal_path, files),
            drives,
            common,
            limits,
            desk,
            sessions: AtomicU64::new(0),
        })))
    }

    /// A set without disks: every call does nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::open(Vec::new(), None, DiskLimits::default()).expect("nothing is opened")
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.disks.is_empty()
    }

    /// The disks, in configuration order: a disk's number is its place here.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.0.disks
    }

    /// Whether some have an image of their own on each host.
    #[must_use]
    pub fn has_replicated(&self) -> bool {
        self.0.drives.iter().any(|drive| drive.map.is_some())
    }

    // ---- the side that runs the guest ----

    /// Whether a guest may be run from the images, as far as their maps know.
    ///
    /// # Errors
    /// If one is an unfinished copy, or its map is damaged.
    pub fn check_whole(&self) -> Result<(), DiskError> {
        self.0.own_maps()
    }

    /// This side runs the guest from now on: locks shared images, brings a journal that was left over
    /// to the images, and marks what the guest writes. May wait for the host's storage.
    ///
    /// # Errors
    /// If an image is an unfinished copy, a shared one is in use, or the host's storage fails.
    pub fn own(&self) -> Result<(), DiskError> {
        self.0.own_maps()?;
        self.0.replica.recover()?;
        self.0.replica.lock_shared()
    }

    /// Begins to bring a backup's images up to date, the guest running; from now on writes are logged.
    /// May wait for the host's storage.
    ///
    /// # Errors
    /// If the backup's disks are not these, or a map cannot be written.
    pub fn begin_sync(&self, peer: &[PeerDisk]) -> Result<SyncPlan, DiskError> {
        self.0.begin_sync(peer)
    }

    /// The next piece of the synchronisation: what the guest has written meanwhile, then some more
    /// blocks. Once none is left it only gives what the guest has written.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn sync_some(&self) -> Result<SyncStep, DiskError> {
        self.0.sync_some()
    }

    /// From now on writes of shared disks are held; what was written before is made durable. The guest is
    /// paused. Calling it again does nothing.
    ///
    /// # Errors
    /// If a shared image cannot be flushed; nothing is held then.
    pub fn hold(&self) -> Result<(), DiskError> {
        if lock(&self.0.common.log).held.is_holding() {
            return Ok(());
        }
        self.0.flush_shared()?;
        lock(&self.0.common.log).held.hold();
        Ok(())
    }

    /// Ends an epoch: all that was written since the last one is its. The guest is paused.
    ///
    /// # Errors
    /// If blocks are left to be synchronised; nothing has changed then.
    pub fn seal(&self, epoch: EpochId) -> Result<SealedDisks, DiskError> {
        self.0.seal(epoch)
    }

    /// The epoch was sealed, but will never be shipped: its writes are part of the next one.
    pub fn unseal(&self, epoch: EpochId) {
        self.0.common.with_log(|log| log.unseal(epoch));
    }

    /// Everything up to `epoch` has been handed to the link: its log may be freed.
    pub fn shipped(&self, epoch: EpochId) {
        self.0.common.with_log(|log| log.shipped(epoch));
    }

    /// Who is told, once an epoch, that the log is half full: the epoch should end soon.
    pub fn set_listener(&self, listener: Listener) {
        self.0.common.set_listener(listener);
    }

    /// The backup has `epoch`: held writes of shared disks up to it go to the image, and are made durable
    /// if the guest asked for it. On another thread; `done` is told at the end, at once if there is
    /// nothing to do. After an error the writes are still held, and the next release tries again.
    pub fn release(&self, epoch: EpochId, done: Done) {
        if self.0.is_holding() {
            self.0.desk.release(epoch, done);
        } else {
            done(Ok(()));
        }
    }

    /// The backup has all epochs up to `epoch` on its images for good.
    pub fn durable(&self, epoch: EpochId) {
        if epoch.0 > 0 && self.0.drives.iter().any(|drive| drive.map.is_some()) {
            self.0.desk.durable(epoch);
        }
    }

    /// There is no backup any more: nothing is logged from now on. Held writes stay held.
    pub fn detach(&self) {
        self.0.common.with_log(|log| log.end());
    }

    /// This side runs alone under a grant: detaches, brings what is held to the images (on another
    /// thread), and then lets writes pass at once. `done` is told at the end, at once if nothing is held;
    /// after an error the writes are still held, and it may be called again.
    pub fn go_alone(&self, done: Done) {
        self.detach();
        if self.0.is_holding() {
            self.0.desk.go_alone(done);
        } else {
            done(Ok(()));
        }
    }

    /// Another side runs the guest: what is held is dropped, and every call of a [`Disk`] fails from
    /// now on.
    pub fn shut(&self) {
        self.0.common.with_log(|log| {
            log.shut = true;
            log.held.let_go();
            log.end();
        });
    }

    // ---- the backup ----

    /// What the primary must know of these disks. Waits until an abandoned journal is on the images. The primary
    /// owns its disks already, so its locks of shared images must be seen here.
    ///
    /// # Errors
    /// If the journal cannot be brought to the images, a map cannot be read, or a shared image is not locked:
    /// then it is not the primary's, or its lock would not keep the two apart.
    pub fn describe(&self) -> Result<Vec<PeerDisk>, DiskError> {
        self.0.replica.recover()?;
        self.0.replica.find_locked()?;
        Ok(self.0.describe())
    }

    /// The primary begins to bring these images up to date: they are unfinished copies from now on,
    /// durably.
    ///
    /// # Errors
    /// If the plan is not one for these disks, or a map cannot be written.
    pub fn begin_copy(&self, plan: &[DiskSyncPlan]) -> Result<(), DiskError> {
        self.0.replica.begin_copy(plan)
    }

    /// A batch of the synchronisation: written to the images at once.
    ///
    /// # Errors
    /// If it is malformed, or the host's storage fails.
    pub fn apply_sync(&self, batch: &Bytes) -> Result<(), DiskError> {
        self.0.replica.apply_sync(batch)
    }

    /// Whether a batch is well-formed and within these disks, and how many writes it has.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_batch(&self, batch: &Bytes) -> Result<u32, DiskError> {
        self.0.replica.check_batch(batch)
    }

    /// Puts the disk writes of a whole epoch into the journal, durably if `flush`, on another thread. `done`
    /// is told at the end, and only then the epoch may be acknowledged. Call it for epochs that have batches or
    /// `flush`, in order, and the next one only after this one's `done`.
    pub fn persist(
        &self,
        generation: Generation,
        epoch: EpochId,
        batches: Vec<Bytes>,
        flush: bool,
        written_through: EpochId,
        done: Done,
    ) {
        self.0.replica.persist(Job {
            place: (generation, epoch),
            batches,
            flush,
            written_through,
            done,
        });
    }

    /// Memory stands at `epoch`, or will for certain: the images may too. Called for every epoch, with
    /// or without disk writes, at the latest when it is acknowledged.
    pub fn committed(&self, epoch: EpochId) {
        self.0.replica.committed(epoch);
    }

    /// The images have all epochs up to this one for good. Epoch 0 until the copy is whole.
    #[must_use]
    pub fn durable_epoch(&self) -> EpochId {
        self.0.replica.durable_epoch()
    }

    /// Brings the images to exactly `epoch`, which is committed in memory, and owns them from now on. What the
    /// journal has of later epochs is dropped. Waits for the lock of shared images as long as it takes,
    /// and calls `waiting` with what it waits for, repeatedly; it says whether to wait on.
    ///
    /// # Errors
    /// If the host's storage fails, the images are at another epoch already, or a lock was not waited for. The guest
    /// must not be run then.
    pub fn promote(
        &self,
        epoch: EpochId,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), DiskError> {
        self.0.replica.promote(epoch, waiting)
    }

    /// The copy is given up. What the journal has is still brought to the images.
    pub fn abandon(&self) {
        self.0.replica.abandon();
    }

    /// What is in memory and in the journal now.
    #[must_use]
    pub fn counts(&self) -> DiskCounts {
        let (journal_bytes, backup_held_bytes) = self.0.replica.waiting_bytes();
        let log = lock(&self.0.common.log);
        let marked = |drive: &Arc<Drive>| {
            let map = drive.map.as_ref().map(|map| lock(map))?;
            Some(map.bits().count() * map.block_bytes())
        };
        let (log_bytes, copy_bytes_left) = (log.bytes(), log.copy_left());
        drop(log);
        DiskCounts {
            log_bytes,
            copy_bytes_left,
            journal_bytes,
            backup_held_bytes,
            marked_bytes: self.0.drives.iter().filter_map(marked).sum(),
        }
    }
}
