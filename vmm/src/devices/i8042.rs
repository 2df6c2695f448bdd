//! What is left of the keyboard controller: the command by which an x86 guest resets its machine (also
//! the way to reset that the ACPI tables tell of). For this VMM that is the guest's end. There is no keyboard.

use serde::{Deserialize, Serialize};

use super::{BusDevice, Device, DeviceError, DeviceState, EventSource, Snapshot};

/// The port of the controller's commands (written) and status (read).
pub const COMMAND_PORT: u64 = 0x64;
/// How many ports there are.
pub const PORTS: u64 = 1;

/// "Pulse the reset line".
pub const COMMAND_RESET: u8 = 0xfe;
const NAME: &str = "i8042";
const STATE_VERSION: u16 = 1;

/// Calls back when the guest resets itself.
pub struct ResetDevice {
    state: State,
    on_reset: Box<dyn Fn() + Send>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    reset_wanted: bool,
}

impl ResetDevice {
    /// `on_reset` is called on the vCPU's thread, with the device's mutex locked: it should set a flag
    /// or an event and return.
    #[must_use]
    pub fn new(on_reset: Box<dyn Fn() + Send>) -> Self {
        Self {
            state: State::default(),
            on_reset,
        }
    }
}

impl BusDevice for ResetDevice {
    /// Status: no byte to read, ready for a command.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [COMMAND_RESET] {
            self.state.reset_wanted = true;
            (self.on_reset)();
        }
    }
}

impl Snapshot for ResetDevice {
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

impl Device for ResetDevice {
    /// A reset that the old host had not acted upon is acted upon here.
    fn start(&mut self) {
        if self.state.reset_wanted {
            (self.on_reset)();
        }
    }

    fn stop(&mut self) {}

    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    fn handle_event(&mut self, _source: usize) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn device() -> (ResetDevice, Arc<AtomicU32>) {
        let resets = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&resets);
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        (ResetDevice::new(Box::new(count)), resets)
    }

    #[test]
    fn only_the_reset_command_resets() {
        let (mut device, resets) = device();
        for data in [&[0xfd][..], &[0xfe, 0], &[0, 0xfe], &[]] {
            device.write(0, data);
        }
        assert_eq!(resets.load(Ordering::Relaxed), 0);
        device.write(0, &[0xfe]);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
        let mut status = [0xff];
        device.read(0, &mut status);
        assert_eq!(status, [0]);
    }

    #[test]
    fn a_reset_in_flight_is_part_of_the_state() {
        let (mut first, _) = device();
        let fresh = first.save().unwrap();
        first.write(0, &[0xfe]);
        let ended = first.save().unwrap();
        assert_ne!(fresh, ended);
        first.restore(&fresh).unwrap();
        assert_eq!(first.save().unwrap(), fresh);

        let (mut second, resets) = device();
        second.restore(&ended).unwrap();
        assert_eq!(second.save().unwrap(), ended);
        assert_eq!(resets.load(Ordering::Relaxed), 0);
        second.start();
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_bad_state_is_refused() {
        let (mut device, _) = device();
        let good = device.save().unwrap();
        let refused = |device: &mut ResetDevice, change: fn(&mut DeviceState)| {
            let mut bad = good.clone();
            change(&mut bad);
            device.restore(&bad).unwrap_err()
        };
        let error = refused(&mut device, |s| s.version += 1);
        assert!(matches!(error, DeviceError::WrongVersion { found: 2, .. }));
        let error = refused(&mut device, |s| s.name.push('x'));
        assert!(matches!(error, DeviceError::WrongDevice { .. }));
        let error = refused(&mut device, |s| s.body.push(0));
        assert!(matches!(error, DeviceError::LeftOver { bytes: 1, .. }));
        let error = refused(&mut device, |s| s.body.clear());
        assert!(matches!(error, DeviceError::Malformed { .. }));
        let error = refused(&mut device, |s| s.body[0] = 7);
        assert!(matches!(error, DeviceError::Malformed { .. }));
    }
}
