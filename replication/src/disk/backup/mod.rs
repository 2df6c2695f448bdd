//! The backup: an epoch's writes go to the journal, and from there to the images.
//!
//! There are three threads. One appends to the journal (`persist`), one makes that durable (`flush`), and one applies a
//! file of it to the images (`destage`). What must not be done here: writing to an image what is not durable in the
//! journal, or is not committed in memory.

mod destage;
mod flush;
pub(super) mod journal;
mod persist;
pub(super) mod replay;
mod replica;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use journal::{FILE_HEADER_BYTES, JournalFile};
use parking_lot::Mutex;
use replica::{Replica, SYNC_FLUSH_BYTES, State};

use super::digest::DigestKey;
use super::image::{Drive, Drives, shared};
use super::place::JournalId;
use super::thread::Thread;
use super::{DiskError, DiskLimits};
use crate::causes::causes;
use crate::core::disk::{DiskSyncPlan, DiskWrite, PairId, PeerDisk};
use crate::epoch_queue::EpochQueue;
use crate::files::HostFiles;
use crate::ids::EpochId;
use crate::ports::BackupDisks;
use crate::ports::disks::{Completion, EpochToPersist, History};

/// Pause between attempts to write to shared storage that refuses writes.
const SHARED_RETRY: Duration = Duration::from_millis(200);

/// What a backup does with its images: the replica and its threads.
pub(super) struct BackupImages {
    replica: Arc<Replica>,
    threads: [Thread; 3],
    /// What has not reached the images, when it was last looked at.
    waiting: Mutex<(u64, u64)>,
}

impl Drop for BackupImages {
    fn drop(&mut self) {
        self.replica.state.lock().stop = true;
        self.replica.bell.notify_all();
        self.threads.iter().for_each(Thread::join);
    }
}

impl BackupImages {
    pub(super) fn new(
        drives: Drives,
        limits: DiskLimits,
        journal_path: Option<PathBuf>,
        files: Arc<dyn HostFiles>,
    ) -> Self {
        Self {
            replica: Arc::new(Replica::new(drives, limits, journal_path, files)),
            threads: ["disk-journal", "disk-flush", "disk-destage"].map(Thread::new),
            waiting: Mutex::default(),
        }
    }

    /// Applies to the images what the journal has from an earlier copy or run.
    pub(super) fn recover(&self) -> Result<(), DiskError> {
        let replica = &self.replica;
        let mut state = replica.idle();
        let files = match &state.journal {
            Some(files) => files.to_vec(),
            None => replica.existing_files()?,
        };
        replica.replay(&files, EpochId(u64::MAX))?;
        replica.journal_is_done()?;
        state.slots = Default::default();
        state.failed = None;
        Ok(())
    }

    /// Checks that [`recover`](Self::recover) has what it needs. Changes nothing.
    pub(super) fn check_recovery(&self) -> Result<(), DiskError> {
        let files = self.replica.existing_files()?;
        self.replica.plan(&files, EpochId(u64::MAX)).map(drop)
    }

    /// As [`recover`](Self::recover), for images that a primary is about to bring up to date. It has
    /// marked all that is not on them, so the loss of the journal loses nothing then.
    fn recover_for_copy(&self) -> Result<(), DiskError> {
        match self.recover() {
            Err(
                lost @ (DiskError::JournalDamaged { .. }
                | DiskError::JournalMissing { .. }
                | DiskError::ImageReplaced { .. }),
            ) => {
                let why = causes(&lost);
                tracing::warn!(
                    why,
                    "what the journal should have is lost here; the primary still has it, and sends it again"
                );
                Ok(())
            }
            recovered => recovered,
        }
    }

    fn start_threads(&self) {
        let works = [
            Replica::journal_work as fn(&Replica),
            Replica::flush_work,
            Replica::destage_work,
        ];
        for (thread, work) in self.threads.iter().zip(works) {
            let replica = self.replica.clone();
            thread.start(move || work(&replica));
        }
    }

    #[cfg(test)]
    pub(super) fn has_failed(&self) -> bool {
        self.replica.state.lock().failed.is_some()
    }

