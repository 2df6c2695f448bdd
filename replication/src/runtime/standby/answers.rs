//! The standby's claims, and what the arbiter's answers, or their absence, mean to the core and to people.
//!
//! Must not be done here: deciding what follows; the core does that.

use super::driver::Driver;
use super::ending::Detected;
use crate::arbiter::Mark;
use crate::causes::causes;
use crate::core::backup::{BackupInput, BackupPhase};
use crate::ids::Generation;
use crate::ports::Machine;
use crate::runtime::alarms::Topic;
use crate::runtime::arbitration::{Answer, Answered, Question};

impl<M: Machine> Driver<M> {
    pub(super) fn claim(&mut self, known: Generation, mark: Mark) {
        self.metrics.over(Topic::Takeover);
        self.detect();
        self.arbitration.ask(Question::Claim { known, mark });
    }

    /// The primary counts as lost from now on, if it did not before.
    fn detect(&mut self) {
        let detected = Detected::now(self.last_contact);
        self.detected.get_or_insert(detected);
    }

    pub(super) fn claim_waits(&mut self, why: &str) {
        self.detect();
        let what = format!("the guest cannot be taken over yet: {why}");
        self.metrics.alarm(Topic::Takeover, what);
    }

    /// What becomes of the guest if this side is stopped while it takes over.
    pub(super) fn say_what_a_stop_means(&self) {
        if self.core.has_asked() {
            tracing::warn!(
                "stops once the arbiter has answered, unless it grants the guest to this side"
            );
        } else if self.core.phase() == BackupPhase::Claiming {
            tracing::warn!(
                "stops before it could take the guest over, with its copy: unless the primary still runs it, nobody does"
            );
        }
    }

    pub(super) fn answered(&self, answer: Answer) -> BackupInput {
        match answer {
            Ok(answered) => {
                self.metrics.answered();
                match answered {
                    Answered::Verdict(verdict) => BackupInput::Verdict(verdict),
                    Answered::Rehearsed(record) => BackupInput::Rehearsed(record),
                    Answered::Looked {
                        record,
                        holder_lives,
                    } => BackupInput::Looked {
                        record,
                        holder_lives,
                    },
                    Answered::Inquired { theirs, disks } => BackupInput::Inquired { theirs, disks },
                }
            }
            Err(error) => {
                let why = causes(&error);
                self.no_answer(&why);
                BackupInput::ArbiterUnavailable { why }
            }
        }
    }

    /// Tells people that there is no answer.
    pub(super) fn no_answer(&self, why: &str) {
        self.metrics
            .no_answer(format!("no answer, so no promotion: {why}"));
    }
}
