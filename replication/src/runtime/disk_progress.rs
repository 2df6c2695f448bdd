//! What the log says while disks are compared and copied: at the beginning, every few seconds, and at the end.
//! Must not be done here: deciding anything.

use std::time::{Duration, Instant};

use crate::ports::PrimaryDisks;
use crate::ports::disks::SyncPlan;

/// Time between two log lines about one copy.
const INTERVAL: Duration = Duration::from_secs(5);
const MIB: f64 = (1 << 20) as f64;

/// How far the copy of the disks is after a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DiskStep {
    /// Sent in this step.
    pub(super) bytes_sent: u64,
    /// Still to be compared or copied.
    pub(super) bytes_left: u64,
    /// Found equal so far.
    pub(super) bytes_equal: u64,
}

/// The copy in progress, if any.
#[derive(Debug, Default)]
pub(super) struct DiskProgress(Option<Copy>);

#[derive(Debug)]
struct Copy {
    bytes: u64,
    compared: bool,
    bytes_sent: u64,
    began: Instant,
    said: Instant,
}

impl DiskProgress {
    pub(super) fn begin(&mut self, disks: &dyn PrimaryDisks, plan: &SyncPlan) {
        let plans = plan.disks.iter().zip(&plan.compared);
        for (disk, (plan, compared)) in disks.names().iter().zip(plans) {
            let how = match (plan.full, compared) {
                (_, true) => "what differs: all of it is compared",
                (true, false) => "all of it",
                (false, false) => "what has changed",
            };
            tracing::info!(disk, "the standby's disk gets {how}");
        }
        let now = Instant::now();
        self.0 = Some(Copy {
            bytes: plan.bytes,
            compared: plan.compared.contains(&true),
            bytes_sent: 0,
            began: now,
            said: now,
        });
    }

    /// Another step of the copy is done. After the last one, nothing more is said.
    pub(super) fn step(&mut self, step: DiskStep) {
        let Some(copy) = &mut self.0 else { return };
        copy.bytes_sent += step.bytes_sent;
        let (done, sent) = (
            copy.bytes.saturating_sub(step.bytes_left) as f64 / MIB,
            copy.bytes_sent as f64 / MIB,
        );
        let seconds = copy.began.elapsed().as_secs_f64();
        let rate = done / seconds.max(1e-3);
        let what = if copy.compared {
            let equal = step.bytes_equal as f64 / MIB;
            format!(", {equal:.1} MiB of it found equal, {sent:.1} MiB sent")
        } else {
            String::new()
        };
        if step.bytes_left == 0 {
            tracing::info!(
                "the disks are copied: {done:.1} MiB in {seconds:.1} s, {rate:.1} MiB/s{what}"
            );
            self.0 = None;
        } else if copy.said.elapsed() >= INTERVAL {
            copy.said = Instant::now();
            let all = copy.bytes as f64 / MIB;
            let percent = done * 100.0 / all;
            tracing::info!("copying disks: {percent:.0} % of {all:.1} MiB, {rate:.1} MiB/s{what}");
        }
    }
}
