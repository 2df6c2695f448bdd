//! Sinks in memory, for tests and for callers that show output themselves. They keep everything, so
//! the user decides how long the guest may write.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::sink::{ConsoleSink, FrameSink, SendError};

/// A network in memory. Clones are the same network.
#[derive(Debug, Clone, Default)]
pub struct MemoryFrames {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl MemoryFrames {
    /// The frames sent so far.
    #[must_use]
    pub fn contents(&self) -> Vec<Vec<u8>> {
        self.frames.lock().clone()
    }

    /// The frames sent since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.frames.lock())
    }
}

impl FrameSink for MemoryFrames {
    fn send(&self, frame: &[u8]) -> Result<(), SendError> {
        self.frames.lock().push(frame.to_vec());
        Ok(())
    }
}

/// A console in memory. Clones are the same console.
#[derive(Debug, Clone, Default)]
pub struct MemoryConsole {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl MemoryConsole {
    /// What has been written so far.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }
}

impl ConsoleSink for MemoryConsole {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(Some(self.bytes.lock().len() as u64))
    }

    fn append(&mut self, _position: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes.lock().extend_from_slice(bytes);
        Ok(())
    }
}
