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

/// How many heartbeat timeouts each of the two steps may take.
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
    /// When this step began.
    since: Duration,
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
    /// Whether the guest is being handed over.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.handover.is_some()
    }

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

    /// Whether the backup is to be told now.
    fn may_tell(&self, handover: &Handover, epochs: &Epochs) -> bool {
        !handover.told && self.doubt.is_none() && epochs.released() >= handover.through
    }

    /// When the next step is due, or takes too long.
    pub(super) fn handover_at(&self) -> Option<Duration> {
        let (Some(handover), Phase::Protected(epochs)) = (&self.handover, &self.phase) else {
            return None;
        };
        if self.may_tell(handover, epochs) {
            return Some(self.now);
        }
        Some(handover.since + self.policy.heartbeat_timeout * HANDOVER_TIMEOUTS)
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
            self.handover = None;
            let why = "the standby has not acknowledged the last epoch in time".into();
            out.push(Effect::NotHandedOver { why });
        }
    }

    /// The guest stays here, or has ended.
    pub(super) fn settle_handover(&mut self, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Protected(_) | Phase::Claiming { .. }) {
            return;
        }
        if self.handover.take().is_some() {
            let why = "the standby was lost before it was granted it".into();
            out.push(Effect::NotHandedOver { why });
        }
    }
}
