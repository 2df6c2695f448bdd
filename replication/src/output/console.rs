//! Where a console puts the bytes that its guest writes.

use std::io;
use std::sync::Arc;

use super::limits::nearly_full;
use super::signals::{Full, OutputEvent};
use super::state::{Console, GateInner, GateMode};

/// A console's side of the gate. Clones are the same port. The bytes of one port stay in the order
/// of the calls, so a device writes while it holds its own lock.
#[derive(Clone)]
pub struct ConsolePort {
    gate: Arc<GateInner>,
    device: u16,
}

impl ConsolePort {
    pub(super) fn new(gate: Arc<GateInner>, device: u16) -> Self {
        Self { gate, device }
    }

    /// Writes all bytes or none.
    ///
    /// # Errors
    /// [`Full`] if the bytes were not taken. The port's waker is called when it is worth trying
    /// again.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Full> {
        let listener = {
            let mut state = self.gate.state.lock();
            let bytes_max = self.gate.limits.console_bytes(state.consoles.len());
            let console = self.console(&state.consoles);
            let is_full = |waiting| waiting + bytes.len() > bytes_max;
            if state.mode != GateMode::Shut && console.refuses(is_full) {
                return Err(Full);
            }
            state.place_console(self.device, bytes);
            match state.mode {
                GateMode::Holding => state.listener.clone(),
                GateMode::Open | GateMode::Shut => None,
            }
        };
        // No lock is held here, because the listener may query the gate.
        if let Some(listener) = listener {
            listener(OutputEvent::Waiting);
        }
        Ok(())
    }

    /// Whether the guest should go on writing. False from three quarters of the limit on, so a
    /// guest that heeds it never sees [`Full`]. After false, the waker is called when there is
    /// room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let state = self.gate.state.lock();
        let console = self.console(&state.consoles);
        let bytes_max = self.gate.limits.console_bytes(state.consoles.len());
        !console.refuses(|waiting| waiting >= nearly_full(bytes_max))
    }

    /// How many bytes the guest has written so far. This is part of the console's state.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.console(&self.gate.state.lock().consoles).position
    }

    /// Sets the value of [`ConsolePort::position`], when a console's state is restored.
    pub fn set_position(&self, position: u64) {
        let mut state = self.gate.state.lock();
        state.consoles[usize::from(self.device)].position = position;
    }

    fn console<'a>(&self, consoles: &'a [Console]) -> &'a Console {
        &consoles[usize::from(self.device)]
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
