//! The backup's timers. Only this module decides when each one expires, from the core's state.
//!
//! Must not be done here: changing anything but the timers. The modules beside this one decide what
//! follows when a timer expires.

use std::time::Duration;

use super::{BackupCore, Link, Phase};

/// How many heartbeat timeouts a peer that connects has to introduce itself.
const HANDSHAKE_TIMEOUTS: u32 = 10;

/// The backup's timers, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::core) enum Timer {
    /// A whole epoch is to be committed. Looked at before the next input.
    Commit,
    /// A peer has not introduced itself, or has not shown that it is the primary.
    Handshake,
    /// No sign of life of the primary on any path.
    Silence,
    /// A heartbeat is to be sent.
    Beat,
    /// The arbiter is to be asked (again).
    Ask,
    /// No mark was seen for too long.
    Promise,
    /// This side's storage has left something undone for too long.
    Storage,
    /// The trial of a state takes too long.
    Trial,
}

impl BackupCore {
    /// Sets every timer again. To be called whenever something has happened.
    pub(super) fn arm_timers(&mut self) {
        let commit = self.commit_is_due().then_some(self.now);
        let handshake = match self.link {
            Link::Stranger { since, .. } => {
                Some(since + self.policy.heartbeat_timeout * HANDSHAKE_TIMEOUTS)
            }
            Link::Welcomed => self.proof_ends_at(),
            // The primary gives up an arbiter that is too slow.
            Link::Down | Link::Introduced { .. } => None,
        };
        let silent_at = self.heard_at + self.silence_patience();
        let silence = match &self.phase {
            Phase::Listening | Phase::Claiming { .. } | Phase::Promoted => None,
            // A whole epoch is committed before silence is judged.
            Phase::Syncing | Phase::Standby { .. } => Some(silent_at),
        };
        let ask = self.asks_at();
        let promise = self.promise.expires_at(&self.policy);
        let storage = self.storage_hangs_at();
        let trial = self.trial_ends_at();
        let beat_at = self.beat_sent_at + self.policy.heartbeat_interval;
        let beat = self.sends_beats().then_some(beat_at);
        let timers = &mut self.timers;
        timers.set(Timer::Commit, commit);
        timers.set(Timer::Handshake, handshake);
        timers.set(Timer::Silence, silence.filter(|_| commit.is_none()));
        timers.set(Timer::Beat, beat);
        timers.set(Timer::Ask, ask);
        timers.set(Timer::Promise, promise);
        timers.set(Timer::Storage, storage);
        timers.set(Timer::Trial, trial);
    }

    /// Not while claiming: a primary that gets no more acks then goes on alone if the arbiter takes
    /// long to answer this side.
    pub(super) fn sends_beats(&self) -> bool {
        let is_copying = matches!(self.phase, Phase::Syncing | Phase::Standby { .. });
        self.link == Link::Welcomed && is_copying
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
}
