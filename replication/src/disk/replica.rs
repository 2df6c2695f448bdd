//! The backup's side: an epoch's writes go to the journal, from there to the images.
//!
//! Two threads: one appends to the journal (`persist`), one brings the file that is not written to the images
//! (`destage`). What must not be done here: touching an
//! image with what is not durable in the journal, or is not committed in memory.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::desk::join;
use super::device::{Drive, lock};
use super::epoch_writes::EpochWrites;
use super::files::HostFiles;
use super::journal::{FILE_HEADER_BYTES, JournalFile, Place, Record, START, replay};
use super::{DiskError, DiskLimits, Done};
use crate::core::disk::{DiskSyncPlan, DiskWrite, PairId, decode_batch};
use crate::epoch_queue::EpochQueue;
use crate::ids::EpochId;

/// What the synchronisation has written is made durable in steps of this size: little is left at its end.
pub(super) const SYNC_FLUSH_BYTES: u64 = 64 << 20;
/// How often a lock that somebody holds is tried.
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// How often shared storage is tried that refuses writes.
const SHARED_RETRY: Duration = Duration::from_millis(200);

/// An epoch to be persisted.
pub(super) struct Job {
    pub(super) place: Place,
    pub(super) batches: Vec<Bytes>,
    pub(super) flush: bool,
    pub(super) written_through: EpochId,
    pub(super) done: Done,
}

/// What a file of the journal holds.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) end: u64,
    pub(super) first: Option<EpochId>,
    pub(super) last: Place,
    pub(super) since: Option<Instant>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) stop: bool,
    /// A copy is being made or kept.
    pub(super) session: bool,
    /// For each disk: the pair it will belong to once the copy is whole. Empty afterwards.
    pub(super) candidates: Vec<PairId>,
    pub(super) committed: EpochId,
    pub(super) job: Option<Job>,
    pub(super) persisting: bool,
    pub(super) journal: Option<[JournalFile; 2]>,
    pub(super) slots: [Slot; 2],
    /// The file that collects.
    pub(super) active: usize,
    pub(super) destaging: bool,
    /// The last record written.
    pub(super) last: Place,
    /// The one before it.
    pub(super) before_last: Place,
    /// The last record on the images.
    pub(super) applied: Place,
    pub(super) needs_room: bool,
    /// Writes of shared disks that the primary has not reported written.
    pub(super) held: EpochQueue<EpochWrites>,
    pub(super) failed: Option<String>,
    pub(super) unflushed_bytes: u64,
}

pub(super) struct Shared {
    pub(super) drives: Vec<Arc<Drive>>,
    pub(super) sizes: Vec<u64>,
    /// Tells these disks from others.
    pub(super) sum: u32,
    pub(super) limits: DiskLimits,
    pub(super) journal_path: Option<PathBuf>,
    pub(super) files: Arc<dyn HostFiles>,
    pub(super) state: Mutex<State>,
    pub(super) bell: Condvar,
}

/// The backup's side of a set.
pub(super) struct Replica {
    shared: Arc<Shared>,
    threads: [Mutex<Option<JoinHandle<()>>>; 2],
}

impl Drop for Replica {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.bell.notify_all();
        self.threads.iter().for_each(join);
    }
}

impl Replica {
    pub(super) fn new(
        drives: Vec<Arc<Drive>>,
        limits: DiskLimits,
        journal_path: Option<PathBuf>,
        files: Arc<dyn HostFiles>,
    ) -> Self {
        let mut sum = crc32fast::Hasher::new();
        for drive in &drives {
            sum.update(drive.name.as_bytes());
            sum.update(&drive.storage.bytes().to_le_bytes());
            sum.update(&[u8::from(drive.is_shared()), 0]);
        }
        Self {
            shared: Arc::new(Shared {
                sizes: drives.iter().map(|drive| drive.storage.bytes()).collect(),
                drives,
                sum: sum.finalize(),
                limits,
                journal_path,
                files,
                state: Mutex::default(),
                bell: Condvar::new(),
            }),
            threads: [Mutex::new(None), Mutex::new(None)],
        }
    }

    /// Brings to the images what the journal has from an earlier copy or run.
    pub(super) fn recover(&self) -> Result<(), DiskError> {
        let shared = &self.shared;
        let mut state = shared.idle();
        let files = match &state.journal {
            Some(files) => files.to_vec(),
            None => shared.existing_files()?,
        };
        shared.replay(&files, EpochId(u64::MAX))?;
        state.slots = Default::default();
        state.failed = None;
        Ok(())
    }

