//! The backup and the arbiter: one question at a time, and what follows from the answers.
//!
//! Must not be done here: giving a copy up for any other reason than that the arbiter names a later
//! generation than the copy's.

use std::time::Duration;

use super::{BackupCore, Generation, Mark};
use super::{Bye, Effect, Link, Message, Phase};
use crate::arbiter::{Record, Verdict};
use crate::core::violation::ProtocolViolation;

/// The open question to the arbiter. There is one at a time, because answers do not say which
/// question they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Question {
    /// May this side have the generation after this one?
    Claim(Generation),
    /// What does the record say, and could a claim be granted?
    Rehearsal,
    /// What does the record say?
    Look,
}

impl BackupCore {
    /// When to ask the next question; `None` while one is open.
    pub(super) fn asks_at(&self) -> Option<Duration> {
        if self.question.is_some() {
            return None;
        }
        match &self.phase {
            // Only once it is settled which epoch this side would continue from, and on what.
            Phase::Claiming { ask_at, .. } => {
                ask_at.filter(|_| !self.staging.is_whole() && !self.restorable.is_away())
            }
            Phase::Promoted => None,
            _ if self.rehearsal_wanted => Some(self.now),
            _ => self.looks_at(),
        }
    }

    pub(super) fn ask_arbiter(&mut self, out: &mut Vec<Effect>) {
        if let Phase::Claiming { ask_at, asked, .. } = &mut self.phase {
            *ask_at = None;
            *asked = true;
            let (known, mark) = (self.generation, self.told);
            self.question = Some(Question::Claim(known));
            out.push(Effect::Claim { known, mark });
        } else if self.rehearsal_wanted {
            self.rehearsal_wanted = false;
            self.question = Some(Question::Rehearsal);
            out.push(Effect::Rehearse);
        } else {
            self.to_start.look_at = Some(self.now + self.policy.arbiter_check);
            self.question = Some(Question::Look);
            out.push(Effect::Look);
        }
    }

    /// The primary says that it has written a mark.
    pub(super) fn told(&mut self, mark: Mark) -> Result<(), ProtocolViolation> {
        if mark.session != self.told.session || mark.beat <= self.told.beat {
            return Err(ProtocolViolation::Mark { mark });
        }
        if self.told.beat == 0 {
            // From here on it is this side's arbiter that is waited for.
            self.welcomed_at = self.now;
        }
        self.told = mark;
        self.rehearsal_wanted = true;
        Ok(())
    }

    pub(super) fn rehearsed(&mut self, record: Record, out: &mut Vec<Effect>) {
        if self.question != Some(Question::Rehearsal) {
            return;
        }
        if record.generation < self.generation {
            let why = format!("its record went back to {}", record.generation);
            return self.arbiter_unavailable(why, out);
        }
        self.question = None;
        if self.rehearsal_wanted {
            // This was asked before what it is to be compared with was said.
            return;
        }
        match std::mem::replace(&mut self.link, Link::Down) {
            Link::Introduced {
                generation,
                hello,
                session,
            } => {
                self.welcome(generation, *hello, session, &record, out);
            }
            link => {
                self.link = link;
                self.compare(&record, out);
            }
        }
    }

    /// Whether the record is the one that the primary of this session writes to.
    fn compare(&mut self, record: &Record, out: &mut Vec<Effect>) {
        if self.link != Link::Welcomed {
            return;
        }
        if record.generation == self.generation && record.mark.shows(self.told) {
            self.promise.prove(self.now);
            return out.push(Effect::Send(Message::Seen(self.told)));
        }
        let why = format!(
            "the arbiter here shows {} and {}, the primary wrote {} in {}: both hosts must use \
             one directory, not copies of it",
            record.generation, record.mark, self.told, self.generation
        );
        if !self.is_proven() {
            return self.give_up_unproven(why, out);
        }
        self.promise.fail(why.clone());
        out.push(Effect::Send(Message::NoArbiter(why)));
    }

    pub(super) fn verdict(&mut self, verdict: Verdict, out: &mut Vec<Effect>) {
        let Some(Question::Claim(asked)) = self.question else {
            return;
        };
        let Phase::Claiming {
            cause,
            machine_broke,
            arrivals,
            ..
        } = &mut self.phase
        else {
            self.question = None;
            return;
        };
        if asked != self.generation {
            self.question = None;
            return;
        }
        match verdict {
            Verdict::Granted(granted) if granted > self.generation => {
                let (cause, machine_broke) = (std::mem::take(cause), *machine_broke);
                let arrivals = arrivals.take();
                self.question = None;
                self.generation = granted;
                self.phase = Phase::Promoted;
                self.promise.end();
                // A shared disk is the primary's until it knows.
                if arrivals.is_none() || self.identity.has_shared {
                    self.take_leave(out);
                }
                if let Some(epoch) = self.committed_epoch() {
                    out.push(Effect::Promote {
                        generation: granted,
                        epoch,
                        cause,
                        machine_broke,
                        arrivals,
                    });
                }
            }
            Verdict::Refused { current, holder } if current > self.generation => {
                self.question = None;
                self.generation = current;
                self.reset(format!("the arbiter names {holder}, {current}"), out);
            }
            Verdict::Refused { current, holder } => {
                // R10: no copy was ever given up because of the past.
                let why = format!("it names {holder} and {current}, which is not later");
                self.arbiter_unavailable(why, out);
            }
            Verdict::Granted(granted) => {
                let known = self.generation;
                let why = format!("it granted {granted} after {known}, which cannot be");
                self.arbiter_unavailable(why, out);
            }
        }
    }

    /// The guest is here now. Nothing more of it comes over the link.
    pub(super) fn take_leave(&mut self, out: &mut Vec<Effect>) {
        if self.link == Link::Welcomed {
            // A living primary that hears this asks the arbiter at once.
            let current = self.generation;
            out.push(Effect::Send(Message::Bye(Bye::Fenced { current })));
            self.close_link(out);
        }
    }

    pub(super) fn arbiter_unavailable(&mut self, why: String, out: &mut Vec<Effect>) {
        match self.question.take() {
            Some(Question::Claim(_)) => {
                if let Phase::Claiming { ask_at, .. } = &mut self.phase {
                    *ask_at = Some(self.now + self.policy.arbiter_retry);
                    // A living primary must not hold its output because of an arbiter that only
                    // this side cannot reach.
                    self.close_link(out);
                }
            }
            Some(Question::Rehearsal) => {
                self.promise.fail(why.clone());
                match self.link {
                    Link::Introduced { .. } => self.refuse_for_lack_of_arbiter(why, out),
                    Link::Welcomed if matches!(self.phase, Phase::Syncing) && !self.is_proven() => {
                        self.give_up_unproven(why, out);
                    }
                    Link::Welcomed if !matches!(self.phase, Phase::Claiming { .. }) => {
                        out.push(Effect::Send(Message::NoArbiter(why)));
                    }
                    _ => {}
                }
            }
            Some(Question::Look) | None => self.to_start.not_asked(),
        }
    }
}
