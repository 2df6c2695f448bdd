//! The side that keeps the copy: an epoch's writes go to the journal, from there to the images.
//!
//! Two threads: one appends to the journal (`persist`), one brings the file that is not written to the images
//! (`destage`). What must not be done here: touching an image with what is not durable in the
//! journal, or is not committed in memory.

mod destage;
pub(super) mod journal;
mod persist;
mod replica;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use journal::FILE_HEADER_BYTES;
use replica::{PersistJob, Replica, SYNC_FLUSH_BYTES, State};

use super::image::{Drive, Drives, HostFiles, shared};
use super::thread::Thread;
use super::{Completion, DiskError, DiskLimits};
use crate::core::disk::{DiskSyncPlan, PairId, PeerDisk, decode_batch};
use crate::epoch_queue::EpochQueue;
use crate::ids::{EpochId, Generation};

/// How often shared storage is tried that refuses writes.
const SHARED_RETRY: Duration = Duration::from_millis(200);

/// What a backup does with its disks. Clones are the same disks.
///
/// A backup calls [`describe`](Self::describe), [`begin_copy`](Self::begin_copy),
/// [`apply_sync`](Self::apply_sync), then [`persist`](Self::persist) and [`committed`](Self::committed) for
/// each epoch, and in the end [`promote`](Self::promote) or [`abandon`](Self::abandon).
#[derive(Clone)]
pub struct BackupDisks(Arc<BackupThreads>);

/// The replica and its threads.
struct BackupThreads {
    replica: Arc<Replica>,
    threads: [Thread; 2],
}

impl Drop for BackupThreads {
    fn drop(&mut self) {
        self.replica.state.lock().stop = true;
        self.replica.bell.notify_all();
        self.threads.iter().for_each(Thread::join);
    }
}

impl BackupDisks {
    pub(super) fn new(
        drives: Drives,
        limits: DiskLimits,
        journal_path: Option<PathBuf>,
        files: Arc<dyn HostFiles>,
    ) -> Self {
        Self(Arc::new(BackupThreads {
            replica: Arc::new(Replica::new(drives, limits, journal_path, files)),
            threads: ["disk-journal", "disk-destage"].map(Thread::new),
        }))
    }

    /// Brings to the images what the journal has from an earlier copy or run.
    pub(super) fn recover(&self) -> Result<(), DiskError> {
        let replica = &self.0.replica;
        let mut state = replica.idle();
        let files = match &state.journal {
            Some(files) => files.to_vec(),
            None => replica.existing_files()?,
        };
        replica.replay(&files, EpochId(u64::MAX))?;
        state.slots = Default::default();
        state.failed = None;
        Ok(())
    }

    /// What the primary must know of these disks. Waits until an abandoned journal is on the images. The primary
    /// owns its disks already, so its locks of shared images must be seen here.
    ///
    /// # Errors
    /// If the journal cannot be brought to the images, a map cannot be read, or a shared image is not locked:
    /// then it is not the primary's, or its lock would not keep the two apart.
    pub fn describe(&self) -> Result<Vec<PeerDisk>, DiskError> {
        self.recover()?;
        self.find_locked()?;
        let describe = |drive: &Arc<Drive>| {
            let mut disk = PeerDisk {
                name: drive.name.clone(),
                bytes: drive.storage.bytes(),
                ids: Vec::new(),
                unfinished: false,
                block_bytes: 0,
                dirty: Bytes::new(),
            };
            if let Some(map) = &drive.map {
                let map = map.lock();
                disk.ids = map.ids();
                disk.unfinished = map.is_unfinished();
                disk.block_bytes = map.block_bytes();
                disk.dirty = map.bits_trimmed().into();
            }
            disk
        };
        Ok(self.0.replica.drives.iter().map(describe).collect())
    }

    /// The primary begins to bring these images up to date: they are unfinished copies from now on,
    /// durably.
    ///
    /// # Errors
    /// If the plan is not one for these disks, or a map cannot be written.
    pub fn begin_copy(&self, plan: &[DiskSyncPlan]) -> Result<(), DiskError> {
        self.recover()?;
        let replica = &self.0.replica;
        if plan.len() != replica.drives.len() {
            return Err(DiskError::PeerDiffers {
                what: format!(
                    "a plan for {} disks, here are {}",
                    plan.len(),
                    replica.drives.len()
                ),
            });
        }
        for (drive, plan) in replica.drives.iter().zip(plan) {
            let Some(map) = &drive.map else { continue };
            let mut map = map.lock();
            let from = plan.from.filter(|id| !plan.full && map.ids().contains(id));
            if plan.candidate == PairId(0) || from.is_none() != plan.full {
                return Err(DiskError::PeerDiffers {
                    what: format!(
                        "disk {} is no longer part of the pair the plan is for",
                        drive.name
                    ),
                });
            }
            map.begin_copy(from)?;
        }
        let journal = replica.fresh_journal()?;
        let mut state = replica.idle();
        *state = State {
            session: true,
            candidates: plan.iter().map(|disk| disk.candidate).collect(),
            slots: Default::default(),
            journal,
            ..State::default()
        };
        drop(state);
        self.start_threads();
        Ok(())
    }

    fn start_threads(&self) {
        let works = [Replica::journal_work as fn(&Replica), Replica::destage_work];
        for (thread, work) in self.0.threads.iter().zip(works) {
            let replica = self.0.replica.clone();
            thread.start(move || work(&replica));
        }
    }