    pub(super) fn begin_copy(&self, plan: &[DiskSyncPlan]) -> Result<(), DiskError> {
        self.recover()?;
        let shared = &self.shared;
        if plan.len() != shared.drives.len() {
            return Err(DiskError::PeerDiffers {
                what: format!(
                    "a plan for {} disks, here are {}",
                    plan.len(),
                    shared.drives.len()
                ),
            });
        }
        for (drive, plan) in shared.drives.iter().zip(plan) {
            let Some(map) = &drive.map else { continue };
            let mut map = lock(map);
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
        let journal = shared.fresh_journal()?;
        let mut state = shared.idle();
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
        let works = [
            ("disk-journal", Shared::journal_work as fn(&Shared)),
            ("disk-destage", Shared::destage_work),
        ];
        for (thread, (name, work)) in self.threads.iter().zip(works) {
            let mut thread = lock(thread);
            if thread.is_none() {
                let shared = self.shared.clone();
                let builder = std::thread::Builder::new().name(name.into());
                let spawned = builder.spawn(move || work(&shared));
                *thread = Some(spawned.expect("the host has room for one more thread"));
            }
        }
    }

    pub(super) fn apply_sync(&self, batch: &Bytes) -> Result<(), DiskError> {
        let shared = &self.shared;
        if lock(&shared.state).candidates.is_empty() {
            return Err(DiskError::Failed(
                "no copy of the disks is being made".into(),
            ));
        }
        let writes = shared.decode(EpochId(0), batch)?;
        let mut bytes = 0;
        for write in &writes {
            let drive = &shared.drives[usize::from(write.disk)];
            if !drive.is_shared() {
                drive.apply(write)?;
                bytes += write.memory_bytes();
            }
        }
        let mut state = lock(&shared.state);
        if let Some(failed) = &state.failed {
            return Err(DiskError::Failed(failed.clone()));
        }
        state.unflushed_bytes += bytes;
        if state.unflushed_bytes >= SYNC_FLUSH_BYTES {
            shared.bell.notify_all();
        }
        Ok(())
    }

    pub(super) fn check_batch(&self, batch: &Bytes) -> Result<u32, DiskError> {
        let checked = decode_batch(batch, &self.shared.sizes, |_| {});
        checked.map_err(|source| DiskError::Batch {
            epoch: EpochId(0),
            source,
        })
    }

    pub(super) fn persist(&self, job: Job) {
        let mut state = lock(&self.shared.state);
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
            return (job.done)(Err(DiskError::Failed(refused)));
        }
        state.job = Some(job);
        self.shared.bell.notify_all();
    }

    pub(super) fn committed(&self, epoch: EpochId) {
        let mut state = lock(&self.shared.state);
        state.committed = state.committed.max(epoch);
        if !state.candidates.is_empty() || state.slots[state.active].since.is_some() {
            self.shared.bell.notify_all();
        }
    }

    pub(super) fn durable_epoch(&self) -> EpochId {
        let state = lock(&self.shared.state);
        if !state.session || !state.candidates.is_empty() || state.failed.is_some() {
            return EpochId(0);
        }
        let waiting = state.slots.iter().filter_map(|slot| slot.first).min();
        let before = waiting.map_or(u64::MAX, |first| first.0.saturating_sub(1));
        EpochId(state.committed.0.min(before))
    }

    /// What has not reached the images, in bytes: of the journal, and in memory.
    pub(super) fn waiting_bytes(&self) -> (u64, u64) {
        let state = lock(&self.shared.state);
        let ends = state.slots.iter().map(|slot| slot.end);
        let journal = ends.map(|end| end.saturating_sub(FILE_HEADER_BYTES)).sum();
        (journal, state.held.bytes())
    }

    pub(super) fn promote(
        &self,
        epoch: EpochId,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), DiskError> {
        let shared = &self.shared;
        let mut state = shared.idle();
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
        let have = shared.replay(&files.unwrap_or_default(), epoch)?;
        if have < wanted {
            let (wanted, have) = (wanted.1, have.1);
            return Err(DiskError::WrongEpoch { wanted, have });
        }
        state.slots = Default::default();
        drop(state);
        shared.finish(&candidates)?;
        shared.lock_shared(waiting)?;
        // Storage that was lost and is back may tell once more of what was lost then. All that is not there for good
        // is still held, so it is written again from the beginning.
        while let Err(error) = shared.write_for_good(&due) {
            if !waiting(&format!(
                "its shared disks cannot be written, which is tried again and again: {error}"
            )) {
                return Err(error);
            }
            std::thread::sleep(SHARED_RETRY);
        }
        // What a flush lost before has been written once more.
        let failures = shared.drives.iter().map(|drive| &drive.flush_failed);
        failures.for_each(|failed| failed.store(false, Ordering::Release));
        let mut state = lock(&shared.state);
        state.candidates.clear();
        state.held = EpochQueue::default();
        Ok(())
    }

