//! The devices' side of the gate: one port per network device and console. No policy here.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::console::ConsoleLine;
use super::gate::{Line, Shared};
use super::{Full, SendError};

/// Where a network device puts the frames its guest sends. To be used with the device's mutex locked.
pub struct NetPort {
    shared: Arc<Shared>,
    device: u16,
    line: Arc<Line>,
}

/// Where a console puts the bytes its guest writes. To be used with the device's mutex locked. Clones
/// are the same port.
#[derive(Clone)]
pub struct ConsolePort {
    shared: Arc<Shared>,
    device: u16,
    line: Arc<ConsoleLine>,
}

impl NetPort {
    pub(super) fn new(shared: Arc<Shared>, device: u16, line: Arc<Line>) -> Self {
        Self {
            shared,
            device,
            line,
        }
    }

    /// Sends a frame: at once if the gate is open, later if it holds, never if it is shut. Frames of one
    /// port stay in order.
    ///
    /// # Errors
    /// [`Full`] if the frame was not taken. The space event fires when it is worth trying again.
    pub fn send(&self, frame: Bytes) -> Result<(), Full> {
        self.shared.send(self.device, &self.line, frame)
    }

    /// Sends a frame past the gate: what the VMM itself has to say about the guest's whereabouts, never
    /// what the guest said. A shut gate lets not even that out.
    ///
    /// # Errors
    /// If the gate is shut or the backend takes nothing.
    pub fn announce(&self, frame: &[u8]) -> Result<(), SendError> {
        self.shared.announce(&self.line, frame)
    }

    /// Counts up when a port that was [`Full`] has room again.
    #[must_use]
    pub fn space_event(&self) -> &EventFd {
        &self.line.space
    }

    /// Number of the network device, in configuration order.
    #[must_use]
    pub fn device(&self) -> u16 {
        self.device
    }
}

impl ConsolePort {
    pub(super) fn new(shared: Arc<Shared>, device: u16, line: Arc<ConsoleLine>) -> Self {
        Self {
            shared,
            device,
            line,
        }
    }

    /// Writes bytes, all or none.
    ///
    /// # Errors
    /// [`Full`] if they were not taken. The space event fires when it is worth trying again.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Full> {
        self.shared.console_write(self.device, bytes)
    }

    /// Whether the guest should go on writing: false from three quarters of the limit on, so that a
    /// guest that listens is never [`Full`]. After false, the space event fires when there is room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shared.console_has_room(self.device)
    }

    /// How many bytes the guest has written so far: part of the console's state.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.shared.console_position(self.device)
    }

    /// Sets what [`ConsolePort::position`] tells, when a console's state is restored.
    pub fn set_position(&self, position: u64) {
        self.shared.set_console_position(self.device, position);
    }

    /// Counts up when a port without room has room again.
    #[must_use]
    pub fn space_event(&self) -> &EventFd {
        self.line.space_event()
    }
}

impl io::Write for ConsolePort {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match ConsolePort::write(self, bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(Full) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
