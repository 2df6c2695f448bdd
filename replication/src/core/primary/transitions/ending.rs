//! The guest's end. This side ends only when what the guest said last has left by the usual rules:
//! acked (R1), or under a grant. Until somebody answers, it is held.
//!
//! Then the next generation is claimed, so that the backup cannot take over even if it misses the
//! farewell. The arbiter gets little time for that: nothing would be lost without it, since the
//! backup has the guest's end.

use std::time::Duration;

use super::{Bye, Effect, Epochs, Message, Phase, PrimaryCore};
use crate::ids::{EpochId, Generation};

/// The arbiter gets so many heartbeat timeouts for the last question.
const LAST_ANSWER_TIMEOUTS: u32 = 4;

/// The guest has ended, and this side has not yet.
#[derive(Debug)]
pub(super) struct Ending {
    stage: Stage,
    /// When to ask for the next generation while there is a link; `None`: not yet, or an answer is
    /// awaited.
    pub(super) ask_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// With the release of this epoch everything has left. Of no meaning while there are no epochs.
    Until(EpochId),
    /// The guest cannot be captured any more, so what is held needs a grant, as without a backup.
    NeedsGrant,
    /// Everything has left, or is to be dropped.
    Last { since: Duration },
}

impl Ending {
    fn at(stage: Stage) -> Self {
        Self {
            stage,
            ask_at: None,
        }
    }

    /// The next epoch to be captured has all that the guest has said.
    fn with(epochs: &mut Epochs) -> Self {
        epochs.want_checkpoint();
        Self::at(Stage::Until(epochs.next_captured()))
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
        let mut ending = Ending::at(Stage::Until(EpochId(0)));
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

    /// What is held is dropped. A backup is still kept from taking over, if the arbiter answers
    /// soon.
    pub(super) fn abandon(&mut self, out: &mut Vec<Effect>) {
        if self.has_said_all() {
            // Asking again does not extend the wait for the last answer.
            return;
        }
        match &mut self.phase {
            Phase::Fenced | Phase::Stopped => {}
            Phase::Alone | Phase::Handshaking => self.stop(out),
            Phase::Syncing { .. } | Phase::Protected(_) => self.await_last_answer(),
            Phase::Claiming { ask_at, .. } => {
                // Unless an answer is awaited.
                *ask_at = ask_at.map(|_| self.now);
                self.await_last_answer();
            }
        }
    }

    /// Everything has left, or is to be dropped: only the arbiter is asked once more.
    pub(super) fn await_last_answer(&mut self) {
        let mut last = Ending::at(Stage::Last { since: self.now });
        last.ask_at = Some(self.now);
        self.ending = Some(last);
    }

    /// The guest cannot be captured any more: if it has ended, what is held needs a grant now.
    /// Returns whether it has ended.
    pub(super) fn ending_needs_grant(&mut self) -> bool {
        let Some(ending) = &mut self.ending else {
            return false;
        };
        if matches!(ending.stage, Stage::Until(_)) {
            ending.stage = Stage::NeedsGrant;
            ending.ask_at = Some(self.now);
        }
        true
    }

    /// The next generation was granted, so nobody can take over.
    pub(super) fn end_under_grant(&mut self, generation: Generation, out: &mut Vec<Effect>) {
        if self.has_said_all() {
            return self.stop(out);
        }
        out.push(Effect::Send(Message::Bye(Bye::GuestStopped)));
        out.push(Effect::CloseLink);
        let cause = "the guest has ended".into();
        out.push(Effect::GoAlone { generation, cause });
        self.opening = true;
        self.end_session(Phase::Alone);
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
            && matches!(ending.stage, Stage::Until(_))
        {
            *ending = Ending::with(epochs);
        }
    }

    /// Whether there is to be another epoch.
    pub(super) fn has_more_to_say(&self, epochs: &Epochs) -> bool {
        self.ending
            .as_ref()
            .is_none_or(|ending| match ending.stage {
                Stage::Until(through) => epochs.next_captured() <= through,
                Stage::NeedsGrant | Stage::Last { .. } => false,
            })
    }

    /// Whether everything has been let go, and nobody has noticed yet. It is noticed before
    /// anything else happens: what was let go has left by then, or the doubt has begun that stopped
    /// it.
    pub(super) fn has_just_said_all(&self) -> bool {
        let stage = self.ending.as_ref().map(|ending| ending.stage);
        match (stage, &self.phase) {
            (Some(Stage::Until(through)), Phase::Protected(epochs)) => {
                self.doubt.is_none() && epochs.released() >= through
            }
            _ => false,
        }
    }

    /// Whether nothing is left but to end.
    #[must_use]
    pub fn has_said_all(&self) -> bool {
        let stage = self.ending.as_ref().map(|ending| ending.stage);
        matches!(stage, Some(Stage::Last { .. }))
    }

    /// Until when the last answer is waited for.
    pub(super) fn last_answer_at(&self) -> Option<Duration> {
        match self.ending.as_ref()?.stage {
            Stage::Last { since } if !matches!(self.phase, Phase::Fenced | Phase::Stopped) => {
                Some(since + self.policy.heartbeat_timeout * LAST_ANSWER_TIMEOUTS)
            }
            _ => None,
        }
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
