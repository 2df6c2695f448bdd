//! The thread of the side that runs the guest: what must not keep capture or driver waiting.
//!
//! It writes released epochs to shared images, in order, and clears marks in the maps. What must not be
//! done here: writing what was not released, or anything once the set is shut.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::device::{Common, Drive, lock};
use super::{DiskError, Done};
use crate::core::disk::DiskWrite;
use crate::ids::EpochId;

/// What is to be done. Bounded: the caller has one release under way, and the rest are single values.
#[derive(Default)]
struct Mail {
    release: Option<EpochId>,
    released: Vec<Done>,
    alone: Vec<Done>,
    durable: Option<EpochId>,
    /// The session to which `durable` and `release` belong.
    session: u64,
    stop: bool,
}

struct Shared {
    drives: Vec<Arc<Drive>>,
    common: Arc<Common>,
    mail: Mutex<Mail>,
    bell: Condvar,
    /// The session, and what shared images have of it durably.
    written_through: Mutex<(u64, EpochId)>,
    /// So much may be written to shared images without being made durable; the backup keeps it meanwhile.
    unsynced_bytes_max: u64,
}

/// The thread, begun when there is something to do.
pub(super) struct Desk {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Ends the thread when it goes.
pub(super) fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = lock(thread).take();
    // The last handle of a set may go in a `Done` that this very thread calls.
    if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
        // A thread that panicked has said so.
        let _ = thread.join();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        lock(&self.shared.mail).stop = true;
        self.shared.bell.notify_all();
        join(&self.thread);
    }
}

impl Desk {
    pub(super) fn new(
        drives: Vec<Arc<Drive>>,
        common: Arc<Common>,
        unsynced_bytes_max: u64,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                drives,
                common,
                mail: Mutex::default(),
                bell: Condvar::new(),
                written_through: Mutex::default(),
                unsynced_bytes_max,
            }),
            thread: Mutex::new(None),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut lock(&self.shared.mail));
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = self.shared.clone();
            let builder = std::thread::Builder::new().name("disk-desk".into());
            let spawned = builder.spawn(move || Clerk::new(shared).work());
            *thread = Some(spawned.expect("the host has room for one more thread"));
        }
        self.shared.bell.notify_all();
    }

    pub(super) fn release(&self, epoch: EpochId, done: Done) {
        self.tell(|mail| {
            mail.release = mail.release.max(Some(epoch));
            mail.released.push(done);
        });
    }

    pub(super) fn go_alone(&self, done: Done) {
        self.tell(|mail| mail.alone.push(done));
    }

    pub(super) fn durable(&self, epoch: EpochId) {
        self.tell(|mail| mail.durable = mail.durable.max(Some(epoch)));
    }

    /// A new session: epochs begin anew, and what is said of the last one's does not count for it.
    pub(super) fn begin_session(&self, session: u64) {
        let mut mail = lock(&self.shared.mail);
        mail.durable = None;
        mail.session = session;
        *lock(&self.shared.written_through) = (session, EpochId(0));
    }

    pub(super) fn written_through(&self) -> EpochId {
        lock(&self.shared.written_through).1
    }
}

/// What the thread knows.
struct Clerk {
    shared: Arc<Shared>,
    /// Disks that have been written and not flushed.
    unsynced: BTreeSet<u16>,
    unsynced_bytes: u64,
    /// A flush failed. The host may have forgotten what it could not write, so a later one proves nothing.
    failed: Option<String>,
}

impl Clerk {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            unsynced: BTreeSet::new(),
            unsynced_bytes: 0,
            failed: None,
        }
    }

    fn work(mut self) {
        while let Some(mut mail) = self.next() {
            if let Some(epoch) = mail.durable.take() {
                self.clear_marks(mail.session, epoch);
            }
            if let Some(epoch) = mail.release.take() {
                answer(mail.released, self.release(mail.session, epoch));
            }
            if !mail.alone.is_empty() {
                answer(mail.alone, self.go_alone());
            }
        }
    }

    fn next(&self) -> Option<Mail> {
        let mut mail = lock(&self.shared.mail);
        loop {
            let work = mail.release.is_some() || !mail.alone.is_empty() || mail.durable.is_some();
            if mail.stop {
                return None;
            }
            if work {
                let session = mail.session;
                return Some(std::mem::replace(
                    &mut *mail,
                    Mail {
                        session,
                        ..Mail::default()
                    },
                ));
            }
            mail = self
                .shared
                .bell
                .wait(mail)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn clear_marks(&self, session: u64, epoch: EpochId) {
        for drive in &self.shared.drives {
            let Some(map) = &drive.map else { continue };
            if !lock(map).may_clear(session, epoch) {
                continue;
            }
            // A block is equal on both sides only if a loss of power here cannot take it back either.
            let cleared = drive
                .flush()
                .and_then(|()| lock(map).durable(session, epoch));
            if let Err(error) = cleared {
                // The marks stay, which costs nothing but bytes at the next synchronisation.
                tracing::warn!(disk = drive.name, %error, "marks of written blocks stay");
            }
        }
    }

    fn release(&mut self, session: u64, epoch: EpochId) -> Result<(), DiskError> {
        self.write_held(epoch)?;
        let mut through = lock(&self.shared.written_through);
        if self.unsynced.is_empty() && through.0 == session {
            through.1 = through.1.max(epoch);
        }
        Ok(())
    }

    fn write_held(&mut self, epoch: EpochId) -> Result<(), DiskError> {
        let due = lock(&self.shared.common.log).held.due(epoch);
        self.write(&due.writes)?;
        if due.flush || self.unsynced_bytes >= self.shared.unsynced_bytes_max {
            self.flush()?;
        }
        self.shared.common.with_log(|log| log.held.written(epoch));
        Ok(())
    }

    fn go_alone(&mut self) -> Result<(), DiskError> {
        // Most of it while the guest writes on, the rest while it must wait.
        self.write_held(EpochId(u64::MAX))?;
        let shared = self.shared.clone();
        let drives = shared.drives.iter().filter(|drive| drive.is_shared());
        let _turns: Vec<_> = drives.map(|drive| lock(&drive.turn)).collect();
        shared.common.with_log(|log| log.held.seal_all());
        let due = lock(&shared.common.log).held.due(EpochId(u64::MAX));
        self.write(&due.writes)?;
        self.flush()?;
        shared.common.with_log(|log| log.held.let_go());
        Ok(())
    }

    fn write(&mut self, writes: &[DiskWrite]) -> Result<(), DiskError> {
        if let Some(failed) = &self.failed {
            return Err(DiskError::Failed(failed.clone()));
        }
        for write in writes {
            if lock(&self.shared.common.log).shut {
                return Err(DiskError::Shut);
            }
            let drive = &self.shared.drives[usize::from(write.disk)];
            self.unsynced.insert(write.disk);
            self.unsynced_bytes += write.bytes();
            drive.apply(write)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        for number in std::mem::take(&mut self.unsynced) {
            let flushed = self.shared.drives[usize::from(number)].flush();
            if let Err(error) = &flushed {
                self.failed = Some(error.to_string());
            }
            flushed?;
        }
        self.unsynced_bytes = 0;
        Ok(())
    }
}

fn answer(dones: Vec<Done>, result: Result<(), DiskError>) {
    let text = result.as_ref().err().map(ToString::to_string);
    let mut first = Some(result);
    for done in dones {
        done(match (first.take(), &text) {
            (Some(result), _) => result,
            (None, Some(text)) => Err(DiskError::Failed(text.clone())),
            (None, None) => Ok(()),
        });
    }
}
