//! Hands the guest over to the backup, which is alive and in sync: because this host is to stop, or
//! because something of it fails that the backup's host has.
//!
//! The epoch ends. Once it is released, the backup is told, and claims the guest while the link
//! stays up. What the guest was given after its last epoch follows it. From then on nothing more ends or leaves here, so that what the guest goes on with
//! there is all that it ever said. The arbiter decides as ever. If it grants the guest to the
//! backup, this side is fenced. If the backup cannot ask it, or takes too long, this side claims the
//! guest itself and goes on.
//!
//! A machine that has broken is captured no more: it goes on from the last epoch that the backup
//! has, and nothing follows it. This side waits only for what is on its way, and never claims the guest, of which it has
//! nothing any more. If the backup does not take the guest over in time, or is lost, this side ends
//! without a farewell, as if its host had died, and leaves the guest to the backup.
//!
//! A claim that was to be made when the machine broke, because the backup was lost or is to go, is
//! not made, and not repeated. One that the arbiter has before it cannot be taken back, so its
//! answer is waited for. Only if it is a grant is the guest over. So it is if the backup says that
//! it stops. One that says that it cannot keep its copy may still go on from what it has.
//!
//! Must not be done here: giving the guest up before the arbiter names the other side (R10).

use std::time::Duration;

use super::{Bye, Effect, Epochs, Message, Phase, PrimaryCore};
use crate::ids::{EpochId, Generation};

/// How many heartbeat timeouts each of the two steps may take, beside the time between two questions
/// to the arbiter.
const HANDOVER_TIMEOUTS: u32 = 10;

const NO_COPY: &str = "no standby has a whole copy of it";