    pub(super) fn lock_shared(&self) -> Result<(), DiskError> {
        for drive in self.shared.drives.iter().filter(|drive| drive.is_shared()) {
            if !Shared::try_lock(drive)? {
                return Err(DiskError::Locked {
                    disk: drive.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// Makes sure that somebody else has the lock of every shared image.
    pub(super) fn find_locked(&self) -> Result<(), DiskError> {
        for drive in self.shared.drives.iter().filter(|drive| drive.is_shared()) {
            let locked = drive.storage.is_locked_by_other();
            if !locked.map_err(|error| drive.failed("look for a lock", 0, error))? {
                return Err(DiskError::NotLocked {
                    disk: drive.name.clone(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn abandon(&self) {
        let mut state = lock(&self.shared.state);
        state.session = false;
        state.candidates.clear();
        state.held = EpochQueue::default();
        self.shared.bell.notify_all();
    }
}

impl Shared {
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.bell
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The state once neither thread does anything. As long as it is kept, neither begins to.
    fn idle(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        while state.job.is_some() || state.persisting || state.destaging {
            state = self.wait(state);
        }
        state
    }

    fn paths(&self) -> Option<[PathBuf; 2]> {
        let path = self.journal_path.as_ref()?;
        Some(["0", "1"].map(|number| {
            let mut path = path.clone().into_os_string();
            path.push(".");
            path.push(number);
            path.into()
        }))
    }

    fn existing_files(&self) -> Result<Vec<JournalFile>, DiskError> {
        let open = |path| JournalFile::open_existing(&*self.files, path, self.sum).transpose();
        self.paths()
            .iter()
            .flatten()
            .filter_map(|path| open(path))
            .collect()
    }

    /// The journal, empty and at its beginning. It is on the images already.
    fn fresh_journal(&self) -> Result<Option<[JournalFile; 2]>, DiskError> {
        let Some([first, second]) = self.paths() else {
            return Ok(None);
        };
        let open = |path| {
            let file = JournalFile::open(&*self.files, path, self.sum)?;
            file.empty(START)?;
            Ok::<_, DiskError>(file)
        };
        Ok(Some([open(first)?, open(second)?]))
    }

    pub(super) fn decode(
        &self,
        epoch: EpochId,
        batch: &Bytes,
    ) -> Result<Vec<DiskWrite>, DiskError> {
        let mut writes = Vec::new();
        decode_batch(batch, &self.sizes, |write| writes.push(write))
            .map_err(|source| DiskError::Batch { epoch, source })?;
        Ok(writes)
    }

    pub(super) fn apply_record(&self, record: &Record) -> Result<(), DiskError> {
        for batch in &record.batches {
            for write in self.decode(record.place.1, batch)? {
                let drive = &self.drives[usize::from(write.disk)];
                if !drive.is_shared() {
                    drive.apply(&write)?;
                }
            }
        }
        Ok(())
    }

    /// Makes writes on shared images, for good.
    fn write_for_good(&self, writes: &[DiskWrite]) -> Result<(), DiskError> {
        for write in writes {
            self.drives[usize::from(write.disk)].apply(write)?;
        }
        self.flush(true)
    }

    pub(super) fn flush(&self, shared: bool) -> Result<(), DiskError> {
        let mut drives = self
            .drives
            .iter()
            .filter(|drive| drive.is_shared() == shared);
        drives.try_for_each(|drive| drive.flush())
    }

    fn replay(&self, files: &[JournalFile], limit: EpochId) -> Result<Place, DiskError> {
        replay(
            files,
            limit,
            |record| self.apply_record(record),
            || self.flush(false),
        )
    }

    /// The copy is whole: durably, and then its maps say so.
    pub(super) fn finish(&self, pairs: &[PairId]) -> Result<(), DiskError> {
        if pairs.is_empty() {
            return Ok(());
        }
        self.flush(false)?;
        for (drive, pair) in self.drives.iter().zip(pairs) {
            if let Some(map) = &drive.map {
                lock(map).finish_copy(*pair)?;
            }
        }
        Ok(())
    }

    fn try_lock(drive: &Drive) -> Result<bool, DiskError> {
        let locked = drive.storage.lock();
        locked.map_err(|error| drive.failed("lock", 0, error))
    }

    fn lock_shared(&self, waiting: &mut dyn FnMut(&str) -> bool) -> Result<(), DiskError> {
        for drive in self.drives.iter().filter(|drive| drive.is_shared()) {
            while !Self::try_lock(drive)? {
                let wait_on = waiting(&format!(
                    "the shared image of disk {} is still locked by the old primary: waiting until that \
                     process ends or the storage takes its lock away",
                    drive.name
                ));
                if !wait_on {
                    let disk = drive.name.clone();
                    return Err(DiskError::NotWaited { disk });
                }
                std::thread::sleep(LOCK_RETRY);
            }
        }
        Ok(())
    }
}
