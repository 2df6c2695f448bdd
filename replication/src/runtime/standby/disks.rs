//! The standby's disks thread. It does everything about disks that waits for storage, in order, so
//! that the driver's heartbeats do not wait for it.
//!
//! Must not be done here: deciding anything, and keeping more in memory than [`QUEUED_BYTES_MAX`]
//! and one batch (the driver stops reading from the link before that).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::causes::causes;
use crate::core::disk::{DiskSyncPlan, PeerDisk};
use crate::core::message::ANSWERS_MAX;
use crate::ids::EpochId;
use crate::ports::disks::{Completion, EpochToPersist, History};
use crate::ports::{BackupDisks, DiskError};
use crate::runtime::RuntimeError;

/// If this much waits to be written, the driver reads no more from the link.
const QUEUED_BYTES_MAX: u64 = 16 << 20;

/// What a queued batch of the copy counts in addition to its bytes, so that tiny ones are bounded
/// too.
const BATCH_OVERHEAD_BYTES: u64 = 256;

/// If this many jobs wait, no new session begins: each costs two.
const QUEUED_JOBS_MAX: u64 = 32;

/// What the driver asks for.
enum DiskJob {
    Abandon,
    Describe,
    BeginCopy(Vec<DiskSyncPlan>, History),
    Sync(Bytes),
    Persist(u64, EpochToPersist),
    Flush(u64, EpochId),
}

/// What the thread tells the driver.
pub(super) enum DiskEvent {
    /// The disks as they are now.
    Described(Vec<PeerDisk>),
    /// The copy has begun. From now on, what is durable belongs to this session.
    Copying,
    Persisted {
        ticket: u64,
        outcome: Result<(), String>,
    },
    Flushed {
        ticket: u64,
        outcome: Result<(), String>,
    },
    /// All queued batches of the copy are written.
    Idle,
    /// Checks of the copy are done.
    Compared,
    Failed(String),
}

/// The driver's end of the thread.
pub(super) struct DiskThread {
    pub(super) disks: Arc<dyn BackupDisks>,
    jobs: std::sync::mpsc::Sender<(u64, DiskJob)>,
    events: UnboundedReceiver<(u64, DiskEvent)>,
    backlog: Arc<Backlog>,
    /// Whether the copy of this session has begun.
    copying: bool,
    /// Whether it was said that the copy has failed.
    failure_told: bool,
}

/// How far the thread is behind the driver. Both use this.
#[derive(Default)]
struct Backlog {
    /// Number of the present copy. Jobs of an earlier copy are skipped.
    copy: AtomicU64,
    queued_bytes: AtomicU64,
    queued_jobs: AtomicU64,
}

impl DiskThread {
    pub(super) fn start(disks: Arc<dyn BackupDisks>) -> Result<Self, RuntimeError> {
        let (jobs, queued) = std::sync::mpsc::channel();
        let (sender, events) = unbounded_channel();
        let backlog = Arc::new(Backlog::default());
        let worker = Worker {
            disks: disks.clone(),
            events: sender,
            backlog: Arc::clone(&backlog),
        };
        std::thread::Builder::new()
            .name("disks".into())
            .spawn(move || worker.run(&queued))
            .map_err(|source| RuntimeError::System {
                what: "start a thread",
                source,
            })?;
        Ok(Self {
            disks,
            jobs,
            events,
            backlog,
            copying: false,
            failure_told: false,
        })
    }

    fn queue(&self, job: DiskJob) {
        let copy = self.backlog.copy.load(Ordering::Acquire);
        self.backlog.queued_jobs.fetch_add(1, Ordering::AcqRel);
        // The thread ends only after `self`, or by a panic, which `event` finds.
        let _ = self.jobs.send((copy, job));
    }

    /// Gives the copy up; [`DiskThread::describe`] says what is left of it.
    pub(super) fn abandon(&mut self) {
        self.next_copy();
        self.queue(DiskJob::Abandon);
    }

    /// Asks for [`DiskEvent::Described`], for a new session.
    pub(super) fn describe(&mut self) {
        self.next_copy();
        self.queue(DiskJob::Describe);
    }

    fn next_copy(&mut self) {
        self.backlog.copy.fetch_add(1, Ordering::AcqRel);
        self.copying = false;
        self.failure_told = false;
    }

    pub(super) fn begin_copy(&self, plan: Vec<DiskSyncPlan>, history: History) {
        self.queue(DiskJob::BeginCopy(plan, history));
    }

    pub(super) fn sync(&self, batch: Bytes) {
        let bytes = queued_bytes(&batch);
        self.backlog.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.queue(DiskJob::Sync(batch));
    }

    pub(super) fn persist(&self, ticket: u64, epoch: EpochToPersist) {
        self.queue(DiskJob::Persist(ticket, epoch));
    }

