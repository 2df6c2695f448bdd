//! Time as the core needs it, time that observers on the same host can compare, and waiting.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Time as the core needs it: since the driver of this side started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) origin: std::time::Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            origin: std::time::Instant::now(),
        }
    }

    pub(super) fn now(self) -> Duration {
        self.origin.elapsed()
    }

    pub(super) fn instant(self, at: Duration) -> Instant {
        Instant::from_std(self.origin + at)
    }
}

/// Nanoseconds of the system's monotonic clock, which all processes of a host share. An observer on
/// the same host can relate our times to its own.
pub(super) fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

/// Ticks when a heartbeat is due. A side that was stalled does not send the missed ones later.
pub(super) fn beat(interval: Duration) -> Interval {
    let mut beat = tokio::time::interval(interval);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// Waits until `moment`, forever if there is none. Cancel safe.
pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
