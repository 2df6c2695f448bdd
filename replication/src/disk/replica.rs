//! The backup's side: an epoch's writes go to the journal, from there to the images.
//!
//! Two threads: one appends to the journal (and with that decides when an epoch may be acknowledged), one
//! *destages*: it brings the file that is not written to the images. What must not be done here: touching an
//! image with what is not durable in the journal, or is not committed in memory.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::desk::join;
use super::device::{Drive, lock};
use super::files::HostFiles;
use super::journal::{FILE_HEADER_BYTES, JournalFile, Place, Record, START, replay};
use super::{DiskError, DiskLimits, Done};
use crate::core::disk::{DiskSyncPlan, DiskWrite, PairId, decode_batch};
use crate::ids::EpochId;

/// What the synchronisation has written is made durable in steps of this size: little is left at its end.
const SYNC_FLUSH_BYTES: u64 = 64 << 20;
/// How often a lock that somebody holds is tried.
const LOCK_RETRY: Duration = Duration::from_millis(50);

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
struct Slot {
    end: u64,
    first: Option<EpochId>,
    last: Place,
    since: Option<Instant>,
}

#[derive(Default)]
struct State {
    stop: bool,
    /// A copy is being made or kept.
    session: bool,
    /// For each disk: the pair it will belong to once the copy is whole. Empty afterwards.
    candidates: Vec<PairId>,
    committed: EpochId,
    job: Option<Job>,
    persisting: bool,
    journal: Option<[JournalFile; 2]>,
    slots: [Slot; 2],
    /// The file that collects.
    active: usize,
    destaging: bool,
    /// The last record written.
    last: Place,
    /// The last record on the images.
    applied: Place,
    needs_room: bool,
    /// Writes of shared disks that the primary has not reported written.
    held: VecDeque<(EpochId, Vec<DiskWrite>)>,
    held_bytes: u64,
    failed: Option<String>,
    unflushed_bytes: u64,
}

struct Shared {
    drives: Vec<Arc<Drive>>,
    sizes: Vec<u64>,
    /// Tells these disks from others.
    sum: u32,
    limits: DiskLimits,
    journal_path: Option<PathBuf>,
    files: Arc<dyn HostFiles>,
    state: Mutex<State>,
    bell: Condvar,
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

/// What the destaging thread does next.
struct Destage {
    /// The file, with its last record, if it has any.
    file: Option<(usize, JournalFile, Place)>,
    /// The copy is whole with this: the pairs the images belong to then.
    finish: Vec<PairId>,
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
        (journal, state.held_bytes)
    }

