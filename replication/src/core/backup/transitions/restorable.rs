//! Whether this side's machine can load what it is sent. A copy that cannot be loaded protects
//! nothing (R9), and it must not be found out only when the primary is fenced already.
//!
//! The first epoch is acknowledged only once its state was loaded on trial. After that, a committed
//! state is tried now and then. If one cannot be loaded, or takes too long, this side says so and
//! gives its copy up: the guest could not go on from it. It does not, once it may have been granted
//! the guest.
//!
//! A state is tried on the very machine that would take over. While that is away, nothing else can
//! be done with it, and nobody can take it back. So this side neither claims the guest nor lets
//! another copy begin before a trial is over, however long it hangs. Until then, a primary that lives
//! goes on with the guest.
//!
//! Must not be done here: loading anything; the runtime does.

use std::time::Duration;

use super::{BackupCore, Bye, Effect, Message, Phase};
use crate::core::policy::TRY_EVERY;

/// How many heartbeat timeouts and checks of the arbiter's time a trial may take.
const TRIAL_TIMEOUTS: u32 = 10;

/// The trials of one session.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Restorable {
    /// The last ticket.
    ticket: u64,
    /// The ticket of the open trial, and when it began.
    trying: Option<(u64, Duration)>,
    /// The ticket of the trial that the machine is away with, also if its outcome means nothing any
    /// more.
    away: Option<u64>,
    /// The first epoch waits for it.
    holds_first: bool,
    /// When to try a state next; `None` before the first trial.
    next_at: Option<Duration>,
}

impl Restorable {
    /// This process slept: that was not the trial.
    pub(super) fn slept(&mut self, time: Duration) {
        if let Some((_, began)) = &mut self.trying {
            *began += time;
        }
    }

    /// The session is over.
    pub(super) fn end(&mut self) {
        *self = Self {
            ticket: self.ticket,
            away: self.away,
            ..Self::default()
        };
    }

    /// Whether a trial has the machine.
    pub(super) fn is_away(&self) -> bool {
        self.away.is_some()
    }
}

#[cfg(test)]
impl Restorable {
    /// For the model, which has the first trial only.
    pub(super) fn forget_time(&mut self, began: Duration, next_at: Duration) {
        if let Some((_, at)) = &mut self.trying {
            *at = began;
        }
        self.next_at = self.next_at.map(|_| next_at);
    }
}

impl BackupCore {
    /// Whether the first epoch waits for its trial.
    pub(super) fn is_trying_first(&self) -> bool {
        self.restorable.holds_first
    }

    /// The first epoch is whole.
    pub(super) fn try_first(&mut self, out: &mut Vec<Effect>) {
        self.restorable.holds_first = true;
        let state = self.staging.whole_state();
        self.begin_trial(state, out);
    }

    /// An epoch was committed.
    pub(super) fn try_now_and_then(&mut self, out: &mut Vec<Effect>) {
        let is_due = self.restorable.next_at.is_some_and(|at| at <= self.now);
        // Not while the guest may be granted: nothing may keep a promotion waiting.
        let may_try = matches!(self.phase, Phase::Standby { cut: None });
        if is_due && may_try && !self.restorable.is_away() {
            let state = self.committed_state().clone();
            self.begin_trial(state, out);
        }
    }

    fn begin_trial(&mut self, state: bytes::Bytes, out: &mut Vec<Effect>) {
        self.restorable.ticket += 1;
        let ticket = self.restorable.ticket;
        self.restorable.trying = Some((ticket, self.now));
        self.restorable.away = Some(ticket);
        self.restorable.next_at = Some(self.now + TRY_EVERY);
        out.push(Effect::TryRestore { ticket, state });
    }

    /// When the open trial takes too long.
    pub(super) fn trial_ends_at(&self) -> Option<Duration> {
        let (_, began) = self.restorable.trying?;
        let timeouts = self.policy.heartbeat_timeout * TRIAL_TIMEOUTS;
        Some(began + self.policy.arbiter_check + timeouts)
    }

    /// That is a slow host's doing, and says nothing of the state. It costs no copy of a guest whose
    /// primary may be gone.
    pub(super) fn trial_expired(&mut self, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Syncing | Phase::Standby { cut: None } => {
                self.unrestorable("that does not come to an end", out);
            }
            _ => {
                self.restorable.end();
                self.say_what_a_claim_waits_for(out);
            }
        }
    }

    /// If a trial does not come to an end, and this side would claim the guest.
    pub(super) fn say_what_a_claim_waits_for(&self, out: &mut Vec<Effect>) {
        let is_late = self.restorable.is_away() && self.restorable.trying.is_none();
        if is_late && matches!(self.phase, Phase::Claiming { .. }) {
            let why = "a trial of the guest's state does not come to an end on its machine".into();
            out.push(Effect::ClaimWaits { why });
        }
    }

    /// The trial is over.
    pub(super) fn restore_tried(
        &mut self,
        ticket: u64,
        outcome: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        self.restorable.away.take_if(|away| *away == ticket);
        if self
            .restorable
            .trying
            .is_none_or(|(open, _)| open != ticket)
        {
            return;
        }
        self.restorable.trying = None;
        if let Err(why) = outcome {
            return self.unrestorable(&why, out);
        }
        if std::mem::take(&mut self.restorable.holds_first)
            && !self.is_persisting()
            && self.sends_beats()
        {
            self.acknowledge(self.staging.epoch(), out);
        }
    }

    /// The guest cannot go on from what this side has.
    fn unrestorable(&mut self, why: &str, out: &mut Vec<Effect>) {
        self.restorable.end();
        let why = format!("its machine cannot load the guest's state: {why}");
        let may_reset = match self.phase {
            Phase::Syncing | Phase::Standby { .. } => true,
            // What was asked for may have been granted.
            Phase::Claiming { asked, .. } => !asked,
            Phase::Listening | Phase::Promoted => false,
        };
        if self.sends_beats() {
            out.push(Effect::Send(Message::Bye(Bye::Unable(why.clone()))));
        }
        if may_reset {
            self.reset(why, out);
        }
    }
}
