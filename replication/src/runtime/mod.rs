//! The runtime: drives the [`core`](crate::core) with real threads, links and clocks. It decides
//! nothing; what it does is in the effects.
//!
//! Threads of a primary: the *driver* (one thread, a tokio current-thread runtime) owns the core, the
//! link and the timers; the *capture* thread owns the machine and does steps ② to ⑤. Threads of a
//! standby: the driver alone does ⑥ to ⑧ but for disks, which the *disks* thread writes. Calls to the
//! arbiter may block and get a thread each.

mod arbitration;
mod capture;
mod disk_progress;
mod error;
mod events;
mod heartbeats;
mod metrics;
mod primary;
mod session;
mod side;
mod standby;
mod status;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use error::RuntimeError;
pub use events::{Event, EventKind, Events};
pub use primary::{
    Ended, NotProtected, Origin, Primary, PrimaryBuilder, Protection, ProtectionHandle, Unprotected,
};
pub use side::{Side, SideBuilder, SideHandle};
pub use standby::{Outcome, Promoted, Standby, StandbyBuilder, StandbyHandle, StandbyRun};
pub use status::{
    DiskStatus, DiskSync, DisksStatus, Encoded, FailoverFigures, Percentiles, Status,
};

/// Where UDP heartbeats come from and go to: a path of its own beside the logging channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatPath {
    /// Local address to bind.
    pub listen: SocketAddr,
    /// The other side's address.
    pub peer: SocketAddr,
}

/// Limits of the runtime's buffers (R5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Captured pages not encoded yet. An epoch that dirties more is encoded while the guest is paused.
    /// Default 32,768 (128 MiB).
    pub capture_pages_max: usize,
    /// Last shipped versions of pages kept for delta encoding. Default 32,768 (128 MiB).
    pub cache_pages_max: usize,
    /// Bytes handed to the link and not written yet. Default 16 MiB.
    pub send_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            capture_pages_max: 32_768,
            cache_pages_max: 32_768,
            send_bytes_max: 16 << 20,
        }
    }
}

/// Time as the core wants it: since this process' start of the runtime.
#[derive(Debug, Clone, Copy)]
struct Clock {
    origin: Instant,
}

impl Clock {
    fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    fn now(self) -> Duration {
        self.origin.elapsed()
    }

    fn instant(self, at: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.origin + at)
    }
}

fn tokio_runtime() -> Result<tokio::runtime::Runtime, RuntimeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| RuntimeError::System {
            what: "start the asynchronous runtime",
            source,
        })
}

/// Nanoseconds of the system's monotonic clock, which all processes of a host share: lets an observer
/// on the same host relate our moments to its own.
fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

/// A claimant's name for the arbiter: unique to this process, so that a restarted one is not taken
/// for its predecessor.
fn claimant(node: &str) -> String {
    format!(
        "{node}{CLAIMANT_PROCESS}{}, {:x})",
        std::process::id(),
        monotonic_ns()
    )
}

/// What follows the node's name in a claimant's.
const CLAIMANT_PROCESS: &str = " (pid ";

/// The node of which a claimant was a process.
fn node_of(claimant: &str) -> &str {
    claimant
        .rsplit_once(CLAIMANT_PROCESS)
        .map_or(claimant, |(node, _)| node)
}
