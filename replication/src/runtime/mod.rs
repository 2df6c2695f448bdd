//! The runtime: drives the [`core`](crate::core) with real threads, links and clocks. It decides
//! nothing; what it does is in the effects.
//!
//! Threads of a primary: the *driver* (one thread, a tokio current-thread runtime) owns the core, the
//! link and the timers; the *capture* thread owns the machine and does steps ② to ⑤. Threads of a
//! standby: the driver alone does ⑥ to ⑧ but for disks, which the *disks* thread writes. Calls to the
//! arbiter may block and get a thread each.

mod arbitration;
mod capture;
mod clock;
mod disk_progress;
mod ended;
mod error;
mod events;
mod heartbeats;
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

pub use crate::ports::disks::DiskStatus;
pub use ended::Ended;
pub use error::RuntimeError;
pub use events::{Event, EventKind, Events};
pub use primary::{NotProtected, Origin, Primary, PrimaryBuilder, Protection, ProtectionHandle};
pub use reign::{Promoted, Unprotected};
pub use settings::{HeartbeatPath, Limits};
pub use side::{SideBuilder, SideHandle};
pub use standby::{Outcome, Standby, StandbyBuilder, StandbyHandle, StandbyRun};
pub use status::{DiskSync, DisksStatus, Encoded, FailoverFigures, Percentiles, Side, Status};

use crate::ports::STATE_BYTES_MAX;

// A machine's state travels in one frame.
const _: () = assert!(STATE_BYTES_MAX <= understudy_transport::MAX_BODY_BYTES as usize);
