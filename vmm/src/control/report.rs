//! What `vmm status` shows: replication's status, and what has become of the guest itself.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use understudy_replication::output::OutputCounts;
use understudy_replication::runtime::{DisksStatus, Status};

/// A replicated guest's answer to [`Command::Status`](super::Command::Status).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Replication's part.
    #[serde(flatten)]
    pub status: Status,
    /// The guest's part.
    #[serde(default)]
    pub guest: GuestReport,
}

/// An unprotected guest's answer to [`Command::Status`](super::Command::Status). What is in [`Status`] as well has
/// the same name and meaning there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Tells this answer from a [`Report`].
    pub role: Unprotected,
    /// Name of the virtual machine.
    pub vm: String,
    /// This host's name.
    pub node: String,
    /// Whether the loss of the host would be survived: false.
    pub protected: bool,
    /// How long this process has run the guest, in seconds.
    pub uptime_s: u64,
    /// The guest's output at this side's gate.
    pub output: OutputCounts,
    /// All disks. Modes are `local` (no second copy), `readonly`, and for images that are one of a pair
    /// `replicated` or `shared`.
    pub disks: DisksStatus,
    /// What has become of the guest.
    pub guest: GuestReport,
}

/// The role of a `vmm run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unprotected {
    /// It runs a guest of which nobody has a second copy.
    Unprotected,
}

/// What the guest has done to itself while this process ran it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// How often it was started over in place.
    pub restarts: u64,
    /// The last thing about it that a person should know: a panic, a crash, a watchdog that fired, restarts in
    /// a row.
    pub alarm: Option<String>,
}

/// A guest's report that is still being written. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct GuestNotes(Arc<Mutex<GuestReport>>);

impl GuestNotes {
    /// What is noted now.
    #[must_use]
    pub fn report(&self) -> GuestReport {
        self.change(|report| report.clone())
    }

    /// Logs an alarm, and notes it.
    pub fn alarm(&self, what: impl Into<String>) {
        let what = what.into();
        tracing::warn!("{what}");
        self.change(|report| report.alarm = Some(what));
    }

    /// Notes that the guest was started over.
    pub fn restarted(&self) {
        self.change(|report| report.restarts += 1);
    }

    fn change<T>(&self, how: impl FnOnce(&mut GuestReport) -> T) -> T {
        // Each change is whole.
        how(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
