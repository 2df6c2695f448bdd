//! A thread of a set of disks: begun when there is something to do, and waited for when the set goes.

use std::thread::JoinHandle;

use parking_lot::Mutex;

/// A thread that may not have begun yet.
pub(super) struct Thread {
    name: &'static str,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Thread {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            handle: Mutex::new(None),
        }
    }

    /// Begins it, unless it has begun.
    pub(super) fn start(&self, work: impl FnOnce() + Send + 'static) {
        let mut handle = self.handle.lock();
        if handle.is_none() {
            let builder = std::thread::Builder::new().name(self.name.into());
            let spawned = builder.spawn(work);
            *handle = Some(spawned.expect("the host has room for one more thread"));
        }
    }

    /// Waits for its end, of which it has been told.
    pub(super) fn join(&self) {
        let handle = self.handle.lock().take();
        // The last handle of a set may go in a completion that this very thread calls.
        if let Some(handle) = handle.filter(|h| h.thread().id() != std::thread::current().id()) {
            // A thread that panicked has said so.
            let _ = handle.join();
        }
    }
}
