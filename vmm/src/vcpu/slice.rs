//! Slices of time: a vCPU that may run for so long, and then leaves the guest by itself.
//!
//! A timer of the vCPU's own thread ends the slice ([`AlarmTimer`](crate::kvm::AlarmTimer)). Its signal comes where the vCPU
//! runs, so it comes in time also if the host's processors are busy; another thread that stops the vCPU would have to wait
//! for its turn, and a guest that changes memory as fast as it can makes megabytes of that.
//!
//! Must not be done here: deciding how long a slice is.

use std::time::{Duration, Instant};

/// How much is left of a slice, and how much of it was used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    length: Duration,
    ran: Duration,
    since: Option<Instant>,
}

impl Slice {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            ran: Duration::ZERO,
            since: None,
        }
    }

    /// The vCPU runs. Returns for how long it may.
    pub(super) fn start(&mut self, now: Instant) -> Duration {
        self.since = Some(now);
        self.length.saturating_sub(self.ran)
    }

    /// The vCPU stands still. Returns whether the slice is over.
    pub(super) fn stop(&mut self, now: Instant) -> bool {
        self.ran = self.ran(now);
        self.since = None;
        self.ran >= self.length
    }

    /// For how long it ran.
    pub(super) fn ran(&self, now: Instant) -> Duration {
        let running = self.since.map(|since| now.saturating_duration_since(since));
        self.ran + running.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slice_is_over_when_all_of_it_was_used_in_however_many_pieces() {
        let begin = Instant::now();
        let mut slice = Slice::new(10 * MS);
        assert_eq!(slice.start(begin), 10 * MS);
        assert_eq!(slice.ran(begin + 2 * MS), 2 * MS);
        assert!(!slice.stop(begin + 4 * MS));
        // It stood still for a capture.
        assert_eq!(slice.ran(begin + 50 * MS), 4 * MS);
        assert_eq!(slice.start(begin + 50 * MS), 6 * MS);
        assert!(slice.stop(begin + 56 * MS));
        assert_eq!(slice.ran(begin + 99 * MS), 10 * MS);
        assert_eq!(slice.start(begin + 99 * MS), Duration::ZERO);
    }
}
