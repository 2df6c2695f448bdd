//! Slows the guest: the thread `throttle` holds all vCPUs for a part of the time.
//!
//! The guest's clocks go on meanwhile. To it this is a host whose processors are wanted by others.
//!
//! Must not be done here: deciding how far to slow it, and parking vCPUs for a capture.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use understudy_replication::core::throttle::RunShare;
use understudy_replication::ports::GuestSpeed;

use crate::config::Priority;
use crate::host::raise_priority;
use crate::vcpu::VcpuThread;

/// The vCPUs run and stand still once in this time, if that leaves them long enough to do something.
const PERIOD: Duration = Duration::from_millis(10);
/// They run at least for so long before they stand still again. Leaving the guest takes as long again.
const RUN_MIN: Duration = Duration::from_micros(100);
/// A vCPU that has not left the guest so long after the end of its slice is stopped.
const LATE: Duration = Duration::from_micros(200);
/// How long the slowest vCPU may take to stand still.
const HOLD_LIMIT: Duration = Duration::from_millis(10);

/// What the thread is told.
#[derive(Debug)]
struct Orders {
    share: RunShare,
    ended: bool,
}

#[derive(Debug)]
struct Pace {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl GuestSpeed for Pace {
    fn set(&self, share: RunShare) {
        let mut orders = self.orders.lock();
        // A slice that has begun goes on, unless there are to be none any more.
        orders.share = share;
        self.changed.notify_all();
    }
}

/// The thread and what it is told.
#[derive(Debug)]
pub(super) struct Throttle {
    pace: Arc<Pace>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// # Errors
    /// If the host cannot start another thread.
    pub(super) fn start(vcpus: Arc<[VcpuThread]>) -> std::io::Result<Self> {
        let pace = Arc::new(Pace {
            orders: Mutex::new(Orders {
                share: RunShare::FULL,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let orders = Arc::clone(&pace);
        let thread = std::thread::Builder::new()
            .name("throttle".into())
            .spawn(move || orders.slow(&vcpus))?;
        Ok(Self {
            pace,
            thread: Some(thread),
        })
    }

    pub(super) fn speed(&self) -> Arc<dyn GuestSpeed> {
        self.pace.clone()
    }

    /// Ends the thread. No vCPU is held any more.
    pub(super) fn stop(&mut self) {
        self.pace.orders.lock().ended = true;
        self.pace.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that slows the guest panicked");
        }
    }
}

impl Pace {
    fn slow(&self, vcpus: &[VcpuThread]) {
        // The kernel is 50 us late otherwise, half a slice, and later where processors are busy. It works without, too.
        let _ = nix::sys::prctl::set_timerslack(1);
        let _ = raise_priority(Priority::High);
        let mut orders = self.orders.lock();
        while !orders.ended {
            if orders.share.is_full() {
                self.changed.wait(&mut orders);
                continue;
            }
            let slowed = Slowed(vcpus);
            while !orders.ended && !orders.share.is_full() {
                // What is told meanwhile counts from the next slice on.
                let share = orders.share;
                let (began, run) = (Instant::now(), slice(share));
                MutexGuard::unlocked(&mut orders, || slowed.run_for(run));
                // They hold themselves.
                self.pass(&mut orders, run + LATE);
                if orders.ended || orders.share.is_full() {
                    break;
                }
                let ran = MutexGuard::unlocked(&mut orders, || slowed.hold());
                self.stand(&mut orders, began, ran, share);
            }
        }
    }

    /// Lets the vCPUs stand still that ran for so long since then. A larger share that is told meanwhile counts at once.
    fn stand(
        &self,
        orders: &mut MutexGuard<'_, Orders>,
        began: Instant,
        ran: Duration,
        mut share: RunShare,
    ) {
        while !orders.ended && !orders.share.is_full() {
            share = share.max(orders.share);
            let until = began + period(ran, share);
            if self.changed.wait_until(orders, until).timed_out() {
                return;
            }
        }
    }

    /// Waits for so long, or until the guest is not to be slowed any more.
    fn pass(&self, orders: &mut MutexGuard<'_, Orders>, time: Duration) {
        let until = Instant::now() + time;
        while !orders.ended && !orders.share.is_full() {
            if self.changed.wait_until(orders, until).timed_out() {
                return;
            }
        }
    }
}

/// vCPUs that run for a slice now and then, until this is dropped (R7).
struct Slowed<'a>(&'a [VcpuThread]);

impl Slowed<'_> {
    fn run_for(&self, time: Duration) {
        for vcpu in self.0 {
            if let Err(error) = vcpu.run_for(time) {
                tracing::warn!("cannot slow the guest: {error}");
            }
        }
    }

    /// Holds those that have not done so themselves. Returns for how long one has run at most.
    fn hold(&self) -> Duration {
        for vcpu in self.0 {
            if let Err(error) = vcpu.hold() {
                // It runs on, a little longer than it should.
                tracing::warn!("cannot slow the guest: {error}");
            }
        }
        for vcpu in self.0 {
            // One that has ended, or is stuck, is told of by whoever needs it.
            let _ = vcpu.wait_parked_for(HOLD_LIMIT);
        }
        let ran = self.0.iter().map(VcpuThread::ran_for);
        ran.max().unwrap_or(Duration::ZERO)
    }
}

impl Drop for Slowed<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(VcpuThread::release);
    }
}

/// For how long the vCPUs run at a time.
fn slice(share: RunShare) -> Duration {
    PERIOD.mul_f64(share.fraction()).max(RUN_MIN)
}

/// How long a slice and what they stand still after it take together. Who stood still for another reason, as in a pause,
/// does not stand still for that, too.
fn period(ran: Duration, share: RunShare) -> Duration {
    ran.max(RUN_MIN).div_f64(share.fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_run_for_their_share_of_the_time_and_never_too_briefly_to_be_of_use() {
        let mut share = RunShare::FULL;
        assert_eq!(slice(share), PERIOD);
        assert_eq!(period(slice(share), share), PERIOD);
        while share > RunShare::LEAST {
            share = share.divided(2);
            assert!(slice(share) >= RUN_MIN, "{share:?}");
            // Also if it took longer than it should.
            for ran in [slice(share), 3 * slice(share)] {
                let really = ran.as_secs_f64() / period(ran, share).as_secs_f64();
                assert!(
                    (really / share.fraction() - 1.0).abs() < 0.01,
                    "{really} at {share:?}"
                );
            }
        }
    }
}
