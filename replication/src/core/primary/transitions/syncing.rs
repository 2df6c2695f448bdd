//! The initial synchronisation, captures that fail, and what [`Throttle`](crate::core::throttle) is told of both.
//!
//! Must not be done here: deciding how far a guest is slowed.

use std::time::Duration;

use super::{Effect, Phase, PrimaryCore};
use crate::core::primary::epochs::Epochs;
use crate::ids::EpochId;

/// After this many failed captures in a row, protection is given up: held output must not wait
/// forever.
pub(super) const CAPTURE_FAILURES_MAX: u32 = 5;

impl PrimaryCore {
    fn goes_on_syncing(&self) -> bool {
        let capture_at = match self.phase {
            Phase::Syncing { capture_at, .. } => capture_at,
            _ => return false,
        };
        capture_at.is_none() && !self.machine_broke
    }

    /// More of the disks is to be copied.
    pub(super) fn disks_shipped(&mut self, out: &mut Vec<Effect>) {
        if !self.goes_on_syncing() {
            return;
        }
        if let Phase::Syncing { round_at, .. } = &mut self.phase {
            *round_at = self.now;
        }
        out.push(Effect::SyncRound);
    }

    pub(super) fn round_shipped(
        &mut self,
        pages_left: u64,
        left_takes: Duration,
        out: &mut Vec<Effect>,
    ) {
        if !self.goes_on_syncing() {
            return;
        }
        let Phase::Syncing {
            rounds, round_at, ..
        } = &mut self.phase
        else {
            return;
        };
        *rounds += 1;
        let took = self.now.saturating_sub(*round_at);
        *round_at = self.now;
        self.throttle.copied(self.now);
        let is_little = pages_left <= self.policy.sync_pages_left;
        let max = self.policy.sync_rounds_max;
        let is_last = *rounds >= max;
        // At its slowest, a guest is given some more while they become shorter.
        let is_hopeless = is_last && (left_takes > took / 2 || *rounds >= max.saturating_mul(2));
        if (is_little || is_last) && self.throttle.is_in_time(left_takes)
            || is_hopeless && self.throttle.is_exhausted()
        {
            return self.capture_first(0, out);
        }
        self.throttle.round(took, left_takes, is_last);
        out.push(Effect::SyncRound);
    }

    /// From here on, losing the backup needs a grant: the end of epoch 1 may be on its way before
    /// the runtime's report is read.
    pub(super) fn capture_first(&mut self, failures: u32, out: &mut Vec<Effect>) {
        let mut epochs = Epochs::new(self.now, failures);
        out.push(Effect::Capture(epochs.end(self.now, &self.policy)));
        self.phase = Phase::Protected(epochs);
        self.throttle.ended(self.now);
    }

    pub(super) fn capture_failed(&mut self, epoch: EpochId, error: &str, out: &mut Vec<Effect>) {
        let retry_at = self.now + self.policy.epoch_interval;
        let Phase::Protected(epochs) = &mut self.phase else {
            return;
        };
        self.throttle.not_ended();
        match epochs.capture_failed(epoch, self.now) {
            Err(out_of_order) => self.lose_backup(out_of_order.to_string(), out),
            Ok(failures) if failures >= CAPTURE_FAILURES_MAX => {
                if epochs.before_first() {
                    self.phase = syncing_again(self.now, retry_at, failures);
                }
                if self.ending_needs_grant() && !matches!(self.phase, Phase::Syncing { .. }) {
                    return;
                }
                let cause = format!("capture failed {failures} times in a row: {error}");
                self.lose_backup(cause, out);
            }
            Ok(failures) => {
                if epochs.before_first() {
                    self.phase = syncing_again(self.now, retry_at, failures);
                }
            }
        }
    }

    /// Looks at an epoch that has just been acked, before the next one ends.
    pub(super) fn look_at_acked(&mut self) {
        if let Phase::Protected(epochs) = &mut self.phase
            && let Some(bytes) = epochs.take_acked()
        {
            self.throttle.acked(self.now, bytes);
        }
    }
}

fn syncing_again(now: Duration, capture_at: Duration, failures: u32) -> Phase {
    Phase::Syncing {
        rounds: 0,
        round_at: now,
        capture_at: Some(capture_at),
        failures,
    }
}
