//! How a node is doing, as values: [`Standing`] changes when something happens and can be waited for, and
//! [`NodeStatus`] adds the figures that change all the time, filled in when it is read.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use understudy_replication::output::OutputCounts;
use understudy_replication::runtime::{DisksStatus, Status};

use super::events::NodeEvent;
use super::memory::MemoryStatus;
use super::metrics::NodeMetrics;
use super::{Ended, Role};

/// What the guest has done to itself while this node ran it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// How often it was started over in place.
    pub restarts: u64,
    /// The last thing about it that a person should know: a panic, a crash, a watchdog that fired, restarts in
    /// a row. Over once the guest was started over and has run for a while.
    pub alarm: Option<String>,
}

/// A handover that was wanted and could not be done: the guest is still here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotHandedOver {
    /// Why it was wanted.
    pub wanted: String,
    /// Why it could not be done.
    pub why: String,
}

impl fmt::Display for NotHandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, why } = self;
        write!(
            f,
            "the guest was to go on at the standby ({wanted}), and is still here: {why}"
        )
    }
}

/// How a node is doing: the answer to `vmm status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// What its role shows.
    #[serde(flatten)]
    pub role: RoleStatus,
    /// How long the node has been at work, in seconds.
    pub uptime_s: u64,
    /// What has become of the guest.
    pub guest: GuestStatus,
    /// What is wrong now with this host, and with the guest's networks here and on the host of a primary's standby.
    #[serde(default)]
    pub host_alarms: Vec<String>,
    /// The last handover that was to be and was not, until its reason is gone, or the guest is protected anew.
    #[serde(default)]
    pub not_handed_over: Option<NotHandedOver>,
    /// The process's memory.
    #[serde(default)]
    pub memory: MemoryStatus,
    /// What was counted.
    pub metrics: NodeMetrics,
    /// The last events, the oldest first.
    pub events: Vec<NodeEvent>,
}

impl NodeStatus {
    /// Replication's part, if the guest is replicated.
    #[must_use]
    pub fn replication(&self) -> Option<&Status> {
        match &self.role {
            RoleStatus::Replicated(status) => Some(status),
            RoleStatus::Unprotected(_) => None,
        }
    }
}

/// The part of a [`NodeStatus`] that depends on the role. What is in both has the same name and meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RoleStatus {
    /// A primary or a standby.
    Replicated(Box<Status>),
    /// A guest without a second copy.
    Unprotected(Box<UnprotectedStatus>),
}

/// An unprotected guest's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnprotectedStatus {
    /// `unprotected`.
    pub role: UnprotectedRole,
    /// Name of the virtual machine.
    pub vm: String,
    /// This node's name.
    pub node: String,
    /// Whether the loss of the host would be survived: false.
    pub protected: bool,
    /// The guest's output at this side's gate.
    pub output: OutputCounts,
    /// All disks. Modes are `local` (no second copy), `readonly`, and for images that are one of a pair
    /// `replicated` or `shared`.
    pub disks: DisksStatus,
}

/// The one role of an [`UnprotectedStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnprotectedRole {
    /// It runs a guest of which nobody has a second copy.
    Unprotected,
}

/// What about a node changes only when something happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The role.
    pub role: Role,
    /// Whether the loss of a host would be survived now.
    pub protected: bool,
    /// The last thing that went wrong with the protection since it was last there anew.
    pub alarm: Option<String>,
    /// What has become of the guest.
    pub guest: GuestStatus,
    /// What is wrong now with this host, and with the guest's networks here and on the host of a primary's standby.
    pub host_alarms: Vec<String>,
    /// As in [`NodeStatus`]; it is one of the alarms, too.
    pub not_handed_over: Option<NotHandedOver>,
    /// How the node ended, if it has.
    pub ended: Option<Ended>,
}

/// Watches a node's [`Standing`]. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct StatusWatch(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    standing: Mutex<Standing>,
    changed: Condvar,
}

impl StatusWatch {
    /// How things stand now.
    #[must_use]
    pub fn now(&self) -> Standing {
        self.0.standing.lock().clone()
    }

    /// Waits until `wanted` holds of it, at most until `deadline`; `None` if it does not.
    pub fn wait_until(
        &self,
        deadline: Instant,
        wanted: impl Fn(&Standing) -> bool,
    ) -> Option<Standing> {
        let mut standing = self.0.standing.lock();
        while !wanted(&standing) {
            let waited = self.0.changed.wait_until(&mut standing, deadline);
            if waited.timed_out() && !wanted(&standing) {
                return None;
            }
        }
        Some(standing.clone())
    }

    pub(crate) fn set(&self, new: Standing) {
        let mut standing = self.0.standing.lock();
        if *standing != new {
            *standing = new;
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn standing(role: Role) -> Standing {
        Standing {
            role,
            ..Standing::default()
        }
    }

    #[test]
    fn who_waits_for_a_change_is_woken_by_it_and_not_by_another() {
        let watch = StatusWatch::default();
        let watching = watch.clone();
        let (ready, waits) = std::sync::mpsc::sync_channel(1);
        let long = Instant::now() + Duration::from_secs(30);
        let waiting = std::thread::spawn(move || {
            ready.send(()).unwrap();
            watching.wait_until(long, |standing| standing.role == Role::Primary)
        });
        waits.recv().unwrap();
        watch.set(standing(Role::Standby));
        watch.set(standing(Role::Primary));
        assert_eq!(waiting.join().unwrap(), Some(standing(Role::Primary)));
        assert!(Instant::now() < long, "nobody was woken");
    }

    #[test]
    fn a_wait_has_a_deadline_and_what_holds_already_is_not_waited_for() {
        let watch = StatusWatch::default();
        let past = Instant::now();
        assert_eq!(watch.wait_until(past, |now| now.role == Role::Ended), None);
        let found = watch.wait_until(past, |now| now.role == Role::Starting);
        assert_eq!(found, Some(Standing::default()));
    }
}
