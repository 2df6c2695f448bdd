//! Time as the core needs it, time that observers on the same host can compare, and waiting.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags};
use nix::time::ClockId;
use tokio::io::unix::AsyncFd;
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

/// A timer on a [`Clock`] that is exact: tokio's own are late by up to two milliseconds, which is several times
/// what an answer of the guest otherwise waits.
#[derive(Debug)]
pub(super) struct Alarm {
    clock: Clock,
    /// `None` if there is no descriptor left for it.
    timer: Option<AsyncFd<Timer>>,
}

#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// To be called inside the asynchronous runtime.
    pub(super) fn new(clock: Clock) -> Self {
        let timer = TimerFd::new(
            TimerClock::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        );
        let timer = timer.map_err(std::io::Error::from);
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe, because a descriptor might be closed too early: this one lives as long as the timer"
        )]
        let timer = timer.and_then(|timer| AsyncFd::new(Timer(timer)));
        if let Err(error) = &timer {
            tracing::warn!(
                "cannot create a timer, so output may be two milliseconds late: {error}"
            );
        }
        let timer = timer.ok();
        Self { clock, timer }
    }

    /// Waits until `moment`, forever if there is none. Cancel safe.
    pub(super) async fn wait(&self, moment: Option<Duration>) {
        let Some(moment) = moment else {
            return std::future::pending().await;
        };
        while self.clock.now() < moment {
            if self.tick(moment).await.is_none() {
                tokio::time::sleep_until(self.clock.instant(moment)).await;
            }
        }
    }

    /// Waits for the timer, which may be early. `None` if that is impossible.
    async fn tick(&self, moment: Duration) -> Option<()> {
        let timer = self.timer.as_ref()?;
        let at = Expiration::OneShot((self.clock.origin + moment).into());
        let absolute = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        // This clears what was there to be read.
        timer.get_ref().0.set(at, absolute).ok()?;
        timer.readable().await.ok()?.clear_ready();
        Some(())
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

    #[test]
    fn an_alarm_rings_at_the_last_time_it_was_set_to_and_not_before() {
        let runtime = super::super::threads::tokio_runtime().unwrap();
        let rings = async {
            let clock = Clock::start();
            let alarm = Alarm::new(clock);
            for _ in 0..20 {
                let much_later = alarm.wait(Some(clock.now() + AHEAD));
                let short = Duration::from_millis(1);
                assert!(tokio::time::timeout(short, much_later).await.is_err());
                let moment = clock.now() + Duration::from_micros(300);
                alarm.wait(Some(moment)).await;
                assert!(clock.now() >= moment);
                alarm.wait(Some(moment)).await;
            }
        };
        let limit = Duration::from_secs(60);
        let rings = async { tokio::time::timeout(limit, rings).await };
        runtime.block_on(rings).expect("it rings");
    }

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