    /// What has not reached the images, in bytes: in the journal, and in memory. If it cannot be known
    /// until `deadline`, because a promotion is under way, as it was when it could.
    pub(super) fn waiting_bytes(&self, deadline: Instant) -> (u64, u64) {
        let mut seen = self.waiting.lock();
        if let Some(state) = self.replica.state.try_lock_until(deadline) {
            let ends = state.slots.iter().map(|slot| slot.end);
            let journal = ends.map(|end| end.saturating_sub(FILE_HEADER_BYTES)).sum();
            *seen = (journal, state.held.bytes());
        }
        *seen
    }

    /// Checks that another user holds the lock of every shared image.
    fn find_locked(&self) -> Result<(), DiskError> {
        for drive in shared(&self.replica.drives) {
            let locked = drive.storage.is_locked_by_other();
            if !locked.map_err(|error| drive.failed("look for a lock", 0, error))? {
                return Err(DiskError::NotLocked {
                    disk: drive.name.clone(),
                });
            }
        }
        Ok(())
    }
}

impl BackupDisks for BackupImages {
    fn describe(&self) -> Result<Vec<PeerDisk>, DiskError> {
        self.recover_for_copy()?;
        self.find_locked()?;
        let describe = |drive: &Arc<Drive>| {
            let mut disk = PeerDisk {
                name: drive.name.clone(),
                bytes: drive.storage.bytes(),
                ids: Vec::new(),
                unfinished: false,
                replace: drive.replace.load(Ordering::Relaxed),
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
        Ok(self.replica.drives.iter().map(describe).collect())
    }

    fn learn(&self, history: &History) {
        let maps = self.replica.drives.iter();
        maps.filter_map(|drive| drive.map.as_ref())
            .for_each(|map| map.lock().learn(history));
    }

    fn begin_copy(&self, plan: &[DiskSyncPlan]) -> Result<(), DiskError> {
        self.recover_for_copy()?;
        let replica = &self.replica;
        replica.forget_lost_flushes();
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
            let map = map.lock();
            let from = plan.from.filter(|id| !plan.full && map.ids().contains(id));
            if plan.candidate == PairId(0) || from.is_none() != plan.full {
                return Err(DiskError::PeerDiffers {
                    what: format!(
                        "disk {} is no longer part of the pair the plan is for",
                        drive.name
                    ),
                });
            }
        }
        let id = JournalId::draw();
        let journal = replica.fresh_journal(id)?;
        for (drive, plan) in replica.drives.iter().zip(plan) {
            if let Some(map) = &drive.map {
                let from = plan.from.filter(|_| !plan.full);
                let mut map = map.lock();
                map.begin_copy(from, id)?;
                map.in_use(&*drive.storage)?;
            }
        }
        let mut state = replica.idle();
        *state = State {
            session: true,
            candidates: plan.iter().map(|disk| disk.candidate).collect(),
            keys: plan
                .iter()
                .map(|disk| DigestKey::of(disk.candidate))
                .collect(),
            slots: Default::default(),
            journal,
            ..State::default()
        };
        replica.hurry.store(false, Ordering::Relaxed);
        drop(state);
        self.start_threads();
        Ok(())
    }

    fn apply_sync(&self, batch: &Bytes) -> Result<bool, DiskError> {
        let replica = &self.replica;
        if replica.state.lock().candidates.is_empty() {
            return Err(DiskError::Failed(
                "no copy of the disks is being made".into(),
            ));
        }
        let writes = replica.decode(EpochId(0), batch)?;
        let mut bytes = 0;
        for write in &writes {
            replica.apply(write)?;
            bytes += write.memory_bytes();
        }
        let mut state = replica.state.lock();
        if let Some(failed) = &state.failed {
            return Err(DiskError::Failed(failed.clone()));
        }
        state.unflushed_bytes += bytes;
        if state.unflushed_bytes >= SYNC_FLUSH_BYTES {
            replica.bell.notify_all();
        }
        Ok(writes.iter().any(DiskWrite::is_check))
    }

    fn persist(&self, epoch: EpochToPersist, done: Completion) {
        let mut state = self.replica.state.lock();
        let too_early = (state.job.is_some() || state.persisting)
            .then(|| DiskError::Failed("the epoch before is not persisted yet".into()));
        if let Some(refused) = state.refusal().or(too_early) {
            drop(state);
            return done(Err(refused));
        }
        state.job = Some((epoch, done));
        self.replica.bell.notify_all();
    }

    /// The journal is made durable as far as it goes.
    fn flush(&self, _epoch: EpochId, done: Completion) {
        let mut state = self.replica.state.lock();
        let too_early = (state.flush.is_some() || state.flushing)
            .then(|| DiskError::Failed("the flush before is not over yet".into()));
        if let Some(refused) = state.refusal().or(too_early) {
            drop(state);
            return done(Err(refused));
        }
        state.flush = Some(done);
        self.replica.bell.notify_all();
    }

    fn committed(&self, epoch: EpochId) {
        let mut state = self.replica.state.lock();
        state.committed = state.committed.max(epoch);
        if !state.candidates.is_empty() || state.slots[state.active].since.is_some() {
            self.replica.bell.notify_all();
        }
    }

    fn durable_epoch(&self) -> EpochId {
        let state = self.replica.state.lock();
        if !state.session || !state.candidates.is_empty() || state.failed.is_some() {
            return EpochId(0);
        }
        let waiting = state.slots.iter().filter_map(|slot| slot.first).min();
        let before = waiting.map_or(u64::MAX, |first| first.0.saturating_sub(1));
        EpochId(state.committed.0.min(before))
    }

    fn failure(&self) -> Option<String> {
        let state = self.replica.state.lock();
        state.failed.clone().filter(|_| state.session)
    }

    fn take_compared(&self, most: usize) -> Vec<bool> {
        let mut state = self.replica.state.lock();
        let most = most.min(state.compared.len());
        state.compared.drain(..most).collect()
    }

    fn promote(
        &self,
        epoch: EpochId,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), DiskError> {
        let replica = &self.replica;
        let mut state = replica.idle();
        if state.applied.1 > epoch {
            return Err(DiskError::WrongEpoch {
                wanted: epoch,
                have: state.applied.1,
            });
        }
        if let (Some(failed), false) = (&state.failed, state.candidates.is_empty()) {
            // A replay repeats what the journal has, but not what was copied before it.
            return Err(DiskError::Failed(failed.clone()));
        }
        if !state.candidates.is_empty() && replica.has_lost_a_flush() {
            // So it is after an attempt whose flush failed: storage says so only once.
            let why = "a flush of its image failed before the copy was whole";
            return Err(DiskError::Failed(why.into()));
        }
        // Nothing is destaged from here on. What another attempt needs stays until this one
        // succeeds.
        state.session = false;
        let files = state.journal.clone().map(|files| files.to_vec());
        let files = files.unwrap_or_default();
        let candidates = state.candidates.clone();
        let due = state.held.sealed_through(epoch);
        let due: Vec<_> = due.flat_map(|held| held.writes.iter().cloned()).collect();
        // At most one later epoch exists: it was written, at least in part, but is not committed.
        let wanted = match state.last {
            (_, last) if last <= epoch => state.last,
            _ => state.before_last,
        };
        if state.slots.iter().any(|slot| slot.first.is_some()) {
            // If this host is lost before all of it is on the images, they must not be used without
            // it, or without a part of it.
            files.iter().try_for_each(JournalFile::sync)?;
            replica.must_reach(wanted)?;
        }
        replica.replay(&files, epoch)?;
        state.slots = Default::default();
        drop(state);
        replica.finish(&candidates)?;
        replica.journal_is_done()?;
        replica.lock_shared(waiting)?;
        // Storage that was lost and is back may report the earlier loss once more. All that is not
        // durable there is still held, so all of it is written again.
        while let Err(error) = replica.write_for_good(&due) {
            if !waiting(&format!(
                "its shared disks cannot be written, which is tried again and again: {error}"
            )) {
                return Err(error);
            }
            std::thread::sleep(SHARED_RETRY);
        }
        // What an earlier failed flush lost has been written again.
        let failures = replica.drives.iter().map(|drive| &drive.flush_failed);
        failures.for_each(|failed| failed.store(false, Ordering::Release));
        let mut state = replica.state.lock();
        state.candidates.clear();
        state.held = EpochQueue::default();
        Ok(())
    }

    fn abandon(&self) {
        let mut state = self.replica.state.lock();
        state.session = false;
        state.candidates.clear();
        state.held = EpochQueue::default();
        self.replica.bell.notify_all();
    }
}
