//! The runtime: drives the [`core`](crate::core) with real threads, links and clocks. It decides
//! nothing; it performs the effects.
//!
//! A primary has two threads. The *driver* (a tokio current-thread runtime) owns the core, the link
//! and the timers. The *capture* thread owns the machine and does steps ② to ⑤. On a standby the
//! driver does steps ⑥ to ⑧, except for disks, which the *disks* thread writes. A driver's calls to
//! the arbiter may block, so each gets a thread of its own.

mod alarms;
mod arbitration;
mod capture;
mod clock;
mod disk_progress;
mod ended;
mod error;
mod events;
mod heartbeats;
mod inquiry;
mod metrics;
mod primary;
mod reign;
mod session;
mod settings;
mod side;
mod standby;
mod status;
mod stopped_on_drop;
mod threads;

pub use crate::core::message::Trouble;
pub use crate::ports::disks::DiskStatus;
pub use ended::Ended;
pub use error::RuntimeError;
pub use events::{Event, EventKind, Events};
pub use primary::{NotProtected, Origin, Primary, PrimaryBuilder, Protection, ProtectionHandle};
pub use reign::{Promoted, Unprotected};
pub use settings::{HeartbeatPath, Limits, ThreadSetup};
pub use side::{SideBuilder, SideHandle};
pub use standby::{Outcome, Standby, StandbyBuilder, StandbyHandle, StandbyRun};
pub use status::{
    DiskSync, DisksStatus, Encoded, FailoverFigures, Percentiles, Side, Status, StrangerCounts,
};

use crate::ports::STATE_BYTES_MAX;

// A machine's state travels in one frame.
const _: () = assert!(STATE_BYTES_MAX <= understudy_transport::MAX_BODY_BYTES as usize);
