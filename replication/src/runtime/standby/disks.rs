//! The standby's disks thread: everything about disks that waits for storage, in order, so that the
//! driver's signs of life do not wait for it.
//!
//! Must not be done here: deciding anything, or having more in memory than [`QUEUED_BYTES_MAX`] and one
//! batch (the driver stops reading from the link before).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::core::disk::{DiskSyncPlan, PeerDisk};
use crate::disk::{DiskError, DiskSet};
use crate::ids::{EpochId, Generation};
use crate::runtime::RuntimeError;
use crate::runtime::arbitration::causes;

/// With so much waiting to be written, nothing more is read from the link.
const QUEUED_BYTES_MAX: u64 = 16 << 20;

/// What the driver asks for.
enum Command {
    Abandon,
    Describe,
    BeginCopy(Vec<DiskSyncPlan>),
    Sync(Bytes),
    Persist(Persist),
}

/// An epoch's disk writes to be made safe.
pub(super) struct Persist {
    pub(super) ticket: u64,
    pub(super) generation: Generation,
    pub(super) epoch: EpochId,
    pub(super) batches: Vec<Bytes>,
    pub(super) flush: bool,
    pub(super) written_through: EpochId,
}

/// What the thread tells the driver.
pub(super) enum Report {
    /// The disks as they are now.
    Described(Vec<PeerDisk>),
    /// The copy has begun: what is durable is of this session from now on.
    Copying,
    Persisted {
        ticket: u64,
        outcome: Result<(), String>,
    },
    /// Everything asked for is written.
    Idle,
    Failed(String),
}

/// The driver's end of the thread.
pub(super) struct Disks {
    pub(super) set: DiskSet,
    commands: std::sync::mpsc::Sender<(u64, Command)>,
    reports: UnboundedReceiver<(u64, Report)>,
    shared: Arc<Shared>,
    /// Whether the copy of this session has begun.
    copying: bool,
}

/// What both threads look at.
#[derive(Default)]
struct Shared {
    /// Number of the copy being made: what was asked for an earlier one is left undone.
    copy: AtomicU64,
    queued_bytes: AtomicU64,
}

impl Disks {
    pub(super) fn start(set: DiskSet) -> Result<Self, RuntimeError> {
        let (commands, commanded) = std::sync::mpsc::channel();
        let (reporting, reports) = unbounded_channel();
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            set: set.clone(),
            reports: reporting,
            shared: Arc::clone(&shared),
        };
        std::thread::Builder::new()
            .name("disks".into())
            .spawn(move || worker.run(&commanded))
            .map_err(|source| RuntimeError::System {
                what: "start a thread",
                source,
            })?;
        Ok(Self {
            set,
            commands,
            reports,
            shared,
            copying: false,
        })
    }

    fn ask(&self, command: Command) {
        let copy = self.shared.copy.load(Ordering::Acquire);
        // The thread ends only after this, or by a panic, which `report` finds.
        let _ = self.commands.send((copy, command));
    }

    /// The copy is given up; [`Disks::describe`] says what is left of it.
    pub(super) fn abandon(&mut self) {
        self.next_copy();
        self.ask(Command::Abandon);
    }

    /// Asks for [`Report::Described`], for a new session.
    pub(super) fn describe(&mut self) {
        self.next_copy();
        self.ask(Command::Describe);
    }

    fn next_copy(&mut self) {
        self.shared.copy.fetch_add(1, Ordering::AcqRel);
        self.copying = false;
    }

    pub(super) fn begin_copy(&self, plan: Vec<DiskSyncPlan>) {
        self.ask(Command::BeginCopy(plan));
    }

    pub(super) fn sync(&self, batch: Bytes) {
        let bytes = batch.len() as u64;
        self.shared.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.ask(Command::Sync(batch));
    }

    pub(super) fn persist(&self, persist: Persist) {
        self.ask(Command::Persist(persist));
    }

    /// Whether so much waits that nothing more may be read from the link.
    pub(super) fn is_full(&self) -> bool {
        self.shared.queued_bytes.load(Ordering::Acquire) >= QUEUED_BYTES_MAX
    }

    /// The last epoch of this session that is on the images for good.
    pub(super) fn durable_epoch(&self) -> EpochId {
        if self.copying {
            self.set.durable_epoch()
        } else {
            EpochId(0)
        }
    }

    /// Waits for the next report on the present copy. Cancel safe.
    pub(super) async fn report(&mut self) -> Result<Report, RuntimeError> {
        loop {
            let (copy, report) = self
                .reports
                .recv()
                .await
                .ok_or(RuntimeError::Panicked("disks"))?;
            if copy != self.shared.copy.load(Ordering::Acquire) {
                continue;
            }
            self.copying |= matches!(report, Report::Copying);
            return Ok(report);
        }
    }
}

/// The thread's own.
struct Worker {
    set: DiskSet,
    reports: UnboundedSender<(u64, Report)>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(self, commands: &std::sync::mpsc::Receiver<(u64, Command)>) {
        while let Ok((copy, command)) = commands.recv() {
            if let Command::Sync(batch) = &command {
                // Also what is left undone.
                let bytes = batch.len() as u64;
                self.shared.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            }
            let outdated = copy != self.shared.copy.load(Ordering::Acquire);
            if outdated && !matches!(command, Command::Abandon) {
                continue;
            }
            if let Err(error) = self.obey(copy, command) {
                self.tell(copy, Report::Failed(causes(&error)));
            }
        }
    }

    fn tell(&self, copy: u64, report: Report) {
        // Without a driver nobody waits.
        let _ = self.reports.send((copy, report));
    }

    fn obey(&self, copy: u64, command: Command) -> Result<(), DiskError> {
        match command {
            Command::Abandon => self.set.abandon(),
            Command::Describe => {
                let disks = self.set.describe()?;
                self.tell(copy, Report::Described(disks));
            }
            Command::BeginCopy(plan) => {
                self.set.begin_copy(&plan)?;
                self.tell(copy, Report::Copying);
            }
            Command::Sync(batch) => {
                self.set.apply_sync(&batch)?;
                // Room may be what the driver waits for.
                if self.shared.queued_bytes.load(Ordering::Acquire) == 0 {
                    self.tell(copy, Report::Idle);
                }
            }
            Command::Persist(persist) => self.persist(copy, persist),
        }
        Ok(())
    }

    fn persist(&self, copy: u64, persist: Persist) {
        let (reports, ticket) = (self.reports.clone(), persist.ticket);
        let done = move |outcome: Result<(), DiskError>| {
            let outcome = outcome.map_err(|error| causes(&error));
            // Without a driver nobody waits.
            let _ = reports.send((copy, Report::Persisted { ticket, outcome }));
        };
        self.set.persist(
            persist.generation,
            persist.epoch,
            persist.batches,
            persist.flush,
            persist.written_through,
            Box::new(done),
        );
    }
}
