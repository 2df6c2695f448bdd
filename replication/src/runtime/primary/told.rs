//! What the primary's driver tells people: its state, and why there is no standby.
//!
//! Must not be done here: deciding anything.

use tokio::time::Instant;

use super::driver::Driver;
use crate::core::primary::{EndingAwaits, PrimaryPhase};
use crate::runtime::alarms::Topic;

impl Driver {
    pub(super) fn not_connected(&mut self, why: &str) {
        if self.retry.failed(why) {
            // A guest that was protected does not run on without one before the arbiter has said so.
            let what = match self.core.phase() {
                PrimaryPhase::Protected | PrimaryPhase::Claiming => "no standby any more",
                _ => "no standby, the guest runs unprotected",
            };
            self.metrics.alarm(Topic::Peer, format!("{what}: {why}"));
        }
    }

    pub(super) fn publish(&mut self) {
        let core = &self.core;
        let is_protected = core.phase() == PrimaryPhase::Protected && core.acked().is_some();
        if is_protected {
            self.retry.protected(Instant::now());
        }
        self.metrics.set_phase(
            core.phase().name(),
            core.generation(),
            core.acked().unwrap_or_default(),
            core.is_protected(),
        );
        self.metrics.set_silence_timeout(core.silence_timeout());
        self.metrics.set_peer(core.backup_node().map(str::to_owned));
        self.metrics.set_backup_troubles(core.backup_troubles());
        let awaits = core.ending_awaits();
        self.metrics.set_ending(awaits.map(EndingAwaits::name));
    }
}
