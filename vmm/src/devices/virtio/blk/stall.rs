//! Notices that the host's storage does not answer, and that it does again.
//!
//! A request that is too old is looked at twice: after this process stood still, every request is old.
//! What must not be done here: decide what follows from it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// How long a request may be in flight before the storage is said to hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The time between both looks.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// The age of a disk's oldest request, watched.
pub(super) struct StallTimer {
    timer: TimerFd,
    patience: Duration,
    is_set: bool,
    /// A request was too old at the first look.
    is_suspect: bool,
    hangs: bool,
}

impl StallTimer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            patience: PATIENCE,
            is_set: false,
            is_suspect: false,
            hangs: false,
        })
    }

    #[cfg(test)]
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }

    /// A request is in flight. Costs nothing most of the time.
    pub(super) fn began(&mut self) {
        if !self.is_set && !self.hangs {
            self.set(self.patience);
        }
    }

    /// The time is over; `oldest` is how old the oldest request is. Returns for how long the storage has not answered, if that is news.
    pub(super) fn look(&mut self, oldest: Option<Duration>) -> Option<Duration> {
        // Nothing to read means that an earlier call has seen it.
        if self.timer.wait().is_err() {
            return None;
        }
        self.is_set = false;
        let was_suspect = std::mem::take(&mut self.is_suspect);
        let age = oldest?;
        if let Some(rest) = self
            .patience
            .checked_sub(age)
            .filter(|rest| !rest.is_zero())
        {
            self.set(rest);
            return None;
        }
        // Perhaps another one by now: storage that is so slow keeps the guest waiting as one that hangs.
        if was_suspect {
            self.hangs = true;
            return Some(age);
        }
        self.is_suspect = true;
        self.set(SECOND_LOOK);
        None
    }

    /// A request was answered; `oldest` is how old the oldest one is now. Returns whether the storage was said to hang, and does
    /// not any more.
    pub(super) fn answered(&mut self, oldest: Option<Duration>) -> bool {
        if !self.hangs || oldest.is_some_and(|age| age >= self.patience) {
            return false;
        }
        self.hangs = false;
        if oldest.is_some() {
            self.set(self.patience);
        }
        true
    }

    fn set(&mut self, after: Duration) {
        let once = Expiration::OneShot(TimeSpec::from_duration(after));
        match self.timer.set(once, TimerSetTimeFlags::empty()) {
            Ok(()) => self.is_set = true,
            // Cannot happen to a timer of our own and such times.
            Err(error) => tracing::error!(%error, "a disk's timer cannot be set"),
        }
    }
}
