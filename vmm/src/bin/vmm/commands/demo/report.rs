//! What the demo found: the figures, and whether all was exact.

use serde::Serialize;
use understudy_vmm::local_cluster::Figures;
use understudy_vmm::node::Status;

use super::super::status::outage;
use crate::args::{DemoArgs, Fault};
use crate::exit::FENCED;

/// What became of a frozen primary that was continued after the promotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fenced {
    /// Its exit code.
    pub(super) exit_code: Option<i32>,
    /// Frames it let out after it was continued.
    pub(super) frames_released: u64,
    /// What it said.
    pub(super) reason: Option<String>,
}

/// What was found on the guest's disk at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct DiskFindings {
    /// The last write that the guest said was flushed.
    pub(super) flushed_writes: u64,
    /// The last write on the image, which holds all before it.
    pub(super) found_writes: u64,
    /// What is wrong with it.
    pub(super) fault: Option<String>,
}

/// The object that `--json` prints.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Report {
    fault: &'static str,
    clients: usize,
    bytes_checked: u64,
    bytes_lost: u64,
    bytes_repeated: u64,
    acked_writes: u64,
    acked_writes_missing: u64,
    outage_ms: f64,
    reaction_ms: f64,
    recovery_ms: f64,
    longest_client_gap_ms: f64,
    /// Time from an INCR to its answer while the guest was protected.
    answer_us_p50: u64,
    /// See `answer_us_p50`.
    answer_us_p99: u64,
    epochs: u64,
    pause_us_p50: u64,
    pause_us_p99: u64,
    ack_us_p50: u64,
    ack_us_p99: u64,
    dirty_pages: u64,
    raw_dirty_bytes: u64,
    wire_bytes: u64,
    /// Frames lost at the gates of both sides.
    frames_dropped: u64,
    /// Network output that was held when the fault came.
    held_bytes: u64,
    old_primary: Option<Fenced>,
    disk: Option<DiskFindings>,
    /// Why `ok` is false.
    pub(super) faults: Vec<String>,
    pub(super) ok: bool,
}

impl Report {
    /// `before` and `protected` were taken just before the fault, `after` and `taken_over` right after the
    /// promotion, `end` and `figures` at the end.
    pub(super) fn new(
        arguments: &DemoArgs,
        clients: usize,
        failed_ns: u64,
        [before, after, end]: [&Status; 3],
        [protected, taken_over, figures]: [&Figures; 3],
        old_primary: Option<Fenced>,
        disk: Option<DiskFindings>,
    ) -> Self {
        // Both processes and this one read the same clock, so the times start at the fault itself.
        let since = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        let (detected_ns, running_ns) = after.failover.as_ref().map_or((0, 0), |failover| {
            (
                failover.detected_monotonic_ns,
                failover.running_monotonic_ns,
            )
        });
        let mut report = Self {
            fault: match arguments.fault {
                Fault::Kill => "kill",
                Fault::Freeze => "freeze",
            },
            clients: usize::from(arguments.clients),
            bytes_checked: figures.bytes_checked,
            bytes_lost: figures.bytes_lost,
            bytes_repeated: figures.bytes_repeated,
            acked_writes: figures.acked_writes,
            acked_writes_missing: figures.acked_writes_missing,
            outage_ms: since(failed_ns, running_ns),
            reaction_ms: since(failed_ns, detected_ns),
            recovery_ms: since(detected_ns.max(failed_ns), running_ns),
            longest_client_gap_ms: figures.longest_gap_ms,
            answer_us_p50: protected.answer_us_p50,
            answer_us_p99: protected.answer_us_p99,
            epochs: before.epochs,
            pause_us_p50: before.pause_us.p50,
            pause_us_p99: before.pause_us.p99,
            ack_us_p50: before.ack_us.p50,
            ack_us_p99: before.ack_us.p99,
            dirty_pages: before.dirty_pages.p50,
            raw_dirty_bytes: before.raw_dirty_bytes,
            wire_bytes: before.wire_bytes,
            frames_dropped: before.output.frames_dropped + end.output.frames_dropped,
            held_bytes: before.output.held_bytes,
            old_primary,
            disk,
            faults: Vec::new(),
            ok: false,
        };
        report.judge(clients, taken_over, figures);
        report
    }

