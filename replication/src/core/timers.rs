//! The timers of a core: when it wants to be woken, and which deadlines have passed.
//!
//! A core sets all its timers in one place, from its state, after everything that happens. This
//! table then answers both questions, so the answers cannot contradict each other.
//!
//! Must not be done here: looking at a clock, and knowing what a timer is for.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

/// When timers expire. Each timer is a value of `Timer`, an enum of the core, and has at most one
/// time. Times are in the core's own count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timers<Timer> {
    armed: BTreeMap<Timer, Duration>,
}

impl<Timer: Ord + Copy> Timers<Timer> {
    /// No timer is set.
    pub(crate) fn new() -> Self {
        Self {
            armed: BTreeMap::new(),
        }
    }

    /// Sets a timer, or stops it if `at` is `None`.
    pub(crate) fn set(&mut self, timer: Timer, at: Option<Duration>) {
        match at {
            Some(at) => self.armed.insert(timer, at),
            None => self.armed.remove(&timer),
        };
    }

    /// When the next timer expires.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.armed.values().min().copied()
    }

    /// Whether `timer` has expired.
    pub(crate) fn has_expired(&self, timer: Timer, now: Duration) -> bool {
        self.armed.get(&timer).is_some_and(|at| *at <= now)
    }

    /// All that are set.
    #[cfg(test)]
    pub(crate) fn armed(&self) -> impl Iterator<Item = Timer> {
        self.armed.keys().copied()
    }

    /// The first expired timer after `last`, in the order of the enum. Calling this again with each
    /// answer yields every timer at most once, even if one is set to an expired time meanwhile.
    pub(crate) fn expired_after(&self, last: Timer, now: Duration) -> Option<Timer> {
        let mut later = self.armed.range((Bound::Excluded(last), Bound::Unbounded));
        later.find(|(_, at)| **at <= now).map(|(timer, _)| *timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Timer {
        First,
        Second,
        Third,
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_next_is_the_earliest_that_is_set() {
        let mut timers = Timers::new();
        assert_eq!(timers.next(), None);
        timers.set(Timer::First, Some(7 * MS));
        timers.set(Timer::Third, Some(5 * MS));
        assert_eq!(timers.next(), Some(5 * MS));
        timers.set(Timer::Third, Some(9 * MS));
        assert_eq!(timers.next(), Some(7 * MS));
        timers.set(Timer::First, None);
        timers.set(Timer::Second, None);
        assert_eq!(timers.next(), Some(9 * MS));
    }

    #[test]
    fn a_timer_has_expired_from_its_very_time_on() {
        let mut timers = Timers::new();
        timers.set(Timer::Second, Some(7 * MS));
        assert!(!timers.has_expired(Timer::Second, 6 * MS));
        assert!(timers.has_expired(Timer::Second, 7 * MS));
        assert!(!timers.has_expired(Timer::First, 7 * MS));
        assert_eq!(timers.expired_after(Timer::First, 6 * MS), None);
        assert_eq!(
            timers.expired_after(Timer::First, 7 * MS),
            Some(Timer::Second)
        );
    }

    #[test]
    fn expired_ones_come_in_the_order_of_the_enum_and_once() {
        let mut timers = Timers::new();
        timers.set(Timer::Third, Some(MS));
        timers.set(Timer::Second, Some(2 * MS));
        let second = timers.expired_after(Timer::First, 3 * MS);
        assert_eq!(second, Some(Timer::Second));
        assert_eq!(
            timers.expired_after(Timer::Second, 3 * MS),
            Some(Timer::Third)
        );
        timers.set(Timer::Second, Some(MS));
        assert_eq!(timers.expired_after(Timer::Third, 3 * MS), None);
    }
}
