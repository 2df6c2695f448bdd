//! The guest's end. This side ends only when the guest's last output has left by the usual rules:
//! acked (R1), or under a grant. Until the backup or the arbiter answers, the output is held.
//!
//! Then this side claims the next generation, so that the backup cannot take over even if it misses
//! the farewell. The arbiter gets little time for that: without its answer nothing is lost, because
//! the backup has the guest's end.

use std::time::Duration;

use super::{Bye, Effect, Epochs, Message, Phase, PrimaryCore};
use crate::ids::{EpochId, Generation};

/// How many heartbeat timeouts the arbiter has to answer the last question.
const LAST_ANSWER_TIMEOUTS: u32 = 4;

/// The guest has ended, or this side is to end at once.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Ending {
    stage: Stage,
    /// When to ask for the next generation while there is a link. `None` if it is too early or an
    /// answer is awaited.
    pub(super) ask_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Stage {
    /// Everything has left once this epoch is released. Meaningless while there are no epochs.
    Until(EpochId),
    /// The guest cannot be captured any more. So what is held needs a grant, as it does without a
    /// backup.
    NeedsGrant,
    /// Everything has left or is to be dropped.
    Last { since: Duration },
}

impl Ending {
    fn at(stage: Stage) -> Self {
        Self {
            stage,
            ask_at: None,
        }
    }

    /// For the model: the wait for the last answer began at this time.
    #[cfg(test)]
    pub(super) fn set_since(&mut self, at: Duration) {
        if let Stage::Last { since } = &mut self.stage {
            *since = at;
        }
    }

    /// The next epoch to be captured contains everything that the guest has said.
    fn with(epochs: &mut Epochs) -> Self {
        epochs.want_checkpoint();
        Self::at(Stage::Until(epochs.next_captured()))
    }
}

impl PrimaryCore {
    /// Whether this side is ending: the guest has ended, or it was told to end at once.
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
            Phase::Handshaking { .. } => return self.stop(out),
            Phase::Alone | Phase::Claiming { .. } => {}
            // A failed capture may already have closed the gate.
            Phase::Syncing { .. } => {
                out.push(Effect::Send(Message::Bye(Bye::GuestStopped)));
                // Closes the link.
                self.lose_backup("the guest has ended".into(), out);
            }
            Phase::Protected(_) if self.machine_broke => {
                ending = Ending::at(Stage::NeedsGrant);
                ending.ask_at = Some(self.now);
            }
            Phase::Protected(epochs) => ending = Ending::with(epochs),
        }
        self.ending = Some(ending);
    }

    /// Drops what is held. If the arbiter answers soon, the backup is still kept from taking over.
    pub(super) fn abandon(&mut self, out: &mut Vec<Effect>) {
        if self.has_said_all() {
            // Asking again does not extend the wait for the last answer.
            return;
        }
        match &mut self.phase {
            Phase::Fenced | Phase::Stopped => {}
            Phase::Alone | Phase::Handshaking { .. } => self.stop(out),
            Phase::Syncing { .. } | Phase::Protected(_) => self.await_last_answer(),
            Phase::Claiming { ask_at, .. } => {
                // An answer that is already awaited is not asked for again.
                *ask_at = ask_at.map(|_| self.now);
                self.await_last_answer();
            }
        }
    }

    /// Everything has left or is to be dropped. All that remains is one last question to the
    /// arbiter.
    pub(super) fn await_last_answer(&mut self) {
        let mut last = Ending::at(Stage::Last { since: self.now });
        last.ask_at = Some(self.now);
        self.ending = Some(last);
    }

    /// The guest cannot be captured any more. If it has ended, what is held now needs a grant.
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

    /// The next generation was granted, so nobody else can take over.
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

    /// Everything that was held for lack of a backup has left.
    pub(super) fn opened(&mut self, out: &mut Vec<Effect>) {
        self.opening = false;
        if self.ending.is_some() && matches!(self.phase, Phase::Alone) {
            self.stop(out);
        }
    }

    /// A stall may have cut the last release short. One more epoch takes the rest along.
    pub(super) fn ending_is_in_doubt(&mut self) {
        if let (Some(ending), Phase::Protected(epochs)) = (&mut self.ending, &mut self.phase)
            && matches!(ending.stage, Stage::Until(_))
        {
            *ending = Ending::with(epochs);
        }
    }

    /// Whether another epoch is to be captured.
    pub(super) fn has_more_to_say(&self, epochs: &Epochs) -> bool {
        let last = self.last_epoch();
        self.ending.is_none() || last.is_some_and(|last| epochs.next_captured() <= last)
    }

    /// The epoch that has the last of what the guest said, if it is to be acknowledged by the backup.
    pub(super) fn last_epoch(&self) -> Option<EpochId> {
        match self.ending.as_ref()?.stage {
            Stage::Until(through) => Some(through),
            Stage::NeedsGrant | Stage::Last { .. } => None,
        }
    }

    /// Whether everything has been released, but this side has not reacted yet. This is checked
    /// before any other input: by then everything released has left, or the doubt that stopped it
    /// has begun.
    pub(super) fn has_just_said_all(&self) -> bool {
        match (self.last_epoch(), &self.phase) {
            (Some(last), Phase::Protected(epochs)) => {
                self.doubt.is_none() && epochs.released() >= last
            }
            _ => false,
        }
    }

    /// Whether all that remains is to end.
    #[must_use]
    pub fn has_said_all(&self) -> bool {
        let stage = self.ending.as_ref().map(|ending| ending.stage);
        matches!(stage, Some(Stage::Last { .. }))
    }

    /// Until when to wait for the last answer.
    pub(super) fn last_answer_at(&self) -> Option<Duration> {
        match self.ending.as_ref()?.stage {
            Stage::Last { since } if !matches!(self.phase, Phase::Fenced | Phase::Stopped) => {
                Some(since + self.policy.heartbeat_timeout * LAST_ANSWER_TIMEOUTS)
            }
            _ => None,
        }
    }

    /// Ends this side. What is still held is dropped.
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
