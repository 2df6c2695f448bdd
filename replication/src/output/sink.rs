//! What an embedding VMM implements: where frames and console bytes end.

use std::io;

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
    /// cannot know. Bytes that it has are not appended again: that is what makes a repeated epoch
    /// harmless.
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
