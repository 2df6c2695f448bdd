//! How a session ends, a copy is given up, and this side claims the guest or stops.
//!
//! Must not be done here: deciding that the primary is lost, or who may run the guest.

use super::{BackupCore, Disks, Effect, Link, Phase, ProtocolViolation, StagingError};
use crate::core::message::{Bye, Message};
use crate::ids::EpochId;
use crate::output::KeptOutput;

impl BackupCore {
    pub(super) fn close_link(&mut self, out: &mut Vec<Effect>) {
        if self.link != Link::Down {
            self.link = Link::Down;
            self.promise.end();
            out.push(Effect::CloseLink);
        }
    }

    /// R2: drops a staged epoch that is not whole, all of it, and reports it. An epoch whose disk
    /// writes are being persisted is kept: the outcome decides what becomes of it.
    pub(super) fn discard(&mut self, why: &str, out: &mut Vec<Effect>) {
        if self.is_persisting() {
            return;
        }
        if self.staging.has_begun() {
            out.push(Effect::Discarded {
                epoch: self.staging.epoch(),
                why: why.to_owned(),
            });
        }
        self.staging.restart(self.staging.epoch());
    }

    pub(super) fn violated(&mut self, violation: &ProtocolViolation, out: &mut Vec<Effect>) {
        let cause = violation.to_string();
        let ProtocolViolation::Staging(StagingError::SyncWrite(_)) = violation else {
            return self.cut_off(cause, true, out);
        };
        // The primary did nothing wrong, and should not come back at once with all of memory.
        out.push(Effect::Send(Message::Bye(Bye::Unable(cause.clone()))));
        self.cut_off(cause, false, out);
    }

    /// The link is useless now, but the primary probably lives.
    pub(super) fn cut_off(&mut self, cause: String, tell: bool, out: &mut Vec<Effect>) {
        if self.link == Link::Down {
            return;
        }
        let is_session = self.link == Link::Welcomed;
        if tell {
            out.push(Effect::Send(Message::Bye(Bye::Protocol(cause.clone()))));
        }
        self.close_link(out);
        if !is_session {
            return;
        }
        self.heard_at = self.now;
        self.discard(&cause, out);
        match &mut self.phase {
            Phase::Syncing => self.reset(cause, out),
            Phase::Standby { cut } => *cut = Some(cause),
            _ => {}
        }
    }

    /// Asks to be promoted because the primary is lost. Closes the link first: a primary that was
    /// only stalled then finds the end of the link right behind the acks that it has not read yet.
    pub(super) fn claim(&mut self, cause: String, out: &mut Vec<Effect>) {
        self.close_link(out);
        self.claim_from_living(cause, false, out);
    }

    /// Asks to be promoted although the primary lives. The link stays open until the arbiter has
    /// answered: a primary that sees it closed claims for itself and could win.
    pub(super) fn claim_from_living(
        &mut self,
        cause: String,
        machine_broke: bool,
        out: &mut Vec<Effect>,
    ) {
        self.discard(
            &format!("incomplete when this side claimed the guest: {cause}"),
            out,
        );
        self.phase = Phase::Claiming {
            cause,
            machine_broke,
            ask_at: Some(self.now),
            asked: false,
            stops: false,
            arrivals: None,
        };
        self.say_what_a_claim_waits_for(out);
    }

    /// Ends, unless the arbiter may have granted the guest to this side.
    pub(super) fn stop(&mut self, out: &mut Vec<Effect>) {
        match &mut self.phase {
            Phase::Claiming {
                asked: true,
                stops: stops @ false,
                ..
            } => *stops = true,
            Phase::Promoted => {}
            _ => {
                if self.link == Link::Welcomed {
                    out.push(Effect::Send(Message::Bye(Bye::BackupStopped)));
                }
                self.close_link(out);
                self.end(out);
            }
        }
    }

    pub(super) fn end(&mut self, out: &mut Vec<Effect>) {
        self.stopped = true;
        out.push(Effect::Stop);
    }

    pub(super) fn reset(&mut self, reason: String, out: &mut Vec<Effect>) {
        let stops = matches!(self.phase, Phase::Claiming { stops: true, .. });
        self.close_link(out);
        self.disks = Disks::default();
        self.restorable.end();
        self.discard(&reason, out);
        self.staging.restart(EpochId(1));
        self.committed = None;
        self.kept = KeptOutput::default();
        self.primary_node = None;
        self.promise.end();
        self.phase = Phase::Listening;
        out.push(Effect::Reset { reason });
        if stops {
            self.end(out);
        }
    }
}
