//! What an embedding VMM implements: where frames and console bytes end up.

use std::io;

/// Takes Ethernet frames to the outside. Device threads and the releasing thread use it, but the
/// gate calls a sink from only one thread at a time.
pub trait FrameSink: Send + Sync {
    /// Sends a frame, waiting no longer than a few milliseconds.
    ///
    /// # Errors
    /// If the frame could not be sent. It is lost then, as on a real wire.
    fn send(&self, frame: &[u8]) -> Result<(), SendError>;
}

/// Why a frame was lost between the gate and the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The backend takes no more frames at the moment.
    #[error("the network backend is full")]
    Busy,
    /// The interface behind the backend is switched off.
    #[error("the network interface is down")]
    Down,
    /// The backend is closed for good.
    #[error("the network backend is closed")]
    Closed,
    /// The backend can never take this frame.
    #[error("the network backend refuses the frame")]
    Refused,
}

/// Takes console bytes to the outside, on a thread of its own, so it may block.
pub trait ConsoleSink: Send {
    /// How many bytes of the guest's output this console has, counted from the first; `None` if it
    /// cannot know. Bytes that it has are not appended again. This makes a repeated epoch harmless.
    ///
    /// # Errors
    /// If the console cannot be queried.
    fn position(&mut self) -> io::Result<Option<u64>>;

    /// Appends `bytes`, which begin `position` bytes after the guest's first.
    ///
    /// # Errors
    /// If they cannot be written. They are lost then, but for storage that is full
    /// ([`StorageFull`](io::ErrorKind::StorageFull)): that gets them again a little later.
    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()>;
}
