//! The set of a machine's disks.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::{DiskError, DiskLimits, DiskSpec, SealedDisks, SyncPlan, SyncStep};
use crate::core::disk::{DiskSyncPlan, PeerDisk};
use crate::ids::{EpochId, Generation};
use crate::ports::Storage;

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
#[derive(Clone, Default)]
pub struct DiskSet {
    disks: Arc<Vec<Disk>>,
}

/// A disk as its device sees it. Clones are the same disk. One request at a time.
#[derive(Clone)]
pub struct Disk {
    storage: Arc<dyn Storage>,
}

impl DiskSet {
    /// A set of these disks. Nothing is written yet. `journal_path` is needed if one is replicated; the
    /// journal's two files are called so with `.0` and `.1` at the end.
    ///
    /// # Errors
    /// If the journal is needed and missing, or a map cannot be read.
    pub fn open(
        _specs: Vec<DiskSpec>,
        _journal_path: Option<PathBuf>,
        _limits: DiskLimits,
    ) -> Result<Self, DiskError> {
        Ok(Self::default())
    }

    /// A set without disks: every call does nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// The disks, in configuration order: a disk's number is its place here.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    // ---- the side that runs the guest ----

    /// This side runs the guest from now on: locks shared images, brings a journal that was left over
    /// to the images, and marks what the guest writes. May wait for the host's storage.
    ///
    /// # Errors
    /// If an image is an unfinished copy, a shared one is in use, or the host's storage fails.
    pub fn own(&self) -> Result<(), DiskError> {
        Ok(())
    }

    /// Begins to bring a backup's images up to date, the guest running; from now on writes are logged.
    /// May wait for the host's storage.
    ///
    /// # Errors
    /// If the backup's disks are not these, or a map cannot be written.
    pub fn begin_sync(&self, _peer: &[PeerDisk]) -> Result<SyncPlan, DiskError> {
        Ok(SyncPlan {
            disks: Vec::new(),
            bytes: 0,
        })
    }

    /// The next piece of the synchronisation: what the guest has written meanwhile, then some more
    /// blocks. Once none is left it only gives what the guest has written.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn sync_some(&self) -> Result<SyncStep, DiskError> {
        Ok(SyncStep::default())
    }

    /// From now on writes of shared disks are held. The guest is paused. Calling it again does nothing.
    pub fn hold(&self) {}

    /// Ends an epoch: all that was written since the last one is its. The guest is paused.
    ///
    /// # Errors
    /// If blocks are left to be synchronised; nothing has changed then.
    pub fn seal(&self, _epoch: EpochId) -> Result<SealedDisks, DiskError> {
        Ok(SealedDisks::default())
    }

    /// The epoch was sealed, but will never be shipped: its writes are part of the next one.
    pub fn unseal(&self, _epoch: EpochId) {}

    /// Everything up to `epoch` has been handed to the link: its log may be freed.
    pub fn shipped(&self, _epoch: EpochId) {}

    /// Who is told, once an epoch, that the log is half full: the epoch should end soon.
    pub fn set_listener(&self, _listener: Listener) {}

    /// The backup has `epoch`: held writes of shared disks up to it go to the image, and are made durable
    /// if the guest asked for it. On another thread; `done` is told at the end, at once if there is
    /// nothing to do. After an error the writes are still held, and the next release tries again.
    pub fn release(&self, _epoch: EpochId, done: Done) {
        done(Ok(()));
    }

    /// The backup has all epochs up to `epoch` on its images for good.
    pub fn durable(&self, _epoch: EpochId) {}

    /// There is no backup any more: nothing is logged from now on. Held writes stay held.
    pub fn detach(&self) {}

    /// This side runs alone under a grant: detaches, brings what is held to the images (on another
    /// thread), and then lets writes pass at once. `done` is told at the end, at once if nothing is held;
    /// after an error the writes are still held, and it may be called again.
    pub fn go_alone(&self, done: Done) {
        done(Ok(()));
    }

    /// Another side runs the guest: what is held is dropped, and every call of a [`Disk`] fails from
    /// now on.
    pub fn shut(&self) {}

    // ---- the backup ----

    /// What the primary must know of these disks. Waits until an abandoned journal is on the images.
    ///
    /// # Errors
    /// If the journal cannot be brought to the images, or a map cannot be read.
    pub fn describe(&self) -> Result<Vec<PeerDisk>, DiskError> {
        Ok(Vec::new())
    }

    /// The primary begins to bring these images up to date: they are unfinished copies from now on,
    /// durably.
    ///
    /// # Errors
    /// If the plan is not one for these disks, or a map cannot be written.
    pub fn begin_copy(&self, _plan: &[DiskSyncPlan]) -> Result<(), DiskError> {
        Ok(())
    }

    /// A batch of the synchronisation: written to the images at once.
    ///
    /// # Errors
    /// If it is malformed, or the host's storage fails.
    pub fn apply_sync(&self, _batch: &Bytes) -> Result<(), DiskError> {
        Ok(())
    }

    /// Whether a batch is well-formed and within these disks, and how many writes it has.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_batch(&self, _batch: &Bytes) -> Result<u32, DiskError> {
        Ok(0)
    }

    /// Puts the disk writes of a whole epoch into the journal, durably if `flush`, on another thread. `done`
    /// is told at the end, and only then the epoch may be acknowledged. Call it for epochs that have batches or
    /// `flush`, in order, and the next one only after this one's `done`.
    pub fn persist(
        &self,
        _generation: Generation,
        _epoch: EpochId,
        _batches: Vec<Bytes>,
        _flush: bool,
        _written_through: EpochId,
        done: Done,
    ) {
        done(Ok(()));
    }

    /// Memory stands at `epoch`, or will for certain: the images may too. Called for every epoch, with
    /// or without disk writes, at the latest when it is acknowledged.
    pub fn committed(&self, _epoch: EpochId) {}

    /// The images have all epochs up to this one for good. Epoch 0 until the copy is whole.
    #[must_use]
    pub fn durable_epoch(&self) -> EpochId {
        EpochId(0)
    }

    /// Brings the images to exactly `epoch`, which is committed in memory, and owns them from now on. What the
    /// journal has of later epochs is dropped. Waits for the lock of shared images as long as it takes,
    /// and calls `waiting` with what it waits for, repeatedly.
    ///
    /// # Errors
    /// If the host's storage fails, or the images are at another epoch already. The guest must not be
    /// run then.
    pub fn promote(
        &self,
        _epoch: EpochId,
        _waiting: &mut dyn FnMut(&str),
    ) -> Result<(), DiskError> {
        Ok(())
    }

    /// The copy is given up. What the journal has is still brought to the images.
    pub fn abandon(&self) {}
}

impl Disk {
    /// Whether a further request may be taken from the guest. If not, the room listener will be called.
    #[must_use]
    pub fn has_room(&self) -> bool {
        true
    }

    /// Who is told that there is room again after [`Disk::has_room`] said no.
    pub fn set_room_listener(&self, _listener: Listener) {}
}

impl Storage for Disk {
    fn bytes(&self) -> u64 {
        self.storage.bytes()
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.storage.read_at(offset, data)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.storage.write_at(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.flush()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.storage.discard(offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        self.storage.write_zeroes(offset, bytes, may_unmap)
    }

    fn lock(&self) -> io::Result<bool> {
        self.storage.lock()
    }
}
