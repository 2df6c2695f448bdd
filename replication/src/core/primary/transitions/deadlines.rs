//! The primary's timers. Only this module decides when each one expires, from the core's state.
//!
//! Must not be done here: changing anything but the timers. The modules beside this one decide what
//! follows when a timer expires.

use std::time::Duration;

use super::{Phase, PrimaryCore};

/// How many heartbeat timeouts a backup has to answer the introduction. It may have to prepare its
/// memory first.
const HANDSHAKE_TIMEOUTS: u32 = 10;

/// The primary's timers, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::core) enum Timer {
    /// Everything of a guest that has ended has been released. Looked at before the next input.
    AllSaid,
    /// The arbiter's last answer is not awaited any longer.
    LastAnswer,
    /// The backup has not answered the introduction.
    Handshake,
    /// No sign of life of the backup on any path.
    Silence,
    /// An epoch is not acknowledged, and the link is silent.
    Unacked,
    /// The next step of a handover is due, or has taken too long.
    HandOver,
    /// A heartbeat is to be sent.
    Beat,
    /// The running epoch ends, or the capture of epoch 1 is tried again.
    Capture,
    /// The arbiter is to be asked (again).
    Ask,
    /// The backup has not seen a mark for too long.
    Promise,
    /// The epoch that is captured or in flight takes so long that the guest is to be slowed.
    Late,
}

impl PrimaryCore {
    /// Sets every timer again. To be called whenever something has happened.
    pub(super) fn arm_timers(&mut self) {
        let (handshake, silence, beat, unacked, capture) = match &self.phase {
            Phase::Handshaking { welcomed, .. } => {
                let beat = welcomed.is_some().then(|| self.beat_at());
                (Some(self.handshake_ends_at()), None, beat, None, None)
            }
            Phase::Syncing { capture_at, .. } => {
                let (silence, beat) = (self.silent_at(), self.beat_at());
                let capture = capture_at.filter(|_| !self.machine_broke);
                (None, Some(silence), Some(beat), None, capture)
            }
            Phase::Protected(epochs) => {
                let (silence, beat) = (self.silent_at(), self.beat_at());
                let unacked = epochs
                    .in_flight_since()
                    .map(|since| self.link_heard_at.max(since) + self.policy.heartbeat_timeout);
                let ends_at = epochs.ends_at(&self.policy);
                let capture = ends_at.filter(|_| self.may_end(epochs));
                (None, Some(silence), Some(beat), unacked, capture)
            }
            Phase::Alone | Phase::Claiming { .. } | Phase::Fenced | Phase::Stopped => {
                (None, None, None, None, None)
            }
        };
        let all_said = self.has_just_said_all().then_some(self.now);
        let last_answer = self.last_answer_at();
        let ask = self.next_question().and_then(|(ask_at, _)| *ask_at);
        // A backup that claims the guest says nothing on the link.
        let (silence, unacked) = match self.has_let_go() {
            true => (None, None),
            false => (silence, unacked),
        };
        let handover = self.handover_at();
        let promise = self.promise.expires_at(&self.policy);
        let late = self.throttle.late_at();
        let timers = &mut self.timers;
        timers.set(Timer::AllSaid, all_said);
        timers.set(Timer::LastAnswer, last_answer);
        timers.set(Timer::Handshake, handshake);
        timers.set(Timer::Silence, silence);
        timers.set(Timer::Unacked, unacked);
        timers.set(Timer::HandOver, handover);
        timers.set(Timer::Beat, beat);
        timers.set(Timer::Capture, capture);
        timers.set(Timer::Ask, ask);
        timers.set(Timer::Promise, promise);
        timers.set(Timer::Late, late);
    }

    /// When `handle` must be called next if nothing happens before; `None` if no timer runs.
    ///
    /// While a timer runs, this is never far away, so a late call shows that this process was
    /// stalled.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Duration> {
        let latest = self.now + self.policy.looks_every();
        self.timers.next().map(|deadline| deadline.min(latest))
    }

    fn handshake_ends_at(&self) -> Duration {
        self.link_up_at + self.policy.heartbeat_timeout * HANDSHAKE_TIMEOUTS
    }

    fn silent_at(&self) -> Duration {
        self.link_heard_at.max(self.beat_heard_at) + self.patience.timeout()
    }

    fn beat_at(&self) -> Duration {
        self.beat_sent_at + self.policy.heartbeat_interval
    }
}