/// The guest is being handed over.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Handover {
    why: String,
    /// The last epoch: its output still leaves here. Of a machine that has broken, it is whichever
    /// is on its way.
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
                out.push(Effect::KeepArrivals);
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

    /// The machine can neither go on nor be captured any more.
    pub(super) fn machine_broke(&mut self, why: String, out: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.machine_broke, true) {
            return;
        }
        let may_go_on_there = self.ending.is_none();
        let through = match &self.phase {
            Phase::Fenced | Phase::Stopped => return,
            Phase::Protected(_) if self.has_let_go() => {
                // It goes on as it is, but no dismissal that came after it does.
                if !self.is_claim_open() {
                    self.withdraw_claim(out);
                }
                return;
            }
            Phase::Protected(epochs) if may_go_on_there => epochs.acked(),
            Phase::Claiming { .. } if may_go_on_there => EpochId(0),
            _ => {
                self.ending_needs_grant();
                self.handover = None;
                let why = NO_COPY.into();
                return out.push(Effect::NotHandedOver { why });
            }
        };
        self.handover = Some(Handover {
            why,
            through,
            told: false,
            since: self.now,
        });
        if !self.is_claim_open() {
            self.withdraw_claim(out);
        }
    }

    /// Whether the guest is the backup's, if that has a copy: the machine has broken here, and nobody
    /// has ended the guest.
    pub(super) fn gives_way(&self) -> bool {
        self.machine_broke && self.ending.is_none()
    }

    /// Whether the guest is left to the backup if that is lost now, or says that it has the guest.
    pub(super) fn leaves_guest(&self) -> bool {
        self.gives_way() && !self.is_claim_open()
    }

    /// This side gives way, and a claim that it was about to make, or to repeat, is not made. The
    /// backup then is told to take the guest over, or does so by itself.
    pub(super) fn withdraw_claim(&mut self, out: &mut Vec<Effect>) {
        self.dismissal = None;
        if let Phase::Claiming { cause, .. } = &mut self.phase {
            let cause = std::mem::take(cause);
            self.leave_guest(&cause, out);
        }
    }

    /// Ends without a farewell: the backup then claims the guest.
    pub(super) fn leave_guest(&mut self, cause: &str, out: &mut Vec<Effect>) {
        let was_told = self.has_let_go();
        let why = self.handover.take().map_or_else(String::new, |it| it.why);
        let to = match self.epochs() {
            Some(epochs) if epochs.acked().0 == 0 => "the standby, if its copy is whole",
            _ => "the standby",
        };
        if self.has_link() {
            if !was_told {
                // Perhaps it arrives: whoever goes on should know why.
                let (why, machine_broke) = (why.clone(), true);
                out.push(Effect::TakeOver { why, machine_broke });
            }
            out.push(Effect::CloseLink);
        }
        let why = format!("{why}; the guest is left to {to} ({cause})");
        out.push(Effect::LeftToBackup { why });
        self.end_session(Phase::Stopped);
    }

    /// The backup says that it ends the session. If it stops, there is nobody that this side could give
    /// way to. That is hearsay, so nothing of what is held leaves.
    pub(super) fn backup_goes(&mut self, bye: &Bye, out: &mut Vec<Effect>) {
        let leaves = matches!(self.phase, Phase::Protected(_)) && self.leaves_guest();
        match bye {
            Bye::BackupStopped if leaves => {}
            Bye::Unable(_) if leaves => {
                let cause = format!("{bye}; it goes on if it still has one");
                return self.lose_backup(cause, out);
            }
            _ => return self.lose_backup(bye.to_string(), out),
        }
        out.push(Effect::CloseLink);
        self.end_session(Phase::Stopped);
        self.call_off(&bye.to_string(), out);
    }

    /// This side was to give way, but the arbiter had its claim before it, and grants it. Nobody else
    /// can go on with the guest.
    pub(super) fn granted_in_vain(&mut self, generation: Generation, out: &mut Vec<Effect>) {
        if self.has_link() {
            // In the session's generation.
            out.push(Effect::Send(Message::Bye(Bye::GuestStopped)));
            out.push(Effect::CloseLink);
        } else {
            self.hold(generation);
        }
        let cause = String::from("the arbiter gave this side the guest when its machine broke");
        out.push(Effect::GoAlone {
            generation,
            cause: cause.clone(),
        });
        self.opening = true;
        self.end_session(Phase::Alone);
        self.call_off(&cause, out);
    }

    /// Whether the backup was told to take the guest over.
    pub(super) fn has_let_go(&self) -> bool {
        self.handover.as_ref().is_some_and(|it| it.told)
    }

    /// Whether the backup is to be told now. It is not if it would not be granted the guest, or the
    /// guest is ending.
    fn may_tell(&self, handover: &Handover, epochs: &Epochs) -> bool {
        let stays = self.doubt.is_some() || self.ending.is_some() || self.dismissal.is_some();
        let may_go = match self.machine_broke {
            // There is nothing that could stay.
            true => epochs.has_nothing_under_way(),
            false => epochs.released() >= handover.through && self.promise.is_kept(),
        };
        !handover.told && !stays && may_go
    }

    /// When the next step is due, or takes too long.
    pub(super) fn handover_at(&self) -> Option<Duration> {
        let handover = self.handover.as_ref()?;
        match &self.phase {
            Phase::Protected(epochs) if self.may_tell(handover, epochs) => return Some(self.now),
            Phase::Protected(_) => {}
            Phase::Claiming { .. } if self.gives_way() => {}
            _ => return None,
        }
        let patience = self.policy.heartbeat_timeout * HANDOVER_TIMEOUTS;
        Some(handover.since + self.policy.arbiter_check + patience)
    }

    /// The next step of a handover is due, or has taken too long.
    pub(super) fn handover_expired(&mut self, out: &mut Vec<Effect>) {
        if self.gives_way() && self.is_claim_open() {
            let cause = "the arbiter has not said in time which side goes on";
            return self.leave_guest(cause, out);
        }
        let (Some(handover), Phase::Protected(epochs)) = (&self.handover, &self.phase) else {
            return;
        };
        // Whatever is still on its way from a machine that has broken is given up.
        if self.may_tell(handover, epochs) || (self.leaves_guest() && !handover.told) {
            out.push(Effect::TakeOver {
                why: handover.why.clone(),
                machine_broke: self.machine_broke,
            });
            if !self.machine_broke {
                out.push(Effect::SendArrivals);
            }
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
        let is_dismissed = self.dismissal.is_some() && !self.machine_broke;
        let is_ending = self.ending.is_some() || is_dismissed;
        let is_open = matches!(self.phase, Phase::Protected(_) | Phase::Claiming { .. });
        if is_ending && !self.has_let_go() {
            self.call_off("the guest ends, or is to have another standby", out);
        } else if matches!(self.phase, Phase::Syncing { .. }) {
            self.call_off(NO_COPY, out);
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