    /// A batch of the synchronisation: written to the images at once.
    ///
    /// # Errors
    /// If it is malformed, or the host's storage fails.
    pub fn apply_sync(&self, batch: &Bytes) -> Result<(), DiskError> {
        let replica = &self.0.replica;
        if replica.state.lock().candidates.is_empty() {
            return Err(DiskError::Failed(
                "no copy of the disks is being made".into(),
            ));
        }
        let writes = replica.decode(EpochId(0), batch)?;
        let mut bytes = 0;
        for write in &writes {
            let drive = &replica.drives[usize::from(write.disk)];
            if !drive.is_shared() {
                drive.apply(write)?;
                bytes += write.memory_bytes();
            }
        }
        let mut state = replica.state.lock();
        if let Some(failed) = &state.failed {
            return Err(DiskError::Failed(failed.clone()));
        }
        state.unflushed_bytes += bytes;
        if state.unflushed_bytes >= SYNC_FLUSH_BYTES {
            replica.bell.notify_all();
        }
        Ok(())
    }

    /// Whether a batch is well-formed and within these disks, and how many writes it has.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_batch(&self, batch: &Bytes) -> Result<u32, DiskError> {
        let checked = decode_batch(batch, &self.0.replica.sizes, |_| {});
        checked.map_err(|source| DiskError::Batch {
            epoch: EpochId(0),
            source,
        })
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
        done: Completion,
    ) {
        let mut state = self.0.replica.state.lock();
        let refused = match &state.failed {
            Some(failed) => Some(failed.clone()),
            None if !state.session => Some("the copy of the disks was given up".into()),
            None if state.job.is_some() || state.persisting => {
                Some("the epoch before is not persisted yet".into())
            }
            None => None,
        };
        if let Some(refused) = refused {
            drop(state);
            return done(Err(DiskError::Failed(refused)));
        }
        state.job = Some(PersistJob {
            place: (generation, epoch),
            batches,
            flush,
            written_through,
            done,
        });
        self.0.replica.bell.notify_all();
    }

    /// Memory stands at `epoch`, or will for certain: the images may too. Called for every epoch, with
    /// or without disk writes, at the latest when it is acknowledged.
    pub fn committed(&self, epoch: EpochId) {
        let mut state = self.0.replica.state.lock();
        state.committed = state.committed.max(epoch);
        if !state.candidates.is_empty() || state.slots[state.active].since.is_some() {
            self.0.replica.bell.notify_all();
        }
    }

    /// The images have all epochs up to this one for good. Epoch 0 until the copy is whole.
    #[must_use]
    pub fn durable_epoch(&self) -> EpochId {
        let state = self.0.replica.state.lock();
        if !state.session || !state.candidates.is_empty() || state.failed.is_some() {
            return EpochId(0);
        }
        let waiting = state.slots.iter().filter_map(|slot| slot.first).min();
        let before = waiting.map_or(u64::MAX, |first| first.0.saturating_sub(1));
        EpochId(state.committed.0.min(before))
    }

    /// What has not reached the images, in bytes: of the journal, and in memory.
    pub(super) fn waiting_bytes(&self) -> (u64, u64) {
        let state = self.0.replica.state.lock();
        let ends = state.slots.iter().map(|slot| slot.end);
        let journal = ends.map(|end| end.saturating_sub(FILE_HEADER_BYTES)).sum();
        (journal, state.held.bytes())
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
        let replica = &self.0.replica;
        let mut state = replica.idle();
        if state.applied.1 > epoch {
            return Err(DiskError::WrongEpoch {
                wanted: epoch,
                have: state.applied.1,
            });
        }
        if let (Some(failed), false) = (&state.failed, state.candidates.is_empty()) {
            // What the journal has is written once more, but what was copied before it is not.
            return Err(DiskError::Failed(failed.clone()));
        }
        // Nothing is destaged from here on. What is needed for another try stays until this one has worked.
        state.session = false;
        let files = state.journal.clone().map(|files| files.to_vec());
        let candidates = state.candidates.clone();
        let due = state.held.sealed_through(epoch);
        let due: Vec<_> = due.flat_map(|held| held.writes.iter().cloned()).collect();
        // Of a later epoch there is one at most: it was persisted, or tried to be, and is not committed.
        let wanted = match state.last {
            (_, last) if last <= epoch => state.last,
            _ => state.before_last,
        };
        let have = replica.replay(&files.unwrap_or_default(), epoch)?;
        if have < wanted {
            let (wanted, have) = (wanted.1, have.1);
            return Err(DiskError::WrongEpoch { wanted, have });
        }
        state.slots = Default::default();
        drop(state);
        replica.finish(&candidates)?;
        replica.lock_shared(waiting)?;
        // Storage that was lost and is back may tell once more of what was lost then. All that is not there for good
        // is still held, so it is written again from the beginning.
        while let Err(error) = replica.write_for_good(&due) {
            if !waiting(&format!(
                "its shared disks cannot be written, which is tried again and again: {error}"
            )) {
                return Err(error);
            }
            std::thread::sleep(SHARED_RETRY);
        }
        // What a flush lost before has been written once more.
        let failures = replica.drives.iter().map(|drive| &drive.flush_failed);
        failures.for_each(|failed| failed.store(false, Ordering::Release));
        let mut state = replica.state.lock();
        state.candidates.clear();
        state.held = EpochQueue::default();
        Ok(())
    }

    /// Makes sure that somebody else has the lock of every shared image.
    fn find_locked(&self) -> Result<(), DiskError> {
        for drive in shared(&self.0.replica.drives) {
            let locked = drive.storage.is_locked_by_other();
            if !locked.map_err(|error| drive.failed("look for a lock", 0, error))? {
                return Err(DiskError::NotLocked {
                    disk: drive.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// The copy is given up. What the journal has is still brought to the images.
    pub fn abandon(&self) {
        let mut state = self.0.replica.state.lock();
        state.session = false;
        state.candidates.clear();
        state.held = EpochQueue::default();
        self.0.replica.bell.notify_all();
    }
}
