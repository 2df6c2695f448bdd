//! The register that the guest reads, and the handle that presses the button.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::{ButtonState, NAME, VERSION};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, EventSource, Irq, Snapshot};

/// The register: what has happened since it was last read.
pub const EVENT_PORT: u16 = 0x604;
/// The bit of the power button in it.
pub const EVENT_PRESSED: u8 = 1 << 0;

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
    /// Asks the guest to shut down; does nothing on a standby.
    pub fn press(&self) {
        // Fails only if the counter is full; a press is pending then anyway.
        let _ = self.0.write(1);
    }
}

impl ButtonDevice {
    /// A button that interrupts by `irq`, on standby.
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
}

impl BusDevice for ButtonDevice {
    /// Reading the register empties it.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [events] = data
            && std::mem::take(&mut self.state.is_pressed)
        {
            *events = EVENT_PRESSED;
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

impl Snapshot for ButtonDevice {
    fn name(&self) -> &str {
        NAME
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(NAME, VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        self.state = state.decode(NAME, VERSION)?;
        Ok(())
    }
}

impl Device for ButtonDevice {
    /// Raises the interrupt again: it may have been lost with the old host.
    fn start(&mut self) {
        self.running = true;
        if self.state.is_pressed {
            self.irq.raise();
        }
    }

    fn stop(&mut self) {
        self.running = false;
    }

    fn reset(&mut self) {
        self.state = ButtonState::default();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource::Counter(self.presses.as_raw_fd())]
    }

    fn handle_event(&mut self, _source: usize) {
        // If there is nothing to read, another call was quicker.
        if self.presses.read().is_ok() && self.running {
            self.state.is_pressed = true;
            self.irq.raise();
        }
    }
}
