//! When the network is told again where the guest is, after it has come to this host.
//!
//! The first announcement may get lost: a switch still learns, a link comes up late. What must not be done
//! here: send anything.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// The time before each further announcement, in milliseconds.
const ROUNDS_MS: [u64; 5] = [50, 150, 250, 350, 450];
/// After that, how often the link is looked at, in milliseconds.
const LOOK_MS: u64 = 500;
/// How often it wakes altogether, so that a link that comes and goes does not keep it going for ever: a bit more than
/// a minute.
const WAKES: u32 = 130;

/// Announces again and again for a while.
pub(super) struct Announcer {
    timer: TimerFd,
    plan: Plan,
}

/// What is left to be done. Knows no clock.
#[derive(Debug, Default)]
struct Plan {
    has_begun: bool,
    wakes_left: u32,
    /// Announcements since the link was there.
    round: usize,
    carries: bool,
}

impl Announcer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            plan: Plan::default(),
        })
    }

    /// The guest has come to this host, and was announced for the first time. `carries`: the link is there.
    pub(super) fn begin(&mut self, carries: bool) {
        let after = self.plan.begin(carries);
        self.set(Some(after));
    }

    /// Whether the guest has come to this host from another one.
    pub(super) fn has_begun(&self) -> bool {
        self.plan.has_begun
    }

    /// What becomes readable when it is time to ask [`Announcer::is_due`].
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Whether to announce now. `carries` says whether the link is there.
    pub(super) fn is_due(&mut self, carries: impl FnOnce() -> bool) -> bool {
        // Nothing to read means that an earlier call has seen it.
        if self.timer.wait().is_err() {
            return false;
        }
        let (is_due, after) = self.plan.wake(carries());
        self.set(after);
        is_due
    }

    fn set(&self, after: Option<Duration>) {
        let set = match after {
            Some(after) => {
                let once = Expiration::OneShot(TimeSpec::from_duration(after));
                self.timer.set(once, TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
        if let Err(error) = set {
            // Cannot happen to a timer of our own and constants.
            tracing::error!(%error, "the timer for announcements cannot be set");
        }
    }
}

impl Plan {
    /// Returns the time until the next look.
    fn begin(&mut self, carries: bool) -> Duration {
        *self = Self {
            has_begun: true,
            wakes_left: WAKES,
            round: 0,
            carries,
        };
        Duration::from_millis(ROUNDS_MS[0])
    }

    /// Whether to announce now, and the time until the next look.
    fn wake(&mut self, carries: bool) -> (bool, Option<Duration>) {
        let came_up = carries && !std::mem::replace(&mut self.carries, carries);
        if came_up {
            self.round = 0;
        }
        let is_due = self.round < ROUNDS_MS.len();
        self.round += usize::from(is_due);
        self.wakes_left = self.wakes_left.saturating_sub(1);
        let after = ROUNDS_MS.get(self.round).copied().unwrap_or(LOOK_MS);
        let after = (self.wakes_left > 0).then_some(Duration::from_millis(after));
        (is_due, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wakes it `times` times; when it announced, in milliseconds since before.
    fn announced(
        plan: &mut Plan,
        next: &mut Option<Duration>,
        times: u32,
        carries: bool,
    ) -> Vec<u128> {
        let mut at = Duration::ZERO;
        let mut announced = Vec::new();
        for _ in 0..times {
            at += next.expect("it goes on");
            let (is_due, after) = plan.wake(carries);
            *next = after;
            if is_due {
                announced.push(at.as_millis());
            }
        }
        announced
    }

    #[test]
    fn it_announces_more_and_more_rarely_and_ends() {
        let mut plan = Plan::default();
        let mut next = Some(plan.begin(true));
        assert_eq!(
            announced(&mut plan, &mut next, 20, true),
            [50, 200, 450, 800, 1250]
        );
        assert_eq!(announced(&mut plan, &mut next, WAKES - 20, true), [0; 0]);
        assert_eq!(next, None);
    }

    #[test]
    fn it_begins_anew_when_the_link_comes_up_late() {
        let mut plan = Plan::default();
        let mut next = Some(plan.begin(false));
        announced(&mut plan, &mut next, 20, false);
        assert_eq!(
            announced(&mut plan, &mut next, 10, true),
            [500, 650, 900, 1250, 1700]
        );
        // While it is still at it, too.
        let mut next = Some(plan.begin(false));
        assert_eq!(announced(&mut plan, &mut next, 2, false).len(), 2);
        assert_eq!(announced(&mut plan, &mut next, 10, true).len(), 5);
        // But not for ever.
        let mut wakes = 0;
        plan.begin(true);
        while plan.wake(wakes % 2 == 0).1.is_some() {
            wakes += 1;
            assert!(wakes < WAKES);
        }
    }
}
