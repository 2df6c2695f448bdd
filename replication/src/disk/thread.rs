//! A thread of a set of disks. It starts when there is something to do, and is joined when the set is dropped, unless
//! storage keeps it for too long.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long a thread that was told to end may be at its last call of the storage. Its images stay open until then.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// A thread that may not have started yet.
pub(super) struct Thread {
    name: &'static str,
    handle: Mutex<Option<JoinHandle<()>>>,
    end: Arc<End>,
}

/// Whether the thread has ended.
#[derive(Default)]
struct End {
    is_over: Mutex<bool>,
    over: Condvar,
}

/// Says so, however it ends.
struct Ends(Arc<End>);

impl Drop for Ends {
    fn drop(&mut self) {
        *self.0.is_over.lock() = true;
        self.0.over.notify_all();
    }
}

impl Thread {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            handle: Mutex::new(None),
            end: Arc::default(),
        }
    }

    /// Starts the thread, unless it was started before.
    pub(super) fn start(&self, work: impl FnOnce() + Send + 'static) {
        let mut handle = self.handle.lock();
        if handle.is_none() {
            let ends = Ends(self.end.clone());
            let builder = std::thread::Builder::new().name(self.name.into());
            let spawned = builder.spawn(move || {
                let _ends = ends;
                work();
            });
            *handle = Some(spawned.expect("the host has room for one more thread"));
        }
    }

    /// Waits for the thread to end, if storage lets it. It must have been told to end.
    pub(super) fn join(&self) {
        let handle = self.handle.lock().take();
        // A completion that this very thread calls may drop the last handle of the set.
        let Some(handle) = handle.filter(|h| h.thread().id() != std::thread::current().id()) else {
            return;
        };
        let mut is_over = self.end.is_over.lock();
        let runs = |is_over: &mut bool| !*is_over;
        let waited = self
            .end
            .over
            .wait_while_for(&mut is_over, runs, END_PATIENCE);
        drop(is_over);
        if waited.timed_out() {
            let thread = self.name;
            tracing::warn!(
                thread,
                "the host's storage does not answer: images stay open until it does, or this process ends"
            );
            return;
        }
        // A panic has been reported already.
        let _ = handle.join();
    }
}
