//! A node: one guest on one host, through all its roles.
//!
//! ```text
//!              ┌────────► unprotected ───────────────────────┐
//!              │                                             ▼
//!  starting ───┼────────► primary ──────────────────────► ended
//!     │        │             ▲                            ▲  ▲
//!     │        │             │ promoted                   │  │
//!     │        └────────► standby ────────────────────────┘  │
//!     └──────────────────────────────────────────────────────┘
//! ```
//!
//! | role | what happens | what follows |
//! | --- | --- | --- |
//! | starting | the guest runs, or the standby listens | the role that was configured |
//! | starting | that fails | ended: failed |
//! | starting | the guest is not started here now: the other host may have something newer | standby, if it is said where both listen |
//! | standby | nobody runs the guest, and nobody has a copy of it | starting: as the primary, if the guest ran here last, or this side was to be it and may |
//! | starting | a role that follows another one cannot be taken up | tried again, until *stop* |
//! | standby | promoted | primary; ended if it had been told to stop |
//! | standby | *stop* | ended: stopped |
//! | standby | *failover*, in sync | the arbiter is asked |
//! | unprotected, primary | the guest wants a reset, crashes, panics, starves its watchdog | by the rules: it is started over, or ends |
//! | unprotected, primary | in a loop of resets | it is started over later and later |
//! | unprotected, primary | the guest powers itself off, or cannot go on | ended, once all it said has left |
//! | unprotected, primary | *stop* | its power is cut; ended, once all it said has left |
//! | primary | *stop* again | ended at once: abandoned |
//! | primary | *failover*, or *leave* by the rules, protected | the guest is handed over; ended: handed over |
//! | primary | something of this host fails, protected | the same |
//! | unprotected | the machine has broken: something of this host failed, and it can neither go on nor be captured | ended |
//! | primary | the same, and a standby may have a whole copy | ended: handed over, or left to the standby |
//! | primary | the same without one, or soon after the guest was taken over from another machine that broke | ended |
//! | primary | it cannot be handed over | primary; after *leave*, the same as after *stop*; else it is tried again |
//! | any other | *leave* | the same as *stop* |
//! | primary | another side owns the guest | ended: fenced |
//! | any | its work fails | ended: failed |
//!
//! `core` decides, without threads, clocks or machines; `shell` is the one thread that obeys; `roles` is what it
//! obeys with. What happens comes in through one `inbox`; requests through [`NodeHandle::request`], bounded, with
//! typed [`Denial`]s. Three things go out: the [`Standing`], which can be waited for, with the figures of
//! [`NodeHandle::status`]; the [`NodeEvent`]s; and `metrics`. The command line, the control socket and whoever embeds a
//! node are users of [`NodeHandle`].
//!
//! A further role is a variant of [`Role`], rows of the table above, and a variant of `roles::Work`. What must not be
//! done here: read configurations or command lines, print, pick exit codes.

mod arbiter;
mod core;
mod events;
mod identity;
mod inbox;
mod memory;
mod metrics;
mod networks;
mod request;
mod roles;
mod settings;
mod shell;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use understudy_replication::disk::{DiskError, DiskSet};
use understudy_replication::runtime::RuntimeError;

use crate::machine::MachineFault;

pub use crate::devices::virtio::blk::{BlkCounters, STALLED_AFTER};

pub use self::core::Rules;
pub use arbiter::{ArbiterStatus, look_at_arbiter, make_arbiter};
pub use events::{EventKind, KEPT_MAX, NodeEvent, Subscription};
pub use identity::IdentityError;
pub use memory::MemoryStatus;
pub use metrics::{EpochMetrics, Named, NodeMetrics};
pub use request::{Denial, Request};
pub use settings::{
    BuildError, BuildMachine, NodeSettings, ReplicationSettings, SettingsError, StartAs,
};
pub use status::{
    GuestStatus, NodeStatus, NotHandedOver, RoleStatus, Standing, StatusWatch, UnprotectedRole,
    UnprotectedStatus,
};
pub use understudy_replication::disk::{Differing, VERIFY_RANGES_MAX, Verified, VerifyOptions};
pub use understudy_replication::output::OutputCounts;
pub use understudy_replication::runtime::{
    DiskStatus, DiskSync, DisksStatus, Percentiles, Side, Status,
};

use events::EventLog;
use inbox::{Inbox, inbox};
use roles::Sources;
use shell::{Shell, with_causes};

/// How long a request may take. What is behind it (a pause, a full queue) normally takes milliseconds.
const REQUEST_PATIENCE: Duration = Duration::from_secs(4);
/// Events in a [`NodeStatus`].
const STATUS_EVENTS_MAX: usize = 8;

/// What a node is to its guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Nothing yet.
    #[default]
    Starting,
    /// It runs the guest, of which nobody has a second copy.
    Unprotected,
    /// It runs the guest, protected whenever there is a standby.
    Primary,
    /// It keeps a second copy, and takes over.
    Standby,
    /// Nothing any more.
    Ended,
}

