//! pvpanic: how a guest's kernel says that it has panicked. One port (QEMU's `docs/specs/pvpanic`), which Linux
//! finds by ACPI (`QEMU0001`) and drives with `pvpanic` and `pvpanic-mmio`.
//!
//! What must not be done here: decide what follows.

use serde::{Deserialize, Serialize};

use super::{BusDevice, Device, DeviceError, DeviceState, EventSource, Snapshot};

/// The port: what can be told (read), what is told (written).
pub const PORT: u16 = 0x505;

/// The kernel has panicked and is about to halt or reboot.
const PANICKED: u8 = 1 << 0;
/// It has panicked, and a crash kernel takes over in the guest.
const CRASH_LOADED: u8 = 1 << 1;
const NAME: &str = "pvpanic";
const STATE_VERSION: u16 = 1;

/// What the guest has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panic {
    /// Its kernel is over.
    Final,
    /// Its crash kernel goes on.
    CrashKernel,
}

/// Calls back when the guest's kernel panics, once a run.
pub struct PanicDevice {
    state: State,
    on_panic: Box<dyn Fn(Panic) + Send>,
}

/// Bits that the guest has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    told: u8,
}

impl PanicDevice {
    /// `on_panic` is called with the device's mutex locked: it should set a flag or an event and return.
    #[must_use]
    pub fn new(on_panic: Box<dyn Fn(Panic) + Send>) -> Self {
        Self {
            state: State::default(),
            on_panic,
        }
    }

    fn tell(&self, bits: u8) {
        if bits & PANICKED != 0 {
            (self.on_panic)(Panic::Final);
        } else if bits & CRASH_LOADED != 0 {
            (self.on_panic)(Panic::CrashKernel);
        }
    }
}

impl BusDevice for PanicDevice {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [events] = data {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let &[bits] = data else {
            return;
        };
        // The guest decides how often it writes: only news are told.
        let news = bits & (PANICKED | CRASH_LOADED) & !self.state.told;
        self.state.told |= news;
        self.tell(news);
    }
}

impl Snapshot for PanicDevice {
    fn name(&self) -> &str {
        NAME
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(NAME, STATE_VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: State = state.decode(NAME, STATE_VERSION)?;
        if state.told & !(PANICKED | CRASH_LOADED) != 0 {
            return Err(DeviceError::Invalid {
                device: NAME.into(),
                what: format!("events {:#x}", state.told),
            });
        }
        self.state = state;
        Ok(())
    }
}

impl Device for PanicDevice {
    /// What the old host was told is news here.
    fn start(&mut self) {
        self.tell(self.state.told);
    }

    fn stop(&mut self) {}

    fn reset(&mut self) {
        self.state = State::default();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    fn handle_event(&mut self, _source: usize) {}
}

#[cfg(test)]
mod tests;
