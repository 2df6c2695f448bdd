//! The guest's end: this side ends with it only when what the guest said last has left, by the rules by which
//! everything leaves: acked (R1), or under a grant. Nobody has to answer in time: until somebody has, it is held.
//!
//! Then the next generation is claimed, so that the backup cannot take over even if it does not hear the farewell.
//! That is not worth waiting for an arbiter that does not answer: nothing would be lost, since the guest's end is
//! part of what the backup has.

use super::{Bye, Effect, Epochs, Message, Phase, PrimaryCore};
use crate::ids::EpochId;

/// The guest has ended, and this side has not yet.
#[derive(Debug)]
pub(super) struct Ending {
    /// With the release of this epoch everything has left. Of no meaning while there are no epochs.
    through: EpochId,
    /// Everything has left.
    pub(super) said_all: bool,
}

impl Ending {
    /// The next epoch to be captured has all that the guest has said.
    fn with(epochs: &mut Epochs) -> Self {
        epochs.want_checkpoint();
        Self {
            through: epochs.next_captured(),
            said_all: false,
        }
    }
}

impl PrimaryCore {
    /// Whether the guest has ended, and what it said last is still on its way out.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn guest_stopped(&mut self, out: &mut Vec<Effect>) {
        if self.ending.is_some() {
            return;
        }
        let mut ending = Ending {
            through: EpochId(0),
            said_all: false,
        };
        match &mut self.phase {
            Phase::Fenced | Phase::Stopped => return,
            Phase::Alone if !self.opening => return self.stop(out),
            Phase::Handshaking => return self.stop(out),
            Phase::Alone | Phase::Claiming { .. } => {}
            // A capture may have failed after it closed the gate.
            Phase::Syncing { .. } => {
                out.push(Effect::Send(Message::Bye(Bye::GuestStopped)));
                // Closes the link.
                self.lose_backup("the guest has ended".into(), out);
            }
            Phase::Protected(epochs) => ending = Ending::with(epochs),
        }
        self.ending = Some(ending);
    }

    /// All that was held for lack of a backup has left.
    pub(super) fn opened(&mut self, out: &mut Vec<Effect>) {
        self.opening = false;
        if self.ending.is_some() && matches!(self.phase, Phase::Alone) {
            self.stop(out);
        }
    }

    /// A stall may have cut the last release short: one more epoch brings the rest along.
    pub(super) fn ending_is_in_doubt(&mut self) {
        if let (Some(ending), Phase::Protected(epochs)) = (&mut self.ending, &mut self.phase)
            && !ending.said_all
        {
            *ending = Ending::with(epochs);
        }
    }

    /// Whether there is to be another epoch.
    pub(super) fn has_more_to_say(&self, epochs: &Epochs) -> bool {
        (self.ending.as_ref()).is_none_or(|ending| epochs.next_captured() <= ending.through)
    }

    /// Whether everything has been let go, and nobody has noticed yet.
    pub(super) fn has_just_said_all(&self) -> bool {
        match (&self.ending, &self.phase) {
            (Some(ending), Phase::Protected(epochs)) => {
                !ending.said_all && self.doubt.is_none() && epochs.released() >= ending.through
            }
            _ => false,
        }
    }

    /// To be called before anything else happens: what was let go has left by then, or the doubt has begun that
    /// stopped it.
    pub(super) fn look_at_end(&mut self) {
        if self.has_just_said_all()
            && let Some(ending) = &mut self.ending
        {
            ending.said_all = true;
        }
    }

    /// Whether nothing is left but to end.
    pub(super) fn has_said_all(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.said_all)
    }

    /// The end. What is still held is dropped.
    pub(super) fn stop(&mut self, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Fenced | Phase::Stopped) {
            return;
        }
        if self.has_link() {
            out.push(Effect::Send(Message::Bye(Bye::GuestStopped)));
            out.push(Effect::CloseLink);
        }
        self.end_session(Phase::Stopped);
    }
}