/// How a node ended. The guest does not run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ended {
    /// The guest ended by itself.
    Guest,
    /// On request.
    Stopped,
    /// The guest could not go on, or was not to.
    GuestFailed {
        /// In plain words.
        what: String,
    },
    /// At once, on request: what the guest had said and was still held is lost.
    Abandoned,
    /// The guest goes on at the standby, as was asked for, or because something of this host failed.
    HandedOver {
        /// The arbiter's answer, in plain words.
        reason: String,
        /// What failed here.
        trouble: Option<String>,
    },
    /// Something of this host failed, and the guest is to go on at the standby, which was not waited for.
    LeftToStandby {
        /// In plain words.
        what: String,
    },
    /// Another host owns the guest (R4). Held output was dropped.
    Fenced {
        /// In plain words.
        reason: String,
    },
    /// The node could not do its work; [`Node::wait`] has the error.
    Failed {
        /// In plain words.
        what: String,
    },
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest => f.write_str("the guest has ended"),
            Self::Stopped => f.write_str("stopped on request"),
            Self::GuestFailed { what } | Self::LeftToStandby { what } | Self::Failed { what } => {
                f.write_str(what)
            }
            Self::Abandoned => f.write_str(
                "ended at once, as was asked for: what the guest had said and was still held is lost",
            ),
            Self::HandedOver { reason, trouble } => {
                write!(f, "the arbiter has given the guest to the standby: {reason}")?;
                trouble.iter().try_for_each(|what| write!(f, "; on this host, {what}"))
            }
            Self::Fenced { reason } => write!(f, "fenced: {reason}"),
        }
    }
}

