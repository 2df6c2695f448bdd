//! Time as the core needs it, time that observers on the same host can compare, and waiting.

use std::time::Duration;

use nix::time::ClockId;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Time as the core needs it: since the driver of this side started. A suspend of the host counts:
/// to the other side it is a stall like any other, and the core must notice it as one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// In time since the host booted.
    origin: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            origin: time_of(ClockId::CLOCK_BOOTTIME),
        }
    }

    pub(super) fn now(self) -> Duration {
        time_of(ClockId::CLOCK_BOOTTIME).saturating_sub(self.origin)
    }

    /// When a timer for `at` fires if the host is not suspended meanwhile.
    pub(super) fn instant(self, at: Duration) -> Instant {
        Instant::now() + at.saturating_sub(self.now())
    }
}

/// Nanoseconds of the system's monotonic clock, which all processes of a host share. An observer on
/// the same host can relate our times to its own.
pub(super) fn monotonic_ns() -> u64 {
    u64::try_from(time_of(ClockId::CLOCK_MONOTONIC).as_nanos()).unwrap_or(u64::MAX)
}

fn time_of(clock: ClockId) -> Duration {
    // Every Linux that runs this has both clocks, and neither is ever negative.
    nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "UNDERSTUDY_TEST_IN_TIME_NAMESPACE";
    const AHEAD: Duration = Duration::from_secs(100_000);

    /// A host that was suspended for long: in a time namespace the clock that counts suspends is
    /// ahead of the one that does not.
    #[test]
    fn time_in_which_the_host_is_suspended_counts() {
        let name = "runtime::clock::tests::time_in_which_the_host_is_suspended_counts";
        if std::env::var_os(CHILD).is_some() {
            // What began before the suspend.
            let clock = Clock {
                origin: time_of(ClockId::CLOCK_MONOTONIC),
            };
            assert!(clock.now() >= AHEAD, "{:?}", clock.now());
            let timer = clock.instant(AHEAD * 2) - Instant::now();
            assert!(timer <= AHEAD, "{timer:?}");
            return;
        }
        let child = Command::new("unshare")
            .args([
                "--time",
                "--boottime",
                &AHEAD.as_secs().to_string(),
                "--fork",
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{child:?}"
        );
    }
}