    pub(super) fn flush(&self, ticket: u64, epoch: EpochId) {
        self.queue(DiskJob::Flush(ticket, epoch));
    }

    /// Whether so much waits that no more may be read from the link.
    pub(super) fn is_full(&self) -> bool {
        self.backlog.queued_bytes.load(Ordering::Acquire) >= QUEUED_BYTES_MAX
    }

    /// Whether so many jobs wait that no new session may begin.
    pub(super) fn is_behind(&self) -> bool {
        self.backlog.queued_jobs.load(Ordering::Acquire) >= QUEUED_JOBS_MAX
    }

    /// The last epoch of this session that is durable on the images.
    pub(super) fn durable_epoch(&self) -> EpochId {
        if self.copying {
            self.disks.durable_epoch()
        } else {
            EpochId(0)
        }
    }

    /// What the next checks of this session have found, if any are done.
    pub(super) fn compared(&self) -> Option<Vec<bool>> {
        if !self.copying {
            return None;
        }
        let differ = self.disks.take_compared(ANSWERS_MAX);
        (!differ.is_empty()).then_some(differ)
    }

    /// Why the copy of this session cannot be kept, said once.
    pub(super) fn failure(&mut self) -> Option<DiskEvent> {
        if !self.copying || self.failure_told {
            return None;
        }
        let failure = self.disks.failure().map(DiskEvent::Failed);
        self.failure_told = failure.is_some();
        failure
    }

    /// Waits for the next event of the present copy. Cancel safe.
    pub(super) async fn event(&mut self) -> Result<DiskEvent, RuntimeError> {
        loop {
            let (copy, event) = self
                .events
                .recv()
                .await
                .ok_or(RuntimeError::Panicked("disks"))?;
            if copy != self.backlog.copy.load(Ordering::Acquire) {
                continue;
            }
            self.copying |= matches!(event, DiskEvent::Copying);
            return Ok(event);
        }
    }
}

fn queued_bytes(batch: &Bytes) -> u64 {
    batch.len() as u64 + BATCH_OVERHEAD_BYTES
}

/// What the thread owns.
struct Worker {
    disks: Arc<dyn BackupDisks>,
    events: UnboundedSender<(u64, DiskEvent)>,
    backlog: Arc<Backlog>,
}

impl Worker {
    fn run(self, jobs: &std::sync::mpsc::Receiver<(u64, DiskJob)>) {
        while let Ok((copy, job)) = jobs.recv() {
            self.backlog.queued_jobs.fetch_sub(1, Ordering::AcqRel);
            if let DiskJob::Sync(batch) = &job {
                // Even if the job is skipped.
                let bytes = queued_bytes(batch);
                self.backlog.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            }
            let outdated = copy != self.backlog.copy.load(Ordering::Acquire);
            if outdated && !matches!(job, DiskJob::Abandon) {
                continue;
            }
            if let Err(error) = self.work(copy, job) {
                self.tell(copy, DiskEvent::Failed(causes(&error)));
            }
        }
    }

    fn tell(&self, copy: u64, event: DiskEvent) {
        // Fails only if the driver is gone.
        let _ = self.events.send((copy, event));
    }

    fn work(&self, copy: u64, job: DiskJob) -> Result<(), DiskError> {
        match job {
            DiskJob::Abandon => self.disks.abandon(),
            DiskJob::Describe => {
                let disks = self.disks.describe()?;
                self.tell(copy, DiskEvent::Described(disks));
            }
            DiskJob::BeginCopy(plan, history) => {
                self.disks.learn(&history);
                self.disks.begin_copy(&plan)?;
                self.tell(copy, DiskEvent::Copying);
            }
            DiskJob::Sync(batch) => {
                let compared = self.disks.apply_sync(&batch)?;
                // The driver may be waiting for room.
                if self.backlog.queued_bytes.load(Ordering::Acquire) == 0 {
                    self.tell(copy, DiskEvent::Idle);
                }
                if compared {
                    self.tell(copy, DiskEvent::Compared);
                }
            }
            DiskJob::Persist(ticket, epoch) => {
                let tell = move |outcome| DiskEvent::Persisted { ticket, outcome };
                self.disks.persist(epoch, self.told_by(copy, tell));
            }
            DiskJob::Flush(ticket, epoch) => {
                let tell = move |outcome| DiskEvent::Flushed { ticket, outcome };
                self.disks.flush(epoch, self.told_by(copy, tell));
            }
        }
        Ok(())
    }

    /// Tells the driver how something ended.
    fn told_by(
        &self,
        copy: u64,
        event: impl FnOnce(Result<(), String>) -> DiskEvent + Send + 'static,
    ) -> Completion {
        let events = self.events.clone();
        Box::new(move |outcome| {
            let outcome = outcome.map_err(|error| causes(&error));
            // Fails only if the driver is gone.
            let _ = events.send((copy, event(outcome)));
        })
    }
}
