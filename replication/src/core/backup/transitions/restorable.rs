//! Whether this side's machine can load what it is sent. A copy that cannot be loaded protects
//! nothing (R9), and it must not be found out only when the primary is fenced already.
//!
//! The first epoch is acknowledged only once its state was loaded on trial; a copy without it protects
//! nobody, and is given up. After that, a committed state is tried now and then.
//!
//! If a later one cannot be loaded, or takes too long, the copy may be the last one, whatever this
//! side believes of the primary. So it is kept until the arbiter names another side (R10). But a
//! primary that may live, and can go on, comes first: it is told why, the session ends, a claim that
//! waits is withdrawn, and this side claims only once nobody was heard for much longer than usual.
//! The promotion may fail then, for the reason that is known. If the primary's machine has broken,
//! nobody else can go on, and the claim is made.
//!
//! A state is tried on the very machine that would take over. While that is away, nothing else can
//! be done with it, and nobody can take it back. So this side neither claims the guest nor lets
//! another copy begin before a trial is over, however long it hangs. Until then, a primary that lives
//! goes on with the guest.
//!
//! Must not be done here: loading anything; the runtime does.

use std::time::Duration;

use super::{BackupCore, Bye, Effect, Link, Message, Phase};
use crate::core::policy::TRY_EVERY;

/// How many heartbeat timeouts and checks of the arbiter's time a trial may take.
const TRIAL_TIMEOUTS: u32 = 10;

/// The trials of one session.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Restorable {
    /// The last ticket.
    ticket: u64,
    /// The trial whose outcome is waited for.
    trying: Option<Trial>,
    /// The ticket of the trial that the machine is away with, also if its outcome means nothing any
    /// more.
    away: Option<u64>,
    /// The first epoch waits for it.
    holds_first: bool,
    /// When to try a state next; `None` before the first trial.
    next_at: Option<Duration>,
    /// A state of the whole copy could not be loaded, or not in time.
    is_doubtful: bool,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
struct Trial {
    ticket: u64,
    began: Duration,
    /// It has taken too long.
    is_late: bool,
}

impl Restorable {
    /// This process slept: that was not the trial.
    pub(super) fn slept(&mut self, time: Duration) {
        if let Some(trial) = &mut self.trying {
            trial.began += time;
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
    /// For the model, in which only it says when a state is tried.
    pub(super) fn forget_time(&mut self, began: Duration, next_at: Duration) {
        if let Some(trial) = &mut self.trying {
            trial.began = began;
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
        self.restorable.trying = Some(Trial {
            ticket,
            began: self.now,
            is_late: false,
        });
        self.restorable.away = Some(ticket);
        self.restorable.next_at = Some(self.now + TRY_EVERY);
        out.push(Effect::TryRestore { ticket, state });
    }

    /// How long a trial may take, and a primary be silent that could go on when this side perhaps
    /// could not.
    fn trial_patience(&self) -> Duration {
        self.policy.arbiter_check + self.policy.heartbeat_timeout * TRIAL_TIMEOUTS
    }

    /// How long the primary may be silent before it counts as lost. One that was told that the copy
    /// is doubtful has time to ask the arbiter first.
    pub(super) fn silence_patience(&self) -> Duration {
        match self.restorable.is_doubtful {
            true => self.trial_patience(),
            false => self.patience.timeout(),
        }
    }

    /// When the open trial takes too long.
    pub(super) fn trial_ends_at(&self) -> Option<Duration> {
        let trial = self.restorable.trying.as_ref()?;
        (!trial.is_late).then(|| trial.began + self.trial_patience())
    }

    /// That is a slow host's doing, and says nothing of the state. A claim waits for the end.
    pub(super) fn trial_expired(&mut self, out: &mut Vec<Effect>) {
        if let Some(trial) = &mut self.restorable.trying {
            trial.is_late = true;
        }
        match self.phase {
            Phase::Syncing | Phase::Standby { cut: None } => {
                self.unrestorable("that does not come to an end", out);
            }
            _ => self.say_what_a_claim_waits_for(out),
        }
    }

    /// If a trial does not come to an end, and this side would claim the guest.
    pub(super) fn say_what_a_claim_waits_for(&self, out: &mut Vec<Effect>) {
        let trial = self.restorable.trying.as_ref();
        let is_late = trial.is_some_and(|trial| trial.is_late);
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
        let restorable = &mut self.restorable;
        restorable.away.take_if(|away| *away == ticket);
        let open = restorable.trying.take_if(|trial| trial.ticket == ticket);
        if open.is_none() {
            return;
        }
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

    /// The guest perhaps cannot go on from what this side has.
    fn unrestorable(&mut self, why: &str, out: &mut Vec<Effect>) {
        let why = format!("its machine cannot load the guest's state: {why}");
        match self.phase {
            Phase::Listening | Phase::Promoted => {}
            Phase::Syncing => {
                if self.sends_beats() {
                    out.push(Effect::Send(Message::Bye(Bye::Unable(why.clone()))));
                }
                self.reset(why, out);
            }
            Phase::Standby { .. }
            | Phase::Claiming {
                machine_broke: false,
                asked: false,
                ..
            } => self.leave_to_primary(why, out),
            // Nobody else can go on, or the arbiter has the claim before it.
            Phase::Claiming { .. } => out.push(Effect::Doubtful { why }),
        }
    }

    /// The copy is kept in case that the primary is gone.
    fn leave_to_primary(&mut self, why: String, out: &mut Vec<Effect>) {
        self.restorable.is_doubtful = true;
        if matches!(self.phase, Phase::Claiming { .. }) {
            let cut = Some(why.clone());
            self.phase = Phase::Standby { cut };
        }
        if self.link == Link::Welcomed {
            out.push(Effect::Send(Message::Bye(Bye::Unable(why.clone()))));
            self.cut_off(why.clone(), false, out);
        }
        out.push(Effect::Doubtful { why });
    }
}
