//! Where the guest's output ends on this host: consoles, and the event that wakes a device which the gate
//! refused.
//!
//! The gate itself, which keeps rule R1, is [`understudy_replication::output`]. Network sinks are the sending
//! halves of the backends in `devices/virtio/net/backend/`. Nothing here decides what may leave.

mod console_file;
mod space;
mod terminal;

pub use console_file::ConsoleFile;
pub use space::SpaceEvent;
pub use terminal::{NoConsole, Terminal};
