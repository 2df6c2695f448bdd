//! What fails on this host of what the guest would need here: the primary is told, so that it knows
//! what a handover would lead to.
//!
//! Must not be done here: judging what fails. The VMM does, and to this core it is text.

use super::{BackupCore, Effect, Link, Message, Phase};
use crate::core::message::Trouble;

/// What the VMM has found, and whether the primary knows.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Health {
    /// `None`: it has not looked yet, and nothing is said.
    troubles: Option<Vec<Trouble>>,
    /// The number of the session in which the primary was told; 0 if it was not.
    told_in: u64,
}

impl Health {
    pub(super) fn found(&mut self, troubles: Vec<Trouble>) {
        if self.troubles.as_ref() != Some(&troubles) {
            self.troubles = Some(troubles);
            self.told_in = 0;
        }
    }
}

impl BackupCore {
    /// Tells the primary once in each session, and whenever it has changed. Before this side has a
    /// whole copy it does not matter.
    pub(super) fn tell_health(&mut self, out: &mut Vec<Effect>) {
        let is_standby = matches!(self.phase, Phase::Standby { .. }) && self.link == Link::Welcomed;
        if let Some(troubles) = &self.health.troubles
            && is_standby
            && self.health.told_in != self.told.session
        {
            out.push(Effect::Send(Message::Health(troubles.clone())));
            self.health.told_in = self.told.session;
        }
    }
}
