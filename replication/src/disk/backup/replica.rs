//! The state that the threads of a backup share, and operations on the journal and the images.
//!
//! What must not be done here: writing to an image what is not durable in the journal, or is not
//! committed in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::journal::{JournalFile, Record};
use super::replay::{Replay, plan};
use crate::core::disk::{Digest, DiskWrite, PairId, What, decode_batch};
use crate::disk::digest::DigestKey;
use crate::disk::epoch_writes::EpochWrites;
use crate::disk::image::map::DirtyMap;
use crate::disk::image::{Drive, Drives, shared};
use crate::disk::place::{JournalId, Place, START};
use crate::disk::{DiskError, DiskLimits};
use crate::epoch_queue::EpochQueue;
use crate::files::HostFiles;
use crate::ids::EpochId;
use crate::ports::disks::{Completion, EpochToPersist};

/// A synchronisation flushes its writes in steps of this size, so that little is left at its end.
pub(super) const SYNC_FLUSH_BYTES: u64 = 64 << 20;
/// Pause between attempts to take a lock that another process holds.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// What a file of the journal holds.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) end: u64,
    pub(super) first: Option<EpochId>,
    pub(super) last: Place,
    pub(super) since: Option<Instant>,
    /// It has records that may not survive a loss of power.
    pub(super) is_unsynced: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) stop: bool,
    /// A copy is being made or kept.
    pub(super) session: bool,
    /// For each disk: the pair it will belong to once the copy is whole. Empty afterwards.
    pub(super) candidates: Vec<PairId>,
    pub(super) committed: EpochId,
    pub(super) job: Option<(EpochToPersist, Completion)>,
    pub(super) persisting: bool,
    /// The journal is to be made durable.
    pub(super) flush: Option<Completion>,
    pub(super) flushing: bool,
    pub(super) journal: Option<[JournalFile; 2]>,
    pub(super) slots: [Slot; 2],
    /// The file that collects records.
    pub(super) active: usize,
    pub(super) destaging: bool,
    /// The last record written.
    pub(super) last: Place,
    /// The one before it.
    pub(super) before_last: Place,
    /// The last record on the images.
    pub(super) applied: Place,
    /// The last record that the journal or the images hold durably.
    pub(super) synced: Place,
    pub(super) needs_room: bool,
    /// Writes of shared disks that the primary has not reported as durable.
    pub(super) held: EpochQueue<EpochWrites>,
    pub(super) failed: Option<String>,
    pub(super) unflushed_bytes: u64,
    /// For each disk, in this session.
    pub(super) keys: Vec<DigestKey>,
    /// What checks have found, in order, and nobody has taken: whether each found a difference.
    pub(super) compared: VecDeque<bool>,
}

impl State {
    /// Whether a thread has something to do, or is at it.
    fn is_busy(&self) -> bool {
        let persists = self.job.is_some() || self.persisting;
        persists || self.flush.is_some() || self.flushing || self.destaging
    }

    /// Why nothing more can be kept.
    pub(super) fn refusal(&self) -> Option<DiskError> {
        match &self.failed {
            Some(failed) => Some(DiskError::Failed(failed.clone())),
            None if !self.session => Some(given_up()),
            None => None,
        }
    }

    /// A copy that was given up has not failed: whoever asks for more of it is told why there is none.
    pub(super) fn note_failure(&mut self, done: &Result<(), DiskError>) {
        if let (Err(error), true) = (done, self.session) {
            self.failed.get_or_insert(error.to_string());
        }
    }
}

pub(super) struct Replica {
    pub(super) drives: Drives,
    pub(super) sizes: Vec<u64>,
    /// Checksum that distinguishes these disks from others.
    pub(super) sum: u32,
    pub(super) limits: DiskLimits,
    pub(super) journal_path: Option<PathBuf>,
    pub(super) files: Arc<dyn HostFiles>,
    pub(super) state: Mutex<State>,
    pub(super) bell: Condvar,
    /// Checks are skipped: somebody waits for the images.
    pub(super) hurry: AtomicBool,
}

/// Nothing of this session is kept any more.
pub(super) fn given_up() -> DiskError {
    DiskError::Failed("the copy of the disks was given up".into())
}

impl Replica {
    pub(super) fn new(
        drives: Drives,
        limits: DiskLimits,
        journal_path: Option<PathBuf>,
        files: Arc<dyn HostFiles>,
    ) -> Self {
        let mut sum = crc32fast::Hasher::new();
        for drive in drives.iter() {
            sum.update(drive.name.as_bytes());
            sum.update(&drive.storage.bytes().to_le_bytes());
            sum.update(&[u8::from(drive.is_shared()), 0]);
        }
        Self {
            sizes: drives.iter().map(|drive| drive.storage.bytes()).collect(),
            drives,
            sum: sum.finalize(),
            limits,
            journal_path,
            files,
            state: Mutex::default(),
            bell: Condvar::new(),
            hurry: AtomicBool::new(false),
        }
    }

