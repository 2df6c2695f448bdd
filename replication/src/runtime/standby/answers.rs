//! What the arbiter's answers, or their absence, mean to the standby's core and to people.
//!
//! Must not be done here: deciding what follows; the core does that.

use super::driver::Driver;
use crate::causes::causes;
use crate::core::backup::BackupInput;
use crate::ports::Machine;
use crate::runtime::arbitration::{Answer, Answered};

impl<M: Machine> Driver<M> {
    pub(super) fn answered(&self, answer: Answer) -> BackupInput {
        match answer {
            Ok(answered) => {
                self.metrics.answered();
                match answered {
                    Answered::Verdict(verdict) => BackupInput::Verdict(verdict),
                    Answered::Rehearsed(record) => BackupInput::Rehearsed(record),
                }
            }
            Err(error) => {
                let why = causes(&error);
                self.metrics
                    .no_answer(format!("no answer, so no promotion: {why}"));
                BackupInput::ArbiterUnavailable { why }
            }
        }
    }
}
