//! The port: it reports each kind of panic once.

use super::state::{ALL_EVENTS, CRASH_LOADED, NAME, PANICKED, PanicState, VERSION};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, EventSource, Snapshot};

/// The port. Read, it says which events are known; written, it takes events.
pub const PORT: u16 = 0x505;

/// What the guest has reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panic {
    /// Its kernel has panicked for good.
    Final,
    /// Its kernel has panicked, and a crash kernel takes over.
    CrashKernel,
}

/// Calls back when the guest's kernel panics, once a run.
pub struct PanicDevice {
    state: PanicState,
    on_panic: Box<dyn Fn(Panic) + Send>,
}

impl PanicDevice {
    /// `on_panic` is called with the device's mutex locked: it should set a flag or an event and return.
    #[must_use]
    pub fn new(on_panic: Box<dyn Fn(Panic) + Send>) -> Self {
        Self {
            state: PanicState::default(),
            on_panic,
        }
    }

    fn report(&self, bits: u8) {
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
            *events = ALL_EVENTS;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let &[bits] = data else {
            return;
        };
        // The guest decides how often it writes; each event is reported once.
        let new_events = bits & ALL_EVENTS & !self.state.reported;
        self.state.reported |= new_events;
        self.report(new_events);
    }
}

impl Snapshot for PanicDevice {
    fn name(&self) -> &str {
        NAME
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(NAME, VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: PanicState = state.decode(NAME, VERSION)?;
        if state.reported & !ALL_EVENTS != 0 {
            return Err(DeviceError::Invalid {
                device: NAME.into(),
                what: format!("events {:#x}", state.reported),
            });
        }
        self.state = state;
        Ok(())
    }
}

impl Device for PanicDevice {
    /// What the old host was told is reported here again.
    fn start(&mut self) {
        self.report(self.state.reported);
    }

    fn stop(&mut self) {}

    fn reset(&mut self) {
        self.state = PanicState::default();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    fn handle_event(&mut self, _source: usize) {}
}