    fn judge(&mut self, clients: usize, taken_over: &Figures, figures: &Figures) {
        let mut require = |holds: bool, fault: String| {
            if !holds {
                self.faults.push(fault);
            }
        };
        let served = figures.clients_served;
        require(
            served == clients,
            format!("{served} of {clients} clients were served"),
        );
        let stuck = figures.stuck_since(taken_over);
        require(
            stuck == 0,
            format!("{stuck} of {clients} clients got nothing after the failover"),
        );
        require(self.bytes_checked > 0, "no byte was checked".into());
        require(
            self.bytes_lost == 0,
            format!("{} bytes lost", self.bytes_lost),
        );
        require(
            self.bytes_repeated == 0,
            format!("{} bytes repeated", self.bytes_repeated),
        );
        require(self.acked_writes > 0, "no write was acknowledged".into());
        require(
            self.acked_writes_missing == 0,
            format!("{} acknowledged writes missing", self.acked_writes_missing),
        );
        for error in &figures.errors {
            require(false, error.to_string());
        }
        if let Some(old) = &self.old_primary {
            let released = old.frames_released;
            require(
                released == 0,
                format!("the old primary released {released} frames"),
            );
            require(
                old.exit_code == Some(i32::from(FENCED)),
                format!(
                    "the old primary ended with {:?}, not as fenced",
                    old.exit_code
                ),
            );
            require(
                old.reason.is_some(),
                "the old primary did not say why it stopped".into(),
            );
        }
        if let Some(disk) = &self.disk {
            let fault = disk.fault.clone().unwrap_or_default();
            require(disk.fault.is_none(), format!("the guest's disk: {fault}"));
            require(disk.flushed_writes > 0, "the guest flushed nothing".into());
        }
        self.ok = self.faults.is_empty();
    }

    /// For a person.
    pub(super) fn render(&self) -> String {
        let rows = self.times().into_iter().chain(self.findings());
        rows.map(|(name, value)| format!("  {name:<22}{value}\n"))
            .collect()
    }

    /// How long things took, and how much was sent.
    fn times(&self) -> Vec<(&'static str, String)> {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        let times = |p50: u64, p99: u64| {
            format!(
                "p50 {:.2} ms, p99 {:.2} ms",
                p50 as f64 / 1e3,
                p99 as f64 / 1e3
            )
        };
        vec![
            ("fault", self.fault.into()),
            ("outage", outage(self.reaction_ms, self.recovery_ms)),
            (
                "longest client gap",
                format!("{:.1} ms", self.longest_client_gap_ms),
            ),
            (
                "INCR answered in",
                times(self.answer_us_p50, self.answer_us_p99),
            ),
            ("epochs before", self.epochs.to_string()),
            (
                "pause per epoch",
                times(self.pause_us_p50, self.pause_us_p99),
            ),
            (
                "acknowledged after",
                times(self.ack_us_p50, self.ack_us_p99),
            ),
            ("dirty pages per epoch", format!("p50 {}", self.dirty_pages)),
            (
                "sent",
                format!(
                    "{:.1} MiB for {:.1} MiB of dirty pages",
                    mib(self.wire_bytes),
                    mib(self.raw_dirty_bytes)
                ),
            ),
            (
                "held, dropped",
                format!(
                    "{:.1} KiB held at the fault; {} frames dropped in all",
                    self.held_bytes as f64 / 1024.0,
                    self.frames_dropped
                ),
            ),
        ]
    }

    /// What became of the old primary, the disk and the clients' bytes.
    fn findings(&self) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        if let Some(old) = &self.old_primary {
            let reason = old.reason.as_deref().unwrap_or("nothing");
            rows.push((
                "old primary",
                format!("released {} frames, said: {reason}", old.frames_released),
            ));
        }
        if let Some(disk) = &self.disk {
            let fine = || {
                format!(
                    "writes 1 to {} are there, {} of them flushed before the end",
                    disk.found_writes, disk.flushed_writes
                )
            };
            rows.push(("disk", disk.fault.clone().unwrap_or_else(fine)));
        }
        rows.extend([
            (
                "clients",
                format!(
                    "{} streams, {} INCRs acknowledged",
                    self.clients, self.acked_writes
                ),
            ),
            (
                "bytes checked",
                format!(
                    "{}: {} lost, {} repeated; {} acknowledged writes missing",
                    self.bytes_checked,
                    self.bytes_lost,
                    self.bytes_repeated,
                    self.acked_writes_missing
                ),
            ),
            (
                "result",
                if self.ok {
                    "exact".into()
                } else {
                    self.faults.join("; ")
                },
            ),
        ]);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(progress: [u64; 3]) -> Figures {
        Figures {
            clients_served: 3,
            progress: progress.to_vec(),
            bytes_checked: progress[0] + progress[1],
            acked_writes: progress[2],
            ..Figures::default()
        }
    }

    fn faults(taken_over: &Figures, end: &Figures) -> Vec<String> {
        let mut report = Report {
            bytes_checked: end.bytes_checked,
            acked_writes: end.acked_writes,
            ..Report::default()
        };
        report.judge(3, taken_over, end);
        assert_eq!(report.ok, report.faults.is_empty());
        report.faults
    }

    #[test]
    fn a_promoted_guest_that_serves_nobody_is_no_success() {
        let taken_over = figures([1000, 1000, 10]);
        assert_eq!(faults(&taken_over, &figures([1001, 1001, 11])), [""; 0]);
        for stuck in [[1000, 1001, 11], [1001, 1000, 11], [1001, 1001, 10]] {
            let fault = "1 of 3 clients got nothing after the failover";
            assert_eq!(faults(&taken_over, &figures(stuck)), [fault]);
        }
    }
}