    /// Waits until all threads are idle and returns the state. They stay idle while the guard is
    /// held. Checks that they still have to do are not done.
    pub(super) fn idle(&self) -> MutexGuard<'_, State> {
        self.hurry.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        while state.is_busy() {
            self.bell.wait(&mut state);
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

    /// The left-over files, if there are any.
    ///
    /// # Errors
    /// If a map says that its image needs a journal, and these are not its files.
    pub(super) fn existing_files(&self) -> Result<Vec<JournalFile>, DiskError> {
        let mut files = Vec::new();
        let mut missing = None;
        for path in self.paths().into_iter().flatten() {
            match JournalFile::open_existing(&*self.files, &path, self.sum)? {
                Some(file) => files.push(file),
                None => missing = Some(path),
            }
        }
        let id = files.iter().find_map(|file| file.id);
        for file in &mut files {
            // A header may be torn.
            file.id = file.id.or(id);
        }
        for drive in self.drives.iter() {
            let Some(map) = &drive.map else { continue };
            let Some(wanted) = map.lock().journal() else {
                continue;
            };
            let other = files.iter().find(|file| file.id != Some(wanted));
            if let Some(journal) = missing.clone().or(other.map(|file| file.path.clone())) {
                return Err(DiskError::JournalMissing {
                    disk: drive.name.clone(),
                    map: drive.map_path.clone(),
                    journal,
                });
            }
        }
        Ok(files)
    }

    /// Empties the journal and returns it as a new one. Its content must be on the images already.
    pub(super) fn fresh_journal(
        &self,
        id: JournalId,
    ) -> Result<Option<[JournalFile; 2]>, DiskError> {
        let Some([first, second]) = self.paths() else {
            return Ok(None);
        };
        let open = |path| {
            let mut file = JournalFile::open(&*self.files, path, self.sum)?;
            file.renew(id)?;
            Ok::<_, DiskError>(file)
        };
        Ok(Some([open(first)?, open(second)?]))
    }

    /// Looks through a left-over journal, and checks that the images can be brought to where the
    /// maps say they must be.
    pub(super) fn plan<'a>(
        &self,
        files: &'a [JournalFile],
        limit: EpochId,
    ) -> Result<Replay<'a>, DiskError> {
        let needed = self.maps().map(|map| map.lock().must_reach()).max();
        let plan = plan(files, limit, needed.unwrap_or(START))?;
        for drive in self.drives.iter().filter(|_| !plan.is_empty()) {
            let Some(map) = &drive.map else { continue };
            if let Some(why) = map.lock().distrust() {
                return Err(DiskError::ImageReplaced {
                    disk: drive.name.clone(),
                    map: drive.map_path.clone(),
                    why: why.to_owned(),
                });
            }
        }
        Ok(plan)
    }

    fn maps(&self) -> impl Iterator<Item = &Mutex<DirtyMap>> {
        self.drives.iter().filter_map(|drive| drive.map.as_ref())
    }

    /// From now on, the images may be used only once the journal has brought them to `place`. Its
    /// files must be durable.
    pub(super) fn must_reach(&self, place: Place) -> Result<(), DiskError> {
        self.maps().try_for_each(|map| map.lock().require(place))
    }

    /// The images need no journal any more.
    pub(super) fn journal_is_done(&self) -> Result<(), DiskError> {
        self.maps().try_for_each(|map| map.lock().journal_done())
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
                self.apply(&write)?;
            }
        }
        Ok(())
    }

    /// Applies a write to its image, unless that is shared.
    pub(super) fn apply(&self, write: &DiskWrite) -> Result<(), DiskError> {
        let drive = &self.drives[usize::from(write.disk)];
        match &write.what {
            What::Check { bytes, digest } => self.compare(drive, write.offset, *bytes, digest),
            _ if drive.is_shared() => Ok(()),
            _ => drive.apply(write),
        }
    }

    /// Does a check. All earlier writes are on the image.
    fn compare(
        &self,
        drive: &Drive,
        offset: u64,
        bytes: u64,
        digest: &Digest,
    ) -> Result<(), DiskError> {
        if drive.is_shared() {
            return Err(DiskError::PeerDiffers {
                what: format!("a check of disk {}, which is shared", drive.name),
            });
        }
        if self.hurry.load(Ordering::Relaxed) {
            return Ok(());
        }
        let key = self
            .state
            .lock()
            .keys
            .get(usize::from(drive.number))
            .cloned();
        // In a replay there is nobody to tell.
        let Some(key) = key else { return Ok(()) };
        let differs = key.differs(&*drive.storage, offset, bytes, digest);
        self.state.lock().compared.push_back(differs);
        Ok(())
    }

    /// Applies writes to shared images, durably.
    pub(super) fn write_for_good(&self, writes: &[DiskWrite]) -> Result<(), DiskError> {
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

    /// Whether a flush of a replicated image has failed since the copy began.
    pub(super) fn has_lost_a_flush(&self) -> bool {
        let mut replicated = self.drives.iter().filter(|drive| !drive.is_shared());
        replicated.any(|drive| drive.flush_failed.load(Ordering::Acquire))
    }

    /// A copy begins, of all that may be lost.
    pub(super) fn forget_lost_flushes(&self) {
        let replicated = self.drives.iter().filter(|drive| !drive.is_shared());
        replicated.for_each(|drive| drive.flush_failed.store(false, Ordering::Release));
    }

    pub(super) fn replay(&self, files: &[JournalFile], limit: EpochId) -> Result<(), DiskError> {
        let plan = self.plan(files, limit)?;
        plan.run(|record| self.apply_record(record), || self.flush(false))
    }

    /// The copy is whole. Makes it durable, and then records that in its maps.
    pub(super) fn finish(&self, pairs: &[PairId]) -> Result<(), DiskError> {
        if pairs.is_empty() {
            return Ok(());
        }
        self.flush(false)?;
        for (drive, pair) in self.drives.iter().zip(pairs) {
            if let Some(map) = &drive.map {
                map.lock().finish_copy(*pair)?;
                drive.replace.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    pub(super) fn lock_shared(
        &self,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), DiskError> {
        for drive in shared(&self.drives) {
            while !drive.try_lock()? {
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
