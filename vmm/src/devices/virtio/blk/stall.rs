//! Notices that the host's storage does not answer, and that it does again.
//!
//! There are two limits. If nothing has moved for some hundred milliseconds, the storage *stalls*: another host may serve the
//! guest better. If a request has waited for seconds, it *hangs*: a person should know, also where storage is so slow
//! that it keeps the guest waiting as one that hangs. What is too old is looked at twice: after this process stood
//! still, every request is old. What must not be done here: decide what follows from it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::flight::Ages;

/// How long a request may be in flight before the storage is said to hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The time between both looks.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// What is too much.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    /// No read, no change or no flush was answered for so long, although one is in flight.
    Stalls(Duration),
    /// A request is so old.
    Hangs(Duration),
}

impl Limit {
    /// When it is passed if nothing happens; `None` if nothing is in flight.
    fn rest(self, ages: Ages) -> Option<Duration> {
        match self {
            Self::Hangs(limit) => Some(limit.saturating_sub(ages.oldest?)),
            Self::Stalls(limit) => Some(limit.saturating_sub(ages.unmoved?)),
        }
    }

    fn least(self) -> Duration {
        match self {
            Self::Hangs(limit) | Self::Stalls(limit) => limit,
        }
    }
}

/// A disk's requests in flight, watched for one limit.
pub(super) struct StallTimer {
    timer: TimerFd,
    limit: Limit,
    is_set: bool,
    /// It was passed at the first look.
    is_suspect: bool,
    is_passed: bool,
}

impl StallTimer {
    pub(super) fn new(limit: Limit) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            limit,
            is_set: false,
            is_suspect: false,
            is_passed: false,
        })
    }

    pub(super) fn set_limit(&mut self, limit: Limit) {
        self.limit = limit;
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }

    /// A request is in flight. Costs nothing most of the time.
    pub(super) fn began(&mut self) {
        if !self.is_set && !self.is_passed {
            self.set(self.limit.least());
        }
    }

    /// The time is over. Returns whether the limit is passed, if that is news.
    pub(super) fn look(&mut self, ages: Ages) -> bool {
        // Nothing to read means that an earlier call has seen it.
        if self.timer.wait().is_err() {
            return false;
        }
        self.is_set = false;
        let was_suspect = std::mem::take(&mut self.is_suspect);
        match self.limit.rest(ages) {
            None => {}
            Some(rest) if !rest.is_zero() => self.set(rest),
            // Perhaps another request by now: that keeps the guest waiting, too.
            Some(_) if was_suspect => self.is_passed = true,
            Some(_) => {
                self.is_suspect = true;
                self.set(SECOND_LOOK);
            }
        }
        self.is_passed
    }

    /// A request was answered. Returns whether the limit was passed, and is not any more.
    pub(super) fn answered(&mut self, ages: Ages) -> bool {
        let rest = self.limit.rest(ages);
        if !self.is_passed || rest.is_some_and(|rest| rest.is_zero()) {
            return false;
        }
        self.is_passed = false;
        if let Some(rest) = rest {
            self.set(rest);
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
