//! The primary's thread for the maps: it clears the marks of what is durable on both sides.
//!
//! For that it flushes replicated images, and any of them may hang. Nothing waits for this thread: a mark too many
//! only costs bytes. What must not be done here: anything that somebody waits for.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::disk::image::Drives;
use crate::disk::thread::Thread;
use crate::ids::EpochId;

#[derive(Default)]
struct Due {
    /// The newest epoch that is durable on the backup's images, as long as it is news.
    durable: Option<EpochId>,
    /// The session to which it belongs.
    session: u64,
    stop: bool,
}

struct Queue {
    drives: Drives,
    due: Mutex<Due>,
    bell: Condvar,
}

/// The thread. It starts when there is something to do.
pub(crate) struct Marks {
    queue: Arc<Queue>,
    thread: Thread,
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.queue.due.lock().stop = true;
        self.queue.bell.notify_all();
        self.thread.join();
    }
}

impl Marks {
    pub(crate) fn new(drives: Drives) -> Self {
        Self {
            queue: Arc::new(Queue {
                drives,
                due: Mutex::default(),
                bell: Condvar::new(),
            }),
            thread: Thread::new("disk-marks"),
        }
    }

    /// Everything up to `epoch` is durable on the backup's images.
    pub(crate) fn durable(&self, epoch: EpochId) {
        {
            let mut due = self.queue.due.lock();
            due.durable = due.durable.max(Some(epoch));
        }
        let queue = self.queue.clone();
        self.thread.start(move || queue.work());
        self.queue.bell.notify_all();
    }

    /// A new session begins. Epochs start over, and reports on the last session's epochs do not count.
    pub(crate) fn begin_session(&self, session: u64) {
        let mut due = self.queue.due.lock();
        due.durable = None;
        due.session = session;
    }
}

impl Queue {
    fn work(&self) {
        while let Some((session, epoch)) = self.next() {
            self.clear(session, epoch);
        }
    }

    fn next(&self) -> Option<(u64, EpochId)> {
        let mut due = self.due.lock();
        loop {
            if due.stop {
                return None;
            }
            if let Some(epoch) = due.durable.take() {
                return Some((due.session, epoch));
            }
            self.bell.wait(&mut due);
        }
    }

    fn clear(&self, session: u64, epoch: EpochId) {
        for drive in self.drives.iter() {
            let Some(map) = &drive.map else { continue };
            if !map.lock().may_clear(session, epoch) {
                continue;
            }
            // The block must be durable here, too: otherwise a loss of power could take it back.
            let cleared = drive
                .flush()
                .and_then(|()| map.lock().durable(session, epoch));
            if let Err(error) = cleared {
                // The marks stay. That only costs bytes at the next synchronisation.
                tracing::warn!(disk = drive.name, %error, "marks of written blocks stay");
            }
        }
    }
}
