//! The primary's thread for shared images: it writes released epochs to them, in order.
//!
//! What must not be done here: writing what was not released, writing anything once the set is shut, or calling other
//! storage, which may hang: output waits for this thread.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::write_log::WriteLog;
use crate::core::disk::DiskWrite;
use crate::disk::DiskError;
use crate::disk::image::{Drives, all_turns, shared};
use crate::disk::thread::Thread;
use crate::ids::EpochId;
use crate::ports::disks::Completion;

/// Pending work. Bounded: the caller has one release under way, and the rest are single values.
#[derive(Default)]
struct Jobs {
    release: Option<EpochId>,
    on_released: Vec<Completion>,
    on_alone: Vec<Completion>,
    /// The session to which `release` belongs.
    session: u64,
    stop: bool,
}

struct ReleaseQueue {
    drives: Drives,
    log: Arc<WriteLog>,
    jobs: Mutex<Jobs>,
    bell: Condvar,
    /// The session, and the last of its epochs that is durable on shared images.
    written_through: Mutex<(u64, EpochId)>,
    /// How much may be written to shared images before a flush. The backup keeps it meanwhile.
    unsynced_bytes_max: u64,
}

/// The thread. It starts when there is something to do.
pub(crate) struct Releaser {
    queue: Arc<ReleaseQueue>,
    thread: Thread,
}

impl Drop for Releaser {
    fn drop(&mut self) {
        self.queue.jobs.lock().stop = true;
        self.queue.bell.notify_all();
        self.thread.join();
    }
}

impl Releaser {
    pub(crate) fn new(drives: Drives, log: Arc<WriteLog>, unsynced_bytes_max: u64) -> Self {
        Self {
            queue: Arc::new(ReleaseQueue {
                drives,
                log,
                jobs: Mutex::default(),
                bell: Condvar::new(),
                written_through: Mutex::default(),
                unsynced_bytes_max,
            }),
            thread: Thread::new("disk-release"),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Jobs)) {
        change(&mut self.queue.jobs.lock());
        let queue = self.queue.clone();
        self.thread.start(move || Worker::new(queue).work());
        self.queue.bell.notify_all();
    }

    pub(crate) fn release(&self, epoch: EpochId, done: Completion) {
        self.tell(|jobs| {
            jobs.release = jobs.release.max(Some(epoch));
            jobs.on_released.push(done);
        });
    }

    pub(crate) fn go_alone(&self, done: Completion) {
        self.tell(|jobs| jobs.on_alone.push(done));
    }

    /// A new session begins. Epochs start over.
    pub(crate) fn begin_session(&self, session: u64) {
        let mut jobs = self.queue.jobs.lock();
        jobs.session = session;
        *self.queue.written_through.lock() = (session, EpochId(0));
    }

    pub(crate) fn written_through(&self) -> EpochId {
        self.queue.written_through.lock().1
    }
}

/// What the thread knows.
struct Worker {
    queue: Arc<ReleaseQueue>,
    /// Disks that have been written and not flushed.
    unsynced: BTreeSet<u16>,
    unsynced_bytes: u64,
    /// What has been written since the last flush, but for what is still held. It is bounded, as `unsynced_bytes` is.
    written: Vec<DiskWrite>,
    /// A flush failed. The host may have dropped what it could not write, and says so only once: all of it is
    /// written again.
    is_in_doubt: bool,
}

impl Worker {
    fn new(queue: Arc<ReleaseQueue>) -> Self {
        Self {
            queue,
            unsynced: BTreeSet::new(),
            unsynced_bytes: 0,
            written: Vec::new(),
            is_in_doubt: false,
        }
    }

    fn work(mut self) {
        while let Some(mut jobs) = self.next() {
            if let Some(epoch) = jobs.release.take() {
                answer(jobs.on_released, self.release(jobs.session, epoch));
            }
            if !jobs.on_alone.is_empty() {
                answer(jobs.on_alone, self.go_alone());
            }
        }
    }

    fn next(&self) -> Option<Jobs> {
        let mut jobs = self.queue.jobs.lock();
        loop {
            let work = jobs.release.is_some() || !jobs.on_alone.is_empty();
            if jobs.stop {
                return None;
            }
            if work {
                let session = jobs.session;
                return Some(std::mem::replace(
                    &mut *jobs,
                    Jobs {
                        session,
                        ..Jobs::default()
                    },
                ));
            }
            self.queue.bell.wait(&mut jobs);
        }
    }

    fn release(&mut self, session: u64, epoch: EpochId) -> Result<(), DiskError> {
        self.write_held(epoch)?;
        let mut through = self.queue.written_through.lock();
        if self.unsynced.is_empty() && through.0 == session {
            through.1 = through.1.max(epoch);
        }
        Ok(())
    }

    fn write_held(&mut self, epoch: EpochId) -> Result<(), DiskError> {
        let due = self.queue.log.lock().held.due(epoch);
        self.write(&due.writes)?;
        self.written.extend(due.writes.iter().cloned());
        let is_much = self.unsynced_bytes >= self.queue.unsynced_bytes_max;
        let flushes = due.flush || is_much || self.is_in_doubt;
        if flushes {
            let flushed = self.flush();
            if flushed.is_err() {
                // These are still held.
                self.written.truncate(self.written.len() - due.writes.len());
            }
            flushed?;
        }
        self.queue.log.with_log(|log| {
            log.held.written(epoch);
            if flushes {
                log.held.safe();
            }
        });
        Ok(())
    }

    fn go_alone(&mut self) -> Result<(), DiskError> {
        // Write most of it while the guest keeps writing, and the rest while the guest must wait.
        self.write_held(EpochId(u64::MAX))?;
        let queue = self.queue.clone();
        let _turns = all_turns(shared(&queue.drives));
        queue.log.with_log(|log| log.held.seal_all());
        let due = queue.log.lock().held.due(EpochId(u64::MAX));
        self.write(&due.writes)?;
        self.flush()?;
        queue.log.with_log(|log| log.held.let_go());
        Ok(())
    }

    fn write(&mut self, writes: &[DiskWrite]) -> Result<(), DiskError> {
        let again = if self.is_in_doubt {
            &*self.written
        } else {
            &[]
        };
        for write in again.iter().chain(writes) {
            if self.queue.log.lock().shut {
                return Err(DiskError::Shut);
            }
            let drive = &self.queue.drives[usize::from(write.disk)];
            self.unsynced.insert(write.disk);
            self.unsynced_bytes += write.bytes();
            drive.apply(write)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.is_in_doubt = true;
        for number in std::mem::take(&mut self.unsynced) {
            let drive = &self.queue.drives[usize::from(number)];
            // The guest need not hear of it: nothing is lost.
            let flushed = drive.flush_storage();
            flushed.map_err(|error| drive.failed("flush", 0, error))?;
        }
        self.is_in_doubt = false;
        self.written.clear();
        self.unsynced_bytes = 0;
        Ok(())
    }
}

fn answer(dones: Vec<Completion>, result: Result<(), DiskError>) {
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
