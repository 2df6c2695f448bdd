//! Step ⑨: everything the guest says to the outside, and when it may leave.
//!
//! ```text
//!  device ─ NetPort / ConsolePort ─► current bucket ─ seal ─► sealed buckets ─ release ─► outbox ─► sink
//!                 │ (open, nothing waiting)                                                  ▲
//!                 └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! [`Gate`] implements [`understudy_replication::ports::OutputGate`]. Devices put output into a
//! [`NetPort`] or [`ConsolePort`]; sinks ([`FrameSink`], [`ConsoleSink`]) take it to the world. Nothing
//! may reach a sink past the gate, except [`Gate::announce`], which carries nothing the guest said.

use std::io;

pub mod announce;
mod bucket;
mod console;
mod counters;
mod gate;
mod port;
#[cfg(test)]
pub(crate) mod tests;

pub use console::{DiscardSink, FileSink, MemorySink, StdoutSink};
pub use gate::Gate;
pub use port::{ConsolePort, NetPort};

/// Takes Ethernet frames to the outside. Used by device threads and by the releasing thread; the gate
/// calls one sink from one thread at a time.
pub trait FrameSink: Send + Sync {
    /// Sends a frame, waiting no longer than a few milliseconds.
    ///
    /// # Errors
    /// If the frame could not be sent; it is lost then, as on a real wire.
    fn send(&self, frame: &[u8]) -> Result<(), SendError>;
}

/// Why a frame was lost between the gate and the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The backend takes no more at the moment.
    #[error("the network backend is full")]
    Busy,
    /// The backend is closed for good.
    #[error("the network backend is closed")]
    Closed,
    /// The backend can never take this frame.
    #[error("the network backend refuses the frame")]
    Refused,
}

/// Takes console bytes to the outside, on a thread of its own: it may block.
pub trait ConsoleSink: Send {
    /// How many bytes of the guest's output, counted from its first, this console has; `None` if it
    /// cannot know.
    ///
    /// # Errors
    /// If the console cannot be asked.
    fn position(&mut self) -> io::Result<Option<u64>>;

    /// Appends `bytes`, which begin `position` bytes after the guest's first.
    ///
    /// # Errors
    /// If they cannot be written; they are lost then.
    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()>;
}

/// The gate is full. The device must keep the output and try again when its port's space event fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the output gate is full")]
pub struct Full;

/// Limits of a [`Gate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// Network output held, all devices together, with [`FRAME_OVERHEAD_BYTES`] for each frame.
    pub held_bytes_max: usize,
    /// How much of an epoch's network output is copied into
    /// [`SealedOutput`](understudy_replication::ports::SealedOutput), counted in the same way.
    pub repeat_bytes_max: usize,
    /// Console output held or not yet written, for each console.
    pub console_bytes_max: usize,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            held_bytes_max: 64 << 20,
            repeat_bytes_max: 512 << 10,
            console_bytes_max: 1 << 20,
        }
    }
}

/// What a held frame counts besides its bytes, so that many tiny frames are bounded too.
pub const FRAME_OVERHEAD_BYTES: usize = 64;

/// What has passed a [`Gate`] so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateCounters {
    /// Frames that had to wait.
    pub frames_held: u64,
    /// Their bytes.
    pub bytes_held: u64,
    /// Frames handed to their backend, at once or after having been held.
    pub frames_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Frames lost because the backend was full or closed, or the gate shut.
    pub frames_dropped: u64,
    /// Their bytes.
    pub bytes_dropped: u64,
    /// Frames of a dead primary sent once more; also counted as sent.
    pub frames_repeated: u64,
    /// Times a device was refused because the gate was full.
    pub refusals: u64,
    /// Network bytes waiting now, with overhead, as counted against the limit.
    pub waiting_bytes: u64,
}
