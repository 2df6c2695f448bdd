//! Dismisses a living backup: the guest is to go on without it, or with another one. The link stays
//! up until the arbiter has granted the next generation, because a backup that sees it closed
//! claims the guest itself.

use std::time::Duration;

use super::{Bye, Effect, Message, Phase, PrimaryCore};
use crate::ids::Generation;

/// The backup is to go, but may still take over.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Dismissal {
    cause: String,
    /// When to ask for the next generation; `None` while waiting for an answer.
    pub(super) ask_at: Option<Duration>,
}

#[cfg(test)]
impl Dismissal {
    /// For the model.
    pub(super) fn forget_cause(&mut self) {
        self.cause.clear();
    }
}

impl PrimaryCore {
    pub(super) fn dismiss_backup(&mut self, cause: String, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Protected(_)) && self.gives_way() {
            // The guest can only go on there.
            return;
        }
        match (&self.phase, &mut self.dismissal) {
            (Phase::Protected(_), Some(dismissal)) => dismissal.cause = cause,
            (Phase::Protected(_), None) => {
                let ask_at = Some(self.now);
                self.dismissal = Some(Dismissal { cause, ask_at });
            }
            // Without a whole copy the backup cannot claim anything.
            _ => self.lose_backup(cause, out),
        }
    }

    /// The next generation was granted while the backup is dismissed. The backup is told in a
    /// message of the session's generation. Then this side, which holds the next one, makes the
    /// same claim again; its grant lets this side run alone.
    pub(super) fn dismiss_under_grant(&mut self, granted: Generation, out: &mut Vec<Effect>) {
        let Some(dismissal) = self.dismissal.take() else {
            return;
        };
        if !matches!(self.phase, Phase::Protected(_)) {
            // The copy is no longer whole, so nothing needs a grant.
            self.hold(granted);
        } else {
            let current = granted;
            out.push(Effect::Send(Message::Bye(Bye::Fenced { current })));
        }
        self.lose_backup(dismissal.cause, out);
    }
}
