//! A backup is dismissed that lives: the guest is to go on without it, or with another one. The link stays up until
//! the arbiter has granted the next generation, because a backup that sees it closed claims the guest itself.

use std::time::Duration;

use super::{Bye, Effect, Message, Phase, PrimaryCore};
use crate::ids::Generation;

/// The backup is to go, and may still take over.
#[derive(Debug)]
pub(super) struct Dismissal {
    cause: String,
    /// When to ask for the next generation; `None` while an answer is awaited.
    pub(super) ask_at: Option<Duration>,
}

impl PrimaryCore {
    pub(super) fn dismiss_backup(&mut self, cause: String, out: &mut Vec<Effect>) {
        match (&self.phase, &mut self.dismissal) {
            (Phase::Protected(_), Some(dismissal)) => dismissal.cause = cause,
            (Phase::Protected(_), None) => {
                let ask_at = Some(self.now);
                self.dismissal = Some(Dismissal { cause, ask_at });
            }
            // Without a whole copy there is nothing that it could claim.
            _ => self.lose_backup(cause, out),
        }
    }

    /// The next generation was granted while the backup is dismissed. It is told so in the words of the session's
    /// generation; the same claim, made once more by the holder, then lets this side go alone.
    pub(super) fn dismiss_under_grant(&mut self, granted: Generation, out: &mut Vec<Effect>) {
        let Some(dismissal) = self.dismissal.take() else {
            return;
        };
        if !matches!(self.phase, Phase::Protected(_)) {
            // The copy is not whole any more: nothing needs a grant.
            self.generation = granted;
        } else {
            let current = granted;
            out.push(Effect::Send(Message::Bye(Bye::Fenced { current })));
        }
        self.lose_backup(dismissal.cause, out);
    }
}
