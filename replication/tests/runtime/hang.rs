//! What can be made to hang: whoever comes to it waits until it does not any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
pub(crate) struct Hang {
    hangs: Mutex<bool>,
    over: Condvar,
    /// Somebody came while it hung.
    held: AtomicBool,
}

impl Hang {
    pub(crate) fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.over.notify_all();
    }

    /// Whether somebody has had to wait.
    pub(crate) fn has_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Waits while it hangs.
    pub(crate) fn pass(&self) {
        let hangs = self.hangs.lock().unwrap();
        self.held.fetch_or(*hangs, Ordering::AcqRel);
        drop(self.over.wait_while(hangs, |hangs| *hangs).unwrap());
    }
}

/// Ends a hang when it is dropped.
pub(crate) struct Heals(pub(crate) Arc<Hang>);

impl Drop for Heals {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
