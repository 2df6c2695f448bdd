//! Hands the guest over to the backup, which is alive and in sync: because this host is to stop, or
//! because something of it fails that the backup's host has.
//!
//! The epoch ends. Once it is released, the backup is told, and claims the guest while the link
//! stays up. From then on nothing more ends or leaves here, so that what the guest goes on with
//! there is all that it ever said. The arbiter decides as ever. If it grants the guest to the
//! backup, this side is fenced. If the backup cannot ask it, or takes too long, this side claims the
//! guest itself and goes on.
//!
//! Must not be done here: giving the guest up before the arbiter names the other side (R10).

use std::time::Duration;

use super::{Effect, Epochs, Message, Phase, PrimaryCore};
use crate::ids::EpochId;

/// How many heartbeat timeouts each of the two steps may take, beside the time between two questions
/// to the arbiter.
const HANDOVER_TIMEOUTS: u32 = 10;

/// The guest is being handed over.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Handover {
    why: String,
    /// The last epoch: its output still leaves here.
    through: EpochId,
    /// The backup was told.
    told: bool,
    /// When this step began; time that this side slept is not counted.
    since: Duration,
}

impl Handover {
    pub(super) fn slept(&mut self, time: Duration) {
        self.since += time;
    }
}

#[cfg(test)]
impl Handover {
    /// For the model.
    pub(super) fn forget(&mut self, at: Duration) {
        self.why.clear();
        self.since = at;
    }
}

impl PrimaryCore {
    pub(super) fn hand_over(&mut self, why: String, out: &mut Vec<Effect>) {
        if self.handover.is_some() {
            return;
        }
        let is_possible = self.is_protected() && self.ending.is_none() && self.dismissal.is_none();
        match &mut self.phase {
            Phase::Protected(epochs) if is_possible => {
                epochs.want_checkpoint();
                self.handover = Some(Handover {
                    why,
                    through: epochs.next_captured(),
                    told: false,
                    since: self.now,
                });
            }
            _ => {
                let why = "no standby would be granted it now".into();
                out.push(Effect::NotHandedOver { why });
            }
        }
    }

    /// Whether the backup was told to take the guest over.
    pub(super) fn has_let_go(&self) -> bool {
        self.handover.as_ref().is_some_and(|it| it.told)
    }

    /// Whether the backup is to be told now. It is not if it would not be granted the guest, or the
    /// guest is ending.
    fn may_tell(&self, handover: &Handover, epochs: &Epochs) -> bool {
        let stays = self.doubt.is_some() || self.ending.is_some() || self.dismissal.is_some();
        let has_left = epochs.released() >= handover.through;
        !handover.told && !stays && has_left && self.promise.is_kept()
    }

    /// When the next step is due, or takes too long.
    pub(super) fn handover_at(&self) -> Option<Duration> {
        let (Some(handover), Phase::Protected(epochs)) = (&self.handover, &self.phase) else {
            return None;
        };
        if self.may_tell(handover, epochs) {
            return Some(self.now);
        }
        let patience = self.policy.heartbeat_timeout * HANDOVER_TIMEOUTS;
        Some(handover.since + self.policy.arbiter_check + patience)
    }

    /// The next step of a handover is due, or has taken too long.
    pub(super) fn handover_expired(&mut self, out: &mut Vec<Effect>) {
        let (Some(handover), Phase::Protected(epochs)) = (&self.handover, &self.phase) else {
            return;
        };
        if self.may_tell(handover, epochs) {
            out.push(Effect::Send(Message::TakeOver(handover.why.clone())));
            let now = self.now;
            if let Some(handover) = &mut self.handover {
                (handover.told, handover.since) = (true, now);
            }
        } else if handover.told {
            // It may still be granted the guest. The arbiter is asked which side goes on.
            self.lose_backup("it has not taken the guest over in time".into(), out);
        } else {
            let why = match self.promise.is_kept() {
                true => "the standby has not acknowledged the last epoch in time",
                false => "the standby would not be granted it now",
            };
            self.call_off(why, out);
        }
    }

    /// The guest stays here, or has ended.
    pub(super) fn settle_handover(&mut self, out: &mut Vec<Effect>) {
        let is_ending = self.ending.is_some() || self.dismissal.is_some();
        let is_open = matches!(self.phase, Phase::Protected(_) | Phase::Claiming { .. });
        if is_ending && !self.has_let_go() {
            self.call_off("the guest ends, or is to have another standby", out);
        } else if !is_open {
            self.call_off("the standby was not granted it", out);
        }
    }

    fn call_off(&mut self, why: &str, out: &mut Vec<Effect>) {
        if self.handover.take().is_some() {
            let why = why.to_owned();
            out.push(Effect::NotHandedOver { why });
        }
    }
}
