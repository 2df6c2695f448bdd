//! The primary and the arbiter: one question at a time, and what follows from the answers.

use std::time::Duration;

use super::{Effect, Message, Phase, PrimaryCore};
use crate::arbiter::{Mark, Verdict};
use crate::core::violation::ProtocolViolation;
use crate::ids::Generation;

/// The open question to the arbiter. There is one at a time, because answers do not say which
/// question they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Question {
    Claim,
    Confirm { mark: Option<Mark> },
}

/// This process or its link was stalled: is the generation still in force?
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
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
    ///
    /// A claim that was asked before may have been granted. So it comes before everything that
    /// would find this side's own grant in the record; it also settles any doubt.
    pub(super) fn next_question(&mut self) -> Option<(&mut Option<Duration>, Question)> {
        if self.question.is_some() {
            return None;
        }
        let is_session = matches!(self.phase, Phase::Protected(_) | Phase::Syncing { .. });
        let ending_asks = self.ending.as_ref().is_some_and(|it| it.ask_at.is_some());
        let confirm = Question::Confirm { mark: None };
        if is_session && ending_asks {
            let ending = self.ending.as_mut()?;
            return Some((&mut ending.ask_at, Question::Claim));
        }
        if is_session && self.ending.is_none() && self.dismissal.is_some() {
            let dismissal = self.dismissal.as_mut()?;
            return Some((&mut dismissal.ask_at, Question::Claim));
        }
        match (&mut self.phase, &mut self.doubt, &self.ending) {
            (Phase::Fenced | Phase::Stopped, ..) => None,
            (Phase::Claiming { ask_at, .. }, ..) => Some((ask_at, Question::Claim)),
            (Phase::Protected(_), Some(doubt), _) => Some((&mut doubt.ask_at, confirm)),
            // Everything held has left or is about to; there is nothing to confirm.
            (_, _, Some(_)) => None,
            _ => Some((&mut self.confirm_at, confirm)),
        }
    }

    /// Asks the next question.
    pub(super) fn ask_arbiter(&mut self, out: &mut Vec<Effect>) {
        let next = self.mark.next();
        // A doubt holds output, so its question must not depend on storage that takes no writes.
        let marks = self.doubt.is_none() && self.has_link() && self.backup_node.is_some();
        let (generation, mark, beat) = (self.generation, self.mark, self.beat_written);
        let now = self.now;
        let Some((ask_at, question)) = self.next_question() else {
            return;
        };
        *ask_at = None;
        self.question = Some(match question {
            Question::Claim => {
                let known = generation;
                out.push(Effect::Claim { known, mark });
                Question::Claim
            }
            Question::Confirm { .. } => {
                let mark = marks.then_some(next);
                self.confirm_asked_at = now;
                out.push(Effect::Confirm {
                    generation,
                    beat,
                    mark,
                });
                Question::Confirm { mark }
            }
        });
    }

    pub(super) fn verdict(&mut self, verdict: Verdict, out: &mut Vec<Effect>) {
        let Some(question) = self.question else {
            return;
        };
        if matches!(self.phase, Phase::Fenced | Phase::Stopped) {
            self.question = None;
            return;
        }
        if let Verdict::Refused { current, .. } = verdict
            && current < self.generation
        {
            // R10: no side was ever refused by the past.
            let why = format!("its record went back to {current}");
            return self.arbiter_unavailable(why, out);
        }
        self.question = None;
        match (question, verdict) {
            (_, Verdict::Refused { current, holder }) => {
                self.fence(current, format!("the arbiter names {holder}"), out);
            }
            (Question::Claim, Verdict::Granted(granted)) if granted > self.generation => {
                self.granted(granted, out);
            }
            (Question::Confirm { mark }, Verdict::Granted(granted))
                if granted == self.generation =>
            {
                self.confirmed(mark, out);
            }
            (_, Verdict::Granted(granted)) => {
                let why = format!("the arbiter granted it to {question:?}, which cannot be");
                self.fence(granted, why, out);
            }
        }
    }

    /// Whether the arbiter has a claim of this side before it.
    pub(super) fn is_claim_open(&self) -> bool {
        self.question == Some(Question::Claim)
    }

    fn granted(&mut self, granted: Generation, out: &mut Vec<Effect>) {
        if self.gives_way() {
            return self.granted_in_vain(granted, out);
        }
        if self.dismissal.is_some() && self.ending.is_none() {
            return self.dismiss_under_grant(granted, out);
        }
        if self.ending.is_none() && !matches!(self.phase, Phase::Claiming { .. }) {
            return self.granted_late(granted, out);
        }
        if !matches!(self.phase, Phase::Claiming { .. }) || self.has_said_all() {
            return self.end_under_grant(granted, out);
        }
        self.hold(granted);
        if let Phase::Claiming { cause, .. } = std::mem::replace(&mut self.phase, Phase::Alone) {
            self.opening = true;
            out.push(Effect::GoAlone {
                generation: granted,
                cause,
            });
        }
    }

    /// From now on this side holds this generation.
    pub(super) fn hold(&mut self, granted: Generation) {
        self.generation = granted;
        self.beat_written = 0;
    }

    /// What the claim was for has been settled otherwise. The grant is in force all the same.
    fn granted_late(&mut self, granted: Generation, out: &mut Vec<Effect>) {
        self.hold(granted);
        let cause = String::from("the arbiter granted the next generation late");
        if self.has_link() {
            return self.lose_backup(cause, out);
        }
        out.push(Effect::GoAlone {
            generation: granted,
            cause,
        });
        self.opening = true;
    }

    /// The generation is in force, and the mark, if there was one, is in the record.
    fn confirmed(&mut self, mark: Option<Mark>, out: &mut Vec<Effect>) {
        // If it is set, it was wanted again after this question was asked.
        let next = self.now + self.policy.arbiter_check;
        self.confirm_at.get_or_insert(next);
        // An answer to a question from before the last stall says nothing about now.
        if self.doubt.as_ref().is_some_and(|d| d.ask_at.is_none()) {
            self.doubt = None;
        }
        let Some(mark) = mark.filter(|mark| mark.session == self.mark.session) else {
            return;
        };
        self.mark_before = (self.mark, self.marked_at);
        (self.mark, self.marked_at) = (mark, self.now);
        self.beat_written = mark.beat;
        if self.has_link() {
            out.push(Effect::Send(Message::Marked(mark)));
        }
        if let Phase::Handshaking {
            marked: marked @ false,
            ..
        } = &mut self.phase
        {
            *marked = true;
            // From here on it is the backup's look at the record that is waited for.
            self.link_up_at = self.now;
        }
    }

    /// The backup has seen a mark in its own arbiter's record.
    pub(super) fn seen(&mut self, mark: Mark, out: &mut Vec<Effect>) {
        if mark > self.mark || mark.session != self.mark.session {
            return self.violated(&ProtocolViolation::Mark { mark }, out);
        }
        // A standby that is slow has seen the one before. Which it is tells when that was.
        let known = [(self.mark, self.marked_at), self.mark_before];
        let written_at = known.into_iter().find(|(written, _)| mark == *written);
        let written_at = written_at.map(|(_, at)| at);
        // R9: nothing is copied to a backup that sees another record.
        if let Phase::Handshaking { welcomed, .. } = &mut self.phase
            && let Some(disks) = welcomed.take()
        {
            self.phase = Phase::Syncing {
                rounds: 0,
                round_at: self.now,
                capture_at: None,
                failures: 0,
            };
            self.promise.begin(written_at.unwrap_or(self.now));
            out.push(Effect::StartSync { disks });
        }
        if let Some(at) = written_at {
            self.promise.prove(at);
        }
    }

    pub(super) fn arbiter_unavailable(&mut self, why: String, out: &mut Vec<Effect>) {
        let retry_at = self.now + self.policy.arbiter_retry;
        let question = self.question.take();
        if self.has_said_all() && question == Some(Question::Claim) {
            return self.stop(out);
        }
        self.promise.fail(why.clone());
        if matches!(self.phase, Phase::Syncing { .. } | Phase::Protected(_)) {
            out.push(Effect::Send(Message::NoArbiter(why.clone())));
        }
        if question == Some(Question::Claim) && self.gives_way() {
            return self.withdraw_claim(out);
        }
        match (question, &mut self.phase) {
            (Some(Question::Claim), Phase::Claiming { ask_at, .. }) => *ask_at = Some(retry_at),
            (Some(Question::Claim), _) => {
                if let Some(ending) = &mut self.ending {
                    ending.ask_at = Some(retry_at);
                } else if let Some(dismissal) = &mut self.dismissal {
                    dismissal.ask_at = Some(retry_at);
                }
            }
            (Some(Question::Confirm { mark: Some(_) }), Phase::Handshaking { .. }) => {
                self.confirm_at = Some(self.now + self.policy.arbiter_check);
                let cause = format!("nobody could take over, the arbiter gives no answer: {why}");
                self.lose_backup(cause, out);
            }
            (Some(Question::Confirm { .. }), _) => {
                let next = self.now + self.policy.arbiter_check;
                self.confirm_at.get_or_insert(next);
                if let Some(doubt) = &mut self.doubt {
                    doubt.ask_at = Some(retry_at);
                }
            }
            _ => {}
        }
    }

    /// Somebody says that a later generation is in force. That is hearsay (R10): the arbiter is
    /// asked, unless it just was. While a claim is open or about to be made, its answer
    /// decides.
    pub(super) fn hear_of_later(&mut self) {
        if self.now < self.confirm_asked_at + self.policy.heartbeat_timeout {
            return;
        }
        match self.phase {
            Phase::Protected(_) if self.doubt.is_none() => self.begin_to_doubt(),
            Phase::Alone | Phase::Handshaking { .. } | Phase::Syncing { .. } => {
                self.confirm_at = Some(self.now);
            }
            _ => {}
        }
    }
}
