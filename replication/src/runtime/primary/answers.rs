//! What the arbiter's answers, or their absence, mean to the primary's core and to people.
//!
//! Must not be done here: deciding what follows; the core does that.

use super::driver::Driver;
use crate::causes::causes;
use crate::core::primary::{PrimaryInput, PrimaryPhase};
use crate::runtime::arbitration::{Answer, Answered};

impl Driver {
    pub(super) fn answered(&mut self, answer: Answer) -> Option<PrimaryInput> {
        match answer {
            Ok(Answered::Verdict(verdict)) => {
                self.metrics.answered();
                Some(PrimaryInput::Verdict(verdict))
            }
            // Only a standby asks for that.
            Ok(Answered::Rehearsed(_) | Answered::Looked { .. } | Answered::Inquired { .. }) => {
                None
            }
            Err(error) => {
                let why = causes(&error);
                self.no_answer(&why);
                if self.core.phase() == PrimaryPhase::Handshaking {
                    // It costs the standby something, too.
                    self.retry.refused();
                }
                Some(PrimaryInput::ArbiterUnavailable { why })
            }
        }
    }

    /// Tells people that there is no answer.
    pub(super) fn no_answer(&self, why: &str) {
        let what = if self.core.has_said_all() {
            "no answer, so the standby may take over a guest that has ended"
        } else if self.core.is_ending() {
            "the guest has ended, and what it said last is held until the arbiter answers"
        } else {
            "no answer, so nothing is decided"
        };
        self.metrics.no_answer(format!("{what}: {why}"));
    }
}
