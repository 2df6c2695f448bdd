//! The power button: a person or a program outside asks the guest to shut itself down. ACPI tells the guest
//! of it (`PNP0C0C`) and of the event device (`ACPI0013`) that reads this register when the interrupt comes;
//! Linux' driver is `button`.
//!
//! What must not be done here: end anything. The guest may take its time, or not listen.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{BusDevice, Device, DeviceError, DeviceState, EventSource, Irq, Snapshot};

/// The register: what has happened since it was read last.
pub const EVENT_PORT: u16 = 0x604;
/// The bit of the power button in it.
pub const EVENT_PRESSED: u8 = 1 << 0;

const NAME: &str = "button";
const STATE_VERSION: u16 = 1;

/// The button's side in the machine.
pub struct ButtonDevice {
    state: State,
    running: bool,
    presses: Arc<EventFd>,
    irq: Irq,
}

/// Presses the button, from any thread. Clones are the same button.
#[derive(Debug, Clone)]
pub struct PowerButton(Arc<EventFd>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// And the guest has not looked yet.
    is_pressed: bool,
}

impl PowerButton {
    /// Asks the guest to shut down; does nothing on a standby.
    pub fn press(&self) {
        // Fails only if the counter is full: then a press is pending anyhow.
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
            state: State::default(),
            running: false,
            presses: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            irq,
        })
    }

    /// The outside of it.
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
        DeviceState::encode(NAME, STATE_VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        self.state = state.decode(NAME, STATE_VERSION)?;
        Ok(())
    }
}

impl Device for ButtonDevice {
    /// The interrupt may have been lost with the old host.
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
        self.state = State::default();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource::Counter(self.presses.as_raw_fd())]
    }

    fn handle_event(&mut self, _source: usize) {
        // Nothing to read means that another call was quicker.
        if self.presses.read().is_ok() && self.running {
            self.state.is_pressed = true;
            self.irq.raise();
        }
    }
}

#[cfg(test)]
mod tests;
