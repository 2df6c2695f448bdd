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