/// Why a node could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The machine cannot be built.
    #[error(transparent)]
    Build(BuildError),
    /// The machine cannot be run.
    #[error(transparent)]
    Machine(#[from] MachineFault),
    /// The disks cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A guest that an arbiter decides about is to be run without one.
    #[error(
        "the disk {disk} belongs to a guest that an arbiter decides about ({known}): name that arbiter, so that the \
         guest is not run twice. To take the disk out of its pair for good, remove its map"
    )]
    ArbiterNotNamed {
        /// The disk.
        disk: String,
        /// The arbiter's identity.
        known: String,
    },
    /// Replication failed.
    #[error(transparent)]
    Replication(#[from] RuntimeError),
    /// A thread cannot be had.
    #[error("cannot start the {name} thread")]
    Thread {
        /// Its name.
        name: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The node's thread ended by a panic; that is a defect of this program.
    #[error("the node thread panicked; see its message above")]
    Panicked,
}

impl NodeError {
    /// Whether the disks are of a guest of another arbiter, or of one whose record went back: `full_resync` of
    /// [`NodeSettings`] lets a standby give up what they hold.
    #[must_use]
    pub fn is_about_disks_of_another_arbiter(&self) -> bool {
        matches!(
            self,
            Self::Replication(
                RuntimeError::OtherArbiter { .. } | RuntimeError::ArbiterWentBack { .. }
            )
        )
    }

    /// Whether the guest could be started from nothing here, giving up what others have of it: `start_over` of
    /// [`StartAs::Primary`].
    #[must_use]
    pub fn can_be_started_over(&self) -> bool {
        matches!(
            self,
            Self::Replication(
                RuntimeError::Owned { .. }
                    | RuntimeError::OlderDisks { .. }
                    | RuntimeError::NotAsked { .. }
                    | RuntimeError::OtherArbiter { .. }
                    | RuntimeError::ArbiterWentBack { .. }
            )
        )
    }
}

/// A node at work. Dropping it leaves the work going on; a [`NodeHandle`] can still end it.
#[derive(Debug)]
pub struct Node {
    handle: NodeHandle,
    thread: JoinHandle<Result<(), NodeError>>,
}

/// Looks at a node and makes requests, from any thread. Clones are the same.
#[derive(Clone)]
pub struct NodeHandle {
    inbox: Inbox,
    log: EventLog,
    watch: StatusWatch,
    sources: Arc<Mutex<Option<Sources>>>,
    /// The machine's, as long as there is one.
    disks: Arc<Mutex<Option<DiskSet>>>,
    since: Instant,
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle")
            .field("standing", &self.watch.now())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Starts a node on a thread of its own, and returns at once: building a machine and asking an arbiter take
    /// time. That it could not start is told by [`Node::wait`].
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(settings: NodeSettings) -> Result<Self, NodeError> {
        let no_thread = |source| NodeError::Thread {
            name: "node",
            source,
        };
        let (inbox, incoming) = inbox().map_err(no_thread)?;
        let handle = NodeHandle {
            inbox,
            log: EventLog::new(&settings.vm, &settings.node),
            watch: StatusWatch::default(),
            sources: Arc::default(),
            disks: Arc::default(),
            since: Instant::now(),
        };
        let shell = Shell::new(handle.clone(), incoming, settings.rules);
        let thread = std::thread::Builder::new()
            .name("node".into())
            .spawn(move || shell.run(settings))
            .map_err(no_thread)?;
        Ok(Self { handle, thread })
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// Waits until the node has ended; the guest does not run here then, and what it said last has been written.
    ///
    /// # Errors
    /// If the node could not start, or not do its work.
    pub fn wait(self) -> Result<Ended, NodeError> {
        self.thread.join().map_err(|_| NodeError::Panicked)??;
        self.handle.watch.now().ended.ok_or(NodeError::Panicked)
    }
}

impl NodeHandle {
    /// Makes a request, and waits a few seconds until it is done or denied. What follows from it takes its time
    /// and is told by events.
    ///
    /// # Errors
    /// Why it is not done.
    pub fn request(&self, request: Request) -> Result<(), Denial> {
        let standing = self.watch.now();
        // One that waits for the other host can be told to stop.
        if standing.role == Role::Starting && standing.alarm.is_none() {
            return Err(Denial::Starting);
        }
        let (answer, answered) = sync_channel(1);
        self.inbox.request(request, Some(answer))?;
        match answered.recv_timeout(REQUEST_PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(Denial::NoAnswer {
                seconds: REQUEST_PATIENCE.as_secs(),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(Denial::Ended),
        }
    }

    /// Makes a request that nobody waits for, as a signal does. A node that is just starting does it afterwards.
    ///
    /// # Errors
    /// If it is not even taken.
    pub fn post(&self, request: Request) -> Result<(), Denial> {
        self.inbox.request(request, None)
    }

    /// How the node is doing. Once it has ended: how it was doing then.
    ///
    /// # Errors
    /// [`Denial::Starting`] if it does not do anything yet, [`Denial::Waiting`] if it waits for the
    /// other host.
    pub fn status(&self) -> Result<NodeStatus, Denial> {
        let standing = self.watch.now();
        // Not under the lock: reading the figures takes other locks.
        let sources = self.sources.lock().clone();
        let sources = sources.filter(|_| standing.role != Role::Starting);
        let sources = sources.ok_or(match standing.alarm {
            Some(why) => Denial::Waiting { why },
            None => Denial::Starting,
        })?;
        let (role, metrics) = sources.read();
        let memory = MemoryStatus::now();
        let mut host_alarms = standing.host_alarms;
        host_alarms.extend(memory.alarm());
        Ok(NodeStatus {
            role,
            uptime_s: self.since.elapsed().as_secs(),
            guest: standing.guest,
            host_alarms,
            not_handed_over: standing.not_handed_over,
            memory,
            metrics,
            events: self.log.last(STATUS_EVENTS_MAX),
        })
    }

    /// Compares the images of this primary's replicated disks with the standby's while the guest runs. `progress` is
    /// told several times a second what was found so far, and says whether to go on. Takes as long as the rate wants;
    /// no other request waits for it.
    ///
    /// # Errors
    /// Why they are not compared, or not to the end.
    pub fn verify_disks(
        &self,
        options: VerifyOptions,
        progress: &mut dyn FnMut(&Verified) -> bool,
    ) -> Result<Verified, Denial> {
        match self.watch.now().role {
            Role::Primary => {}
            Role::Starting => return Err(Denial::Starting),
            Role::Unprotected => return Err(Denial::Unprotected),
            Role::Standby => return Err(Denial::GuestElsewhere),
            Role::Ended => return Err(Denial::Ended),
        }
        let disks = self.disks.lock().clone().ok_or(Denial::Ended)?;
        let has_ended = || self.watch.now().role != Role::Primary;
        let found = disks.verify(options, &mut |found| !has_ended() && progress(found));
        let found = found.map_err(|error| match error {
            _ if has_ended() => Denial::Ended,
            error => Denial::NotCompared {
                why: with_causes(&error),
            },
        })?;
        let (differing, repaired) = (found.differing_blocks, found.repaired_blocks);
        if differing > 0 {
            tracing::warn!(
                differing,
                repaired,
                first = ?found.first.first(),
                "the disks' images are not equal on both hosts"
            );
        }
        Ok(found)
    }

    /// What changes about it only when something happens, as a value that can be waited for.
    #[must_use]
    pub fn watch(&self) -> StatusWatch {
        self.watch.clone()
    }

    /// Its events from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.log.subscribe()
    }

    /// Its events whose number is above `after`, the oldest first; at most the last [`KEPT_MAX`]. Waits until
    /// there is one, at most until `deadline`.
    #[must_use]
    pub fn events_after(&self, after: u64, deadline: Instant) -> Vec<NodeEvent> {
        self.log.after(after, deadline)
    }
}
