//! Where the guest's output goes on this host: consoles, and the event that wakes a device once the gate has room.
//!
//! The gate, which keeps rule R1, is [`understudy_replication::output`]. Frames go to the backends in
//! `devices/virtio/net/backend/`. What must not be done here: decide what may leave.

mod console_file;
mod space;
mod terminal;

pub use console_file::ConsoleFile;
pub use space::SpaceEvent;
pub use terminal::{NoConsole, Terminal};
