//! What the log says while disks are copied: at the beginning, every few seconds, and at the end.
//! Must not be done here: deciding anything.

use std::time::{Duration, Instant};

use crate::ports::PrimaryDisks;
use crate::ports::disks::SyncPlan;

/// Time between two log lines about one copy.
const INTERVAL: Duration = Duration::from_secs(5);
const MIB: f64 = (1 << 20) as f64;

/// The copy in progress, if any.
#[derive(Debug, Default)]
pub(super) struct DiskProgress(Option<Copy>);

#[derive(Debug)]
struct Copy {
    bytes: u64,
    began: Instant,
    said: Instant,
}

impl DiskProgress {
    pub(super) fn begin(&mut self, disks: &dyn PrimaryDisks, plan: &SyncPlan) {
        for (disk, plan) in disks.names().iter().zip(&plan.disks) {
            let how = if plan.full {
                "all of it"
            } else {
                "what has changed"
            };
            tracing::info!(disk, "the standby's disk gets {how}");
        }
        let now = Instant::now();
        self.0 = Some(Copy {
            bytes: plan.bytes,
            began: now,
            said: now,
        });
    }

    /// Logs that `bytes_left` bytes are still to be copied.
    pub(super) fn left(&mut self, bytes_left: u64) {
        let Some(copy) = &mut self.0 else { return };
        let done = copy.bytes.saturating_sub(bytes_left) as f64;
        let seconds = copy.began.elapsed().as_secs_f64();
        let rate = done / MIB / seconds.max(1e-3);
        if bytes_left == 0 {
            tracing::info!(
                "the disks are copied: {:.1} MiB in {seconds:.1} s, {rate:.1} MiB/s",
                done / MIB
            );
            self.0 = None;
        } else if copy.said.elapsed() >= INTERVAL {
            copy.said = Instant::now();
            tracing::info!(
                "copying disks: {:.0} % of {:.1} MiB, {rate:.1} MiB/s",
                done * 100.0 / copy.bytes as f64,
                copy.bytes as f64 / MIB,
            );
        }
    }
}