    pub(super) fn promote(
        &self,
        epoch: EpochId,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<(), DiskError> {
        let shared = &self.shared;
        let mut state = shared.idle();
        if state.applied.1 > epoch {
            return Err(DiskError::WrongEpoch {
                wanted: epoch,
                have: state.applied.1,
            });
        }
        // Nothing is destaged from here on.
        state.session = false;
        let files = state.journal.clone().map(|files| files.to_vec());
        let candidates = std::mem::take(&mut state.candidates);
        let held = std::mem::take(&mut state.held);
        state.held_bytes = 0;
        shared.replay(&files.unwrap_or_default(), epoch)?;
        state.slots = Default::default();
        drop(state);
        shared.finish(&candidates)?;
        shared.lock_shared(waiting)?;
        for write in held
            .iter()
            .take_while(|(at, _)| *at <= epoch)
            .flat_map(|(_, writes)| writes)
        {
            shared.drives[usize::from(write.disk)].apply(write)?;
        }
        shared.flush(true)
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

    pub(super) fn abandon(&self) {
        let mut state = lock(&self.shared.state);
        state.session = false;
        state.candidates.clear();
        state.held.clear();
        state.held_bytes = 0;
        self.shared.bell.notify_all();
    }
}

impl Shared {
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
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

    fn decode(&self, epoch: EpochId, batch: &Bytes) -> Result<Vec<DiskWrite>, DiskError> {
        let mut writes = Vec::new();
        decode_batch(batch, &self.sizes, |write| writes.push(write))
            .map_err(|source| DiskError::Batch { epoch, source })?;
        Ok(writes)
    }

    fn apply_record(&self, record: &Record) -> Result<(), DiskError> {
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

    fn flush(&self, shared: bool) -> Result<(), DiskError> {
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
    fn finish(&self, pairs: &[PairId]) -> Result<(), DiskError> {
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

    fn lock_shared(&self, waiting: &mut dyn FnMut(&str)) -> Result<(), DiskError> {
        for drive in self.drives.iter().filter(|drive| drive.is_shared()) {
            while !Self::try_lock(drive)? {
                waiting(&format!(
                    "the shared image of disk {} is still locked by the old primary: waiting until that \
                     process ends or the storage takes its lock away",
                    drive.name
                ));
                std::thread::sleep(LOCK_RETRY);
            }
        }
        Ok(())
    }

    // ---- the journal's thread ----

    fn journal_work(&self) {
        let mut state = lock(&self.state);
        while !state.stop {
            let Some(job) = state.job.take() else {
                state = self.wait(state);
                continue;
            };
            state.persisting = true;
            drop(state);
            let done = self.put_down(job.place, job.batches, job.flush, job.written_through);
            let mut now = lock(&self.state);
            now.persisting = false;
            if let Err(error) = &done {
                now.failed.get_or_insert(error.to_string());
            }
            drop(now);
            self.bell.notify_all();
            (job.done)(done);
            state = lock(&self.state);
        }
    }

    fn put_down(
        &self,
        place: Place,
        batches: Vec<Bytes>,
        flush: bool,
        written_through: EpochId,
    ) -> Result<(), DiskError> {
        let (mut held, mut journal) = (Vec::new(), false);
        for batch in &batches {
            for write in self.decode(place.1, batch)? {
                if self.drives[usize::from(write.disk)].is_shared() {
                    held.push(write);
                } else {
                    journal = true;
                }
            }
        }
        self.hold(place.1, held, written_through)?;
        if journal {
            self.append(place, batches)?;
        }
        if flush {
            // Both: what an earlier epoch wrote may be in the other file.
            let files = lock(&self.state).journal.clone();
            files.iter().flatten().try_for_each(JournalFile::sync)?;
        }
        Ok(())
    }

    fn hold(
        &self,
        epoch: EpochId,
        writes: Vec<DiskWrite>,
        through: EpochId,
    ) -> Result<(), DiskError> {
        let bytes_of = |writes: &[DiskWrite]| writes.iter().map(DiskWrite::memory_bytes).sum();
        let more: u64 = bytes_of(&writes);
        let mut state = lock(&self.state);
        while state.held.front().is_some_and(|(at, _)| *at <= through) {
            let freed = state
                .held
                .pop_front()
                .map_or(0, |(_, writes)| bytes_of(&writes));
            state.held_bytes -= freed;
        }
        // The primary holds as much as its log may, and this side what is not durable beside.
        let (bytes, limit) = (state.held_bytes + more, self.limits.log_bytes_max * 4);
        if bytes > limit {
            return Err(DiskError::TooMuch {
                epoch,
                bytes,
                limit,
            });
        }
        if !writes.is_empty() {
            state.held_bytes = bytes;
            state.held.push_back((epoch, writes));
        }
        Ok(())
    }

    fn append(&self, place: Place, batches: Vec<Bytes>) -> Result<(), DiskError> {
        let mut state = lock(&self.state);
        let mut record = Record {
            place,
            previous: state.last,
            batches,
        };
        let limit = self.limits.journal_bytes_max / 2;
        let bytes = record.bytes();
        if bytes > limit - FILE_HEADER_BYTES.min(limit) {
            return Err(DiskError::TooMuch {
                epoch: place.1,
                bytes,
                limit,
            });
        }
        while state.slots[state.active].end.max(FILE_HEADER_BYTES) + bytes > limit {
            if let Some(failed) = &state.failed {
                return Err(DiskError::Failed(failed.clone()));
            }
            if state.stop || !state.session {
                return Err(DiskError::Shut);
            }
            state.needs_room = true;
            self.bell.notify_all();
            state = self.wait(state);
        }
        let at = state.slots[state.active].end.max(FILE_HEADER_BYTES);
        let active = state.active;
        let Some(file) = state.journal.as_ref().map(|files| files[active].clone()) else {
            return Err(DiskError::Failed("there is no journal".into()));
        };
        // Only this thread puts records down, and the file is not changed while `last` is not its record.
        record.previous = state.last;
        state.slots[active].first.get_or_insert(place.1);
        state.slots[active].last = place;
        drop(state);
        file.append(&record, at)?;
        let mut state = lock(&self.state);
        let slot = &mut state.slots[active];
        slot.end = at + bytes;
        slot.since.get_or_insert_with(Instant::now);
        state.last = place;
        self.bell.notify_all();
        Ok(())
    }

    // ---- the destaging thread ----

    fn destage_work(&self) {
        let mut state = lock(&self.state);
        while !state.stop {
            if state.unflushed_bytes >= SYNC_FLUSH_BYTES {
                state.unflushed_bytes = 0;
                state = self.out_of_lock(state, |_| self.flush(false));
            } else if let Some(work) = self.next_destage(&mut state) {
                let applied = work.file.as_ref().map(|(_, _, last)| *last);
                state = self.out_of_lock(state, |_| self.destage(&work));
                if state.failed.is_none() {
                    if let Some((slot, ..)) = work.file {
                        state.slots[slot] = Slot::default();
                    }
                    state.applied = applied.unwrap_or(state.applied);
                    if !work.finish.is_empty() && state.candidates == work.finish {
                        state.candidates.clear();
                    }
                }
                self.bell.notify_all();
            } else {
                let since = state.slots[state.active].since;
                let due = since.map(|since| since + self.limits.destage_interval);
                let left = due.map(|due| due.saturating_duration_since(Instant::now()));
                // Due and yet nothing to do: it waits for a commit or a persist, which ring.
                state = match left.filter(|left| !left.is_zero()) {
                    Some(left) => {
                        let woken = self.bell.wait_timeout(state, left);
                        woken.unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.wait(state),
                };
            }
        }
    }

    fn out_of_lock<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        work: impl FnOnce(&Self) -> Result<(), DiskError>,
    ) -> MutexGuard<'a, State> {
        state.destaging = true;
        drop(state);
        let done = work(self);
        let mut state = lock(&self.state);
        state.destaging = false;
        if let Err(error) = done {
            let text = explain(&error);
            tracing::warn!(error = text, "the journal cannot be brought to the images");
            state.failed.get_or_insert(text);
        }
        self.bell.notify_all();
        state
    }

    fn next_destage(&self, state: &mut State) -> Option<Destage> {
        if !state.session || state.failed.is_some() || state.committed.0 == 0 {
            return None;
        }
        let finish = !state.candidates.is_empty();
        let slot = &state.slots[state.active];
        let Some(since) = slot.since else {
            // Nothing in the journal: at most the copy is to be declared whole.
            return finish.then(|| Destage {
                file: None,
                finish: state.candidates.clone(),
            });
        };
        let due = state.needs_room
            || finish
            || slot.end >= self.limits.destage_bytes
            || since.elapsed() >= self.limits.destage_interval;
        // A file that holds more than memory has must wait, for it is applied whole.
        if !due || slot.last.1 > state.committed || state.last != slot.last {
            return None;
        }
        let (active, last) = (state.active, slot.last);
        let file = state.journal.as_ref()?[active].clone();
        state.active = 1 - active;
        state.needs_room = false;
        state.slots[active].since = None;
        Some(Destage {
            file: Some((active, file, last)),
            finish: if finish {
                state.candidates.clone()
            } else {
                Vec::new()
            },
        })
    }

    fn destage(&self, work: &Destage) -> Result<(), DiskError> {
        if let Some((_, file, last)) = &work.file {
            // An image is touched only when what is being written is durable.
            file.sync()?;
            let (found, _) = file.walk(|record| self.apply_record(record))?;
            if found != Some(*last) {
                return Err(DiskError::Failed(format!(
                    "the journal {} has lost records",
                    file.path.display()
                )));
            }
            self.flush(false)?;
        }
        self.finish(&work.finish)?;
        if let Some((_, file, last)) = &work.file {
            file.empty(*last)?;
        }
        Ok(())
    }
}

/// An error with its causes, on one line.
fn explain(error: &DiskError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
