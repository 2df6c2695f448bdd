//! What of a guest's past matters when its machine breaks: whether another one broke under it not long ago.
//!
//! It is part of the guest's state, so whoever goes on with the guest knows it, whatever the takeover is about. How long ago
//! it was is told, not when: hosts need not agree about the time.
//!
//! What must not be done here: say what follows.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(super) struct Past(Mutex<Option<Broke>>);

#[derive(Debug, Clone, Copy)]
struct Broke {
    /// So long before `known_at`.
    ago: Duration,
    known_at: Instant,
}

impl Past {
    /// Another machine broke under this guest so long ago.
    pub(super) fn machine_broke(&self, ago: Duration) {
        let known_at = Instant::now();
        *self.0.lock() = Some(Broke { ago, known_at });
    }

    /// How long ago that was, if it is known.
    pub(super) fn machine_broke_ago(&self) -> Option<Duration> {
        let broke = (*self.0.lock())?;
        Some(broke.ago.saturating_add(broke.known_at.elapsed()))
    }
}
