//! One vCPU's wake-up: a deadline turned into a one-shot LAPIC timer, tickless.

use super::{PENDING_TIMER, apic, clock};

/// A deadline nearer than this is waited for that long: at most a thousand wake-ups a second.
const WAIT_NS_MIN: u64 = 1_000_000;
/// The LAPIC timer's reach is about 68 s; whoever wakes early looks and waits again.
const WAIT_NS_MAX: u64 = 60_000_000_000;

/// The timer of one vCPU.
pub(crate) struct Timer {
    vcpu: usize,
    armed_ns: Option<u64>,
}

impl Timer {
    /// The timer of `vcpu`, to be used on that vCPU only.
    pub(crate) fn new(vcpu: usize) -> Self {
        Self {
            vcpu,
            armed_ns: None,
        }
    }

    /// Takes note of pending interrupts: the timer's own means that it is not running any more.
    pub(crate) fn note(&mut self, pending: u32) {
        if pending & PENDING_TIMER != 0 {
            self.armed_ns = None;
        }
    }

    /// Makes sure that there is an interrupt at the deadline. Returns false if it is over: do not sleep.
    ///
    /// A timer that fires earlier is left alone: programming it is an exit, waking up once too often
    /// is not much more, and deadlines mostly move away.
    pub(crate) fn set(&mut self, deadline_ns: Option<u64>) -> bool {
        let Some(deadline_ns) = deadline_ns else {
            return true;
        };
        let now_ns = clock::now_ns(self.vcpu);
        if deadline_ns <= now_ns {
            return false;
        }
        if self
            .armed_ns
            .is_some_and(|armed_ns| armed_ns <= deadline_ns)
        {
            return true;
        }
        let wait_ns = (deadline_ns - now_ns).clamp(WAIT_NS_MIN, WAIT_NS_MAX);
        apic::set_timer(wait_ns);
        self.armed_ns = Some(now_ns + wait_ns);
        true
    }
}
