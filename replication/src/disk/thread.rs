//! A thread of a set of disks. It starts when there is something to do, and is joined when the set is dropped.

use std::thread::JoinHandle;

use parking_lot::Mutex;

/// A thread that may not have started yet.
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

    /// Starts the thread, unless it was started before.
    pub(super) fn start(&self, work: impl FnOnce() + Send + 'static) {
        let mut handle = self.handle.lock();
        if handle.is_none() {
            let builder = std::thread::Builder::new().name(self.name.into());
            let spawned = builder.spawn(work);
            *handle = Some(spawned.expect("the host has room for one more thread"));
        }
    }

    /// Waits for the thread to end. It must have been told to end.
    pub(super) fn join(&self) {
        let handle = self.handle.lock().take();
        // A completion that this very thread calls may drop the last handle of the set.
        if let Some(handle) = handle.filter(|h| h.thread().id() != std::thread::current().id()) {
            // A panic has been reported already.
            let _ = handle.join();
        }
    }
}
