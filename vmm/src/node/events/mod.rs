//! What happened to a node: one typed stream, from which the log, the control socket and the status take it.
//!
//! The last [`KEPT_MAX`] events are kept. A subscriber reads them at its own pace; one that is slower than the
//! events loses the oldest, and sees how many by their numbers. What must not be done here: wait for a subscriber.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use understudy_replication::LogThinning;

use super::{Ended, Role};
use crate::machine::OnWatchdog;

/// Events that are kept.
pub const KEPT_MAX: usize = 256;

/// How the words begin of what the standby says of its own host.
pub(super) const ON_STANDBY: &str = "on the standby's host: ";

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// Counts up from 1 in each node.
    pub number: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub at_unix_ms: u64,
    /// To which virtual machine.
    pub vm: String,
    /// On which node.
    pub node: String,
    /// What.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The node has taken up its first role.
    RoleBegan {
        /// Which.
        role: Role,
    },
    /// The guest is not started here now, because the other host may have something newer: this side waits as a
    /// standby.
    StartWaits {
        /// What the other host may have, and what to do.
        why: String,
    },
    /// A role could not be taken up. It is tried again.
    RoleWaits {
        /// Why.
        what: String,
    },
    /// This standby has no copy, nobody else has one, and it starts the guest.
    IsToStart,
    /// A standby waits for a primary.
    Listening {
        /// Where.
        endpoint: String,
    },
    /// The loss of a host is survived from now on.
    Protected,
    /// The loss of a host is not survived any more.
    Unprotected,
    /// The backup is lost, and the guest goes on without one.
    BackupLost {
        /// Why it is lost.
        cause: String,
    },
    /// Something else is wrong with the protection.
    Alarm {
        /// In plain words.
        what: String,
    },
    /// The guest is to go on at the standby.
    HandingOver {
        /// Why.
        why: String,
    },
    /// It could not be handed over, and stays here.
    NotHandedOver {
        /// Why not.
        why: String,
    },
    /// The standby has taken over the guest.
    Promoted {
        /// The epoch from which the guest goes on.
        epoch: u64,
        /// Why the primary counted as lost.
        cause: String,
    },
    /// The guest wants to begin anew.
    GuestRebooted,
    /// The guest was started over in place.
    GuestRestarted,
    /// The guest has to wait before it is started over, as it is in a loop of resets.
    RestartDelayed {
        /// Resets in a row.
        resets: u32,
        /// How long it would have had to run for them not to count, in seconds.
        steady_s: u64,
        /// How long it waits, in seconds.
        wait_s: u64,
    },
    /// There is nothing to start the guest over with.
    RestartImpossible,
    /// The guest crashed in the way that resets a PC, or worse.
    GuestCrashed {
        /// In plain words.
        what: String,
    },
    /// The guest's kernel has panicked.
    GuestPanicked {
        /// Whether a crash kernel goes on in the guest.
        crash_kernel: bool,
    },
    /// The guest did not feed its watchdog.
    WatchdogFired {
        /// What follows.
        action: OnWatchdog,
    },
    /// The guest has powered itself off.
    GuestPoweredOff,
    /// Something of this host failed: the machine can neither go on nor be captured any more.
    MachineBroke {
        /// In plain words.
        what: String,
    },
    /// The guest cannot be captured, and nobody else could go on with it.
    CaptureHangs {
        /// In plain words.
        what: String,
    },
    /// Somebody pressed the guest's power button.
    PowerButtonPressed,
    /// Somebody wants the guest stopped.
    StopRequested,
    /// This host's disk failed a request of the guest, which waits until it succeeds.
    DiskWaits {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// This host's disk failed a request of the guest.
    DiskFailed {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// This host's disk does not answer a request of the guest.
    DiskHangs {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// This host's disk answers again.
    DiskAnswers {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// The guest does not reach its clients through a network of this host, or would not through one of the standby's.
    NetworkFails {
        /// In plain words.
        what: String,
    },
    /// That is over.
    NetworkWorks {
        /// What was said then.
        what: String,
    },
    /// A device lost what it is connected to on this host.
    ConnectionLost {
        /// The device's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// The node is over.
    Ended(Ended),
}

impl EventKind {
    /// Whether it says that something is wrong with the guest itself.
    pub(super) fn is_about_guests_health(&self) -> bool {
        matches!(
            self,
            Self::GuestCrashed { .. }
                | Self::GuestPanicked { .. }
                | Self::WatchdogFired { .. }
                | Self::RestartDelayed { .. }
        )
    }

    /// As which kind it is thinned in the log, if the other host can cause it as often as it likes. All that host's words
    /// are one kind, so that new ones gain it nothing, and hide nothing of this host's.
    fn thinned_as(&self) -> Option<String> {
        match self {
            Self::NetworkFails { what } if what.starts_with(ON_STANDBY) => {
                Some("fails there".into())
            }
            Self::NetworkWorks { what } if what.starts_with(ON_STANDBY) => {
                Some("works there".into())
            }
            Self::NetworkFails { .. } | Self::NetworkWorks { .. } => Some(self.to_string()),
            _ => None,
        }
    }

    /// The line in the log; so many like it had none. Whoever started the node says itself how it ended.
    fn log(&self, left_out: u64) {
        match self {
            Self::NetworkFails { .. } if left_out > 0 => tracing::warn!(left_out, "{self}"),
            _ if left_out > 0 => tracing::info!(left_out, "{self}"),
            Self::DiskFailed { .. }
            | Self::DiskHangs { .. }
            | Self::DiskWaits { .. }
            | Self::MachineBroke { .. }
            | Self::RestartImpossible => {
                tracing::error!("{self}");
            }
            Self::CaptureHangs { .. }
            | Self::ConnectionLost { .. }
            | Self::NetworkFails { .. }
            | Self::StartWaits { .. }
            | Self::RoleWaits { .. } => {
                tracing::warn!("{self}");
            }
            _ if self.is_about_guests_health() => tracing::warn!("{self}"),
            // Replication has said so already.
            Self::Promoted { .. }
            | Self::BackupLost { .. }
            | Self::NotHandedOver { .. }
            | Self::Alarm { .. }
            | Self::Ended(_) => {
                tracing::debug!("{self}");
            }
            _ => tracing::info!("{self}"),
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoleBegan { role } => f.write_str(match role {
                Role::Unprotected => "the guest runs, unprotected",
                Role::Primary => "the guest runs",
                Role::Standby => "the standby is ready",
                Role::Starting => "the node starts",
                Role::Ended => "the node has ended",
            }),
            Self::RoleWaits { what } => write!(f, "waiting to try again: {what}"),
            Self::StartWaits { why } => write!(f, "waiting as a standby: {why}"),
            Self::IsToStart => f.write_str("nobody runs the guest, and nobody has a copy of it: it is started here"),
            Self::Listening { endpoint } => write!(f, "waiting for a primary on {endpoint}"),
            Self::Protected => f.write_str("the guest is protected"),
            Self::Unprotected => f.write_str("the guest is not protected any more"),
            Self::BackupLost { cause } => {
                write!(f, "the backup is lost ({cause}); the guest goes on unprotected")
            }
            Self::Alarm { what } | Self::NetworkFails { what } => f.write_str(what),
            Self::NetworkWorks { what } => write!(f, "over: {what}"),
            Self::Promoted { epoch, cause } => {
                write!(f, "this standby has taken over the guest at epoch {epoch}: {cause}")
            }
            Self::HandingOver { why } => write!(f, "handing the guest over to the standby: {why}"),
            Self::NotHandedOver { why } => write!(f, "the guest could not be handed over: {why}"),
            Self::GuestRebooted => f.write_str("the guest asked for a reboot"),
            Self::GuestRestarted => f.write_str("the guest is started over in place"),
            Self::RestartDelayed {
                resets,
                steady_s,
                wait_s,
            } => write!(
                f,
                "the guest was reset {resets} times in a row, each within {steady_s} s of its start: it has to wait \
                 {wait_s} s"
            ),
            Self::RestartImpossible => f.write_str(
                "the guest cannot be started over and has ended: this host's configuration names no kernel. A \
                 standby needs the primary's kernel, initramfs and command line, too",
            ),
            Self::GuestCrashed { what } => write!(f, "the guest crashed: {what}"),
            Self::GuestPanicked { crash_kernel } => f.write_str(match crash_kernel {
                true => "the guest's kernel has panicked; its crash kernel goes on",
                false => "the guest's kernel has panicked",
            }),
            Self::WatchdogFired { action } => {
                f.write_str("the guest did not feed its watchdog in time")?;
                f.write_str(match action {
                    OnWatchdog::Reset => ": it is reset",
                    OnWatchdog::Poweroff => ": it is powered off",
                    OnWatchdog::None => "",
                })
            }
            Self::GuestPoweredOff => f.write_str("the guest is powered off"),
            Self::MachineBroke { what } => write!(f, "this host failed: {what}"),
            Self::CaptureHangs { what } => write!(f, "{what}: it is waited for, as nobody else could go on with the guest"),
            Self::PowerButtonPressed => f.write_str("the guest's power button is pressed"),
            Self::StopRequested => f.write_str("stopping the guest on request"),
            Self::DiskFailed { device, what } => {
                write!(f, "{device}: this host's disk fails: {what}")
            }
            Self::DiskWaits { device, what } => write!(
                f,
                "{device}: this host's disk fails: {what}; the guest waits until it succeeds (make room, or mend the storage)"
            ),
            Self::DiskHangs { device, what } => {
                write!(f, "{device}: this host's storage hangs: {what}")
            }
            Self::DiskAnswers { device, what } => {
                write!(f, "{device}: this host's storage answers again: {what}")
            }
            Self::ConnectionLost { device, what } => {
                write!(f, "{device} lost its connection on this host: {what}")
            }
            Self::Ended(ended) => ended.fmt(f),
        }
    }
}

/// Where events go. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct EventLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vm: String,
    node: String,
    kept: Mutex<Kept>,
    happened: Condvar,
    thinning: Mutex<LogThinning>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<NodeEvent>,
    /// Number of the last event.
    last: u64,
}

impl EventLog {
    pub(super) fn new(vm: &str, node: &str) -> Self {
        Self(Arc::new(Inner {
            vm: vm.into(),
            node: node.into(),
            kept: Mutex::default(),
            happened: Condvar::new(),
            thinning: Mutex::default(),
        }))
    }

    /// Logs it, keeps it, and tells subscribers. Waits for none of them.
    pub(super) fn tell(&self, what: EventKind) {
        if let Some(left_out) = self.line(&what) {
            what.log(left_out);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_unix_ms = since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
        let mut kept = self.0.kept.lock();
        kept.last += 1;
        if kept.events.len() == KEPT_MAX {
            kept.events.pop_front();
        }
        let event = NodeEvent {
            number: kept.last,
            at_unix_ms,
            vm: self.0.vm.clone(),
            node: self.0.node.clone(),
            what,
        };
        kept.events.push_back(event);
        self.0.happened.notify_all();
    }

    /// Whether it is to be logged: then how many like it were not since the last line.
    fn line(&self, what: &EventKind) -> Option<u64> {
        match what.thinned_as() {
            Some(kind) => self.0.thinning.lock().line(&kind),
            None => Some(0),
        }
    }

    /// The last `most` events, the oldest first.
    pub(super) fn last(&self, most: usize) -> Vec<NodeEvent> {
        let kept = self.0.kept.lock();
        let skipped = kept.events.len().saturating_sub(most);
        kept.events.iter().skip(skipped).cloned().collect()
    }

    /// The events that are kept whose number is above `number`, once there is one; none at `deadline`.
    pub(super) fn after(&self, number: u64, deadline: Instant) -> Vec<NodeEvent> {
        let kept = self.wait(number.saturating_add(1), deadline);
        let after = kept.events.iter().filter(|event| event.number > number);
        after.cloned().collect()
    }

    /// Waits for event `number`, at most until `deadline`.
    fn wait(&self, number: u64, deadline: Instant) -> MutexGuard<'_, Kept> {
        let mut kept = self.0.kept.lock();
        while kept.last < number {
            if self.0.happened.wait_until(&mut kept, deadline).timed_out() {
                break;
            }
        }
        kept
    }

    /// Events that happen from now on.
    pub(super) fn subscribe(&self) -> Subscription {
        let last = self.0.kept.lock().last;
        let log = self.clone();
        Subscription { log, last }
    }
}

/// Reads a node's events, each once.
#[derive(Debug)]
pub struct Subscription {
    log: EventLog,
    /// Number of the event that was read last.
    last: u64,
}

impl Subscription {
    /// The next event that is still kept; a gap in the numbers tells how many were not read in time. Waits for it
    /// until `deadline`; `None` if there was none.
    pub fn next(&mut self, deadline: Instant) -> Option<NodeEvent> {
        let kept = self.log.wait(self.last.saturating_add(1), deadline);
        let event = kept.events.iter().find(|event| event.number > self.last)?;
        self.last = event.number;
        Some(event.clone())
    }
}
