//! The primary and the arbiter: one question at a time, and what follows from the answers.

use std::time::Duration;

use super::{Effect, Phase, PrimaryCore};
use crate::arbiter::Verdict;
use crate::ids::Generation;

/// The open question to the arbiter. There is one at a time, because answers do not say which
/// question they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Claim,
    Confirm,
}

/// This process or its link was stalled: is the generation still in force?
#[derive(Debug)]
pub(super) struct Doubt {
    /// When to ask (again). If it is set while an answer is awaited, that answer is older than the
    /// doubt.
    pub(super) ask_at: Option<Duration>,
}

impl PrimaryCore {
    /// This side or its link was stalled for so long that the backup may have been promoted.
    pub(super) fn begin_to_doubt(&mut self) {
        if matches!(self.phase, Phase::Protected(_)) {
            let ask_at = Some(self.now);
            self.doubt = Some(Doubt { ask_at });
            self.ending_is_in_doubt();
        }
    }

    /// The next question, and when to ask it; `None` while one is open.
    pub(super) fn next_question(&mut self) -> Option<(&mut Option<Duration>, Question)> {
        if self.question.is_some() {
            return None;
        }
        match (&mut self.phase, &mut self.doubt, &mut self.ending) {
            (Phase::Claiming { ask_at, .. }, _, _) => Some((ask_at, Question::Claim)),
            (Phase::Protected(_), Some(doubt), _) => Some((&mut doubt.ask_at, Question::Confirm)),
            (Phase::Protected(_) | Phase::Syncing { .. }, None, Some(ending)) => {
                Some((&mut ending.ask_at, Question::Claim))
            }
            (Phase::Protected(_), None, None) => {
                let dismissal = self.dismissal.as_mut()?;
                Some((&mut dismissal.ask_at, Question::Claim))
            }
            _ => None,
        }
    }

    /// Asks the next question.
    pub(super) fn ask_arbiter(&mut self, out: &mut Vec<Effect>) {
        let Some((ask_at, question)) = self.next_question() else {
            return;
        };
        *ask_at = None;
        self.question = Some(question);
        out.push(match question {
            Question::Claim => Effect::Claim(self.generation),
            Question::Confirm => Effect::Confirm(self.generation),
        });
    }

    pub(super) fn verdict(&mut self, verdict: Verdict, out: &mut Vec<Effect>) {
        let Some(question) = self.question.take() else {
            return;
        };
        if matches!(self.phase, Phase::Fenced | Phase::Stopped) {
            return;
        }
        match (question, verdict) {
            (_, Verdict::Refused { current, holder }) => {
                self.fence(current, format!("the arbiter names {holder}"), out);
            }
            (Question::Claim, Verdict::Granted(granted)) if granted > self.generation => {
                if self.dismissal.is_some() && self.ending.is_none() {
                    return self.dismiss_under_grant(granted, out);
                }
                if !matches!(self.phase, Phase::Claiming { .. }) || self.has_said_all() {
                    return self.end_under_grant(granted, out);
                }
                self.generation = granted;
                if let Phase::Claiming { cause, .. } =
                    std::mem::replace(&mut self.phase, Phase::Alone)
                {
                    self.opening = true;
                    out.push(Effect::GoAlone {
                        generation: granted,
                        cause,
                    });
                }
            }
            (Question::Confirm, Verdict::Granted(granted)) if granted == self.generation => {
                // An answer to a question from before the last stall says nothing about now.
                if self.doubt.as_ref().is_some_and(|d| d.ask_at.is_none()) {
                    self.doubt = None;
                }
            }
            (_, Verdict::Granted(granted)) => {
                let why = format!("the arbiter granted it to {question:?}, which cannot be");
                self.fence(granted, why, out);
            }
        }
    }

    pub(super) fn arbiter_unavailable(&mut self, out: &mut Vec<Effect>) {
        let retry_at = self.now + self.policy.arbiter_retry;
        if self.has_said_all() {
            return self.stop(out);
        }
        match (self.question.take(), &mut self.phase) {
            (Some(Question::Claim), Phase::Claiming { ask_at, .. }) => *ask_at = Some(retry_at),
            (Some(Question::Claim), _) => {
                if let Some(ending) = &mut self.ending {
                    ending.ask_at = Some(retry_at);
                } else if let Some(dismissal) = &mut self.dismissal {
                    dismissal.ask_at = Some(retry_at);
                }
            }
            (Some(Question::Confirm), Phase::Protected(_)) => {
                if let Some(doubt) = &mut self.doubt {
                    doubt.ask_at = Some(retry_at);
                }
            }
            _ => {}
        }
    }

    /// A later generation was seen. While a claim is open it may be this side's own, with the grant
    /// still on its way here. Then the arbiter's answer decides; output that is not acked is held
    /// in any case.
    pub(super) fn hear_of(&mut self, current: Generation, how: String, out: &mut Vec<Effect>) {
        let may_be_mine =
            matches!(self.phase, Phase::Claiming { .. }) || self.question == Some(Question::Claim);
        if !may_be_mine {
            self.fence(current, how, out);
        }
    }
}
