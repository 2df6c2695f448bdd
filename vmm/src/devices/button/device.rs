//! The registers, and the handle that presses the button.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::{ButtonState, EVENTS, NAME, POWER_BUTTON, VERSION};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, EventSource, Irq, Snapshot};

/// The first port of the PM1 event registers: status, then enable, 16 bits each.
pub const EVENT_PORT: u16 = 0x600;
/// How many ports they have.
pub const EVENT_PORTS: u16 = 4;

/// Where the status register's bytes are; those of the enable register follow.
const STATUS_BYTES: usize = 2;

/// A press of the button, as the device's event sources are numbered.
pub(super) const PRESS: usize = 0;
/// The guest has handled the interrupt.
pub(super) const HANDLED: usize = 1;

/// The button as the guest sees it.
pub struct ButtonDevice {
    state: ButtonState,
    running: bool,
    presses: Arc<EventFd>,
    irq: Irq,
}

/// Presses the button, from any thread. Clones are the same button.
#[derive(Debug, Clone)]
pub struct PowerButton(Arc<EventFd>);

impl PowerButton {
    /// Asks the guest to shut down, or wakes it; does nothing on a standby.
    pub fn press(&self) {
        // Fails only if the counter is full; a press is pending then anyway.
        let _ = self.0.write(1);
    }
}

impl ButtonDevice {
    /// A button that interrupts by `irq`, a level-triggered line, on standby.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn new(irq: Irq) -> io::Result<Self> {
        Ok(Self {
            state: ButtonState::default(),
            running: false,
            presses: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            irq,
        })
    }

    /// The handle that presses it.
    #[must_use]
    pub fn button(&self) -> PowerButton {
        PowerButton(Arc::clone(&self.presses))
    }

    /// The line is up while something is pending. It goes down when the guest has handled the interrupt, so raising it
    /// once more than needed does no harm.
    fn update_line(&self) {
        if self.running && self.state.is_pending() {
            self.irq.raise();
        }
    }
}

impl BusDevice for ButtonDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [low, high] = self.state.status.to_le_bytes();
        let [enable_low, enable_high] = self.state.enable.to_le_bytes();
        let registers = [low, high, enable_low, enable_high];
        let from = registers.iter().skip(offset as usize);
        data.fill(0);
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// Ones in the status register clear what they stand for.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut status = self.state.status.to_le_bytes();
        let mut enable = self.state.enable.to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(status) = status.get_mut(at) {
                *status &= !byte;
            } else if let Some(enable) = enable.get_mut(at - STATUS_BYTES) {
                *enable = *byte;
            }
        }
        self.state.status = u16::from_le_bytes(status);
        self.state.enable = u16::from_le_bytes(enable) & EVENTS;
        self.update_line();
    }
}

impl Snapshot for ButtonDevice {
    fn name(&self) -> &str {
        NAME
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(NAME, VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: ButtonState = state.decode(NAME, VERSION)?;
        if let Some(what) = state.impossible() {
            return Err(DeviceError::Invalid {
                device: NAME.to_owned(),
                what,
            });
        }
        self.state = state;
        Ok(())
    }
}

impl Device for ButtonDevice {
    /// Raises the interrupt again: it may have been lost with the old host.
    fn start(&mut self) {
        self.running = true;
        self.update_line();
    }

    fn stop(&mut self) {
        self.running = false;
    }

    fn reset(&mut self) {
        self.state = ButtonState::default();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let handled = self.irq.handled().map(AsRawFd::as_raw_fd);
        let fds = [Some(self.presses.as_raw_fd()), handled];
        (fds.into_iter().flatten())
            .map(EventSource::Counter)
            .collect()
    }

    fn handle_event(&mut self, source: usize) {
        // If there is nothing to read, another call was quicker.
        match source {
            PRESS if self.presses.read().is_ok() && self.running => {
                self.state.status |= POWER_BUTTON;
                self.update_line();
            }
            HANDLED if self.irq.handled().is_some_and(|event| event.read().is_ok()) => {
                self.update_line();
            }
            _ => {}
        }
    }
}
