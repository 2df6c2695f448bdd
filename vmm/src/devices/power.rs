//! The switch by which a guest powers itself off: the sleep registers of hardware-reduced ACPI (ACPI 6.5,
//! 4.8.3.7). The one sleep there is here is soft off (S5). There is no button: nobody outside presses it.

use serde::{Deserialize, Serialize};

use super::{BusDevice, Device, DeviceError, DeviceState, EventSource, Snapshot};

/// The first port: sleep control; the next one is sleep status.
pub const CONTROL_PORT: u64 = 0x600;
/// How many ports there are.
pub const PORTS: u64 = 2;
/// The type of sleep that is soft off, as the guest is told in `_S5`.
pub const SLEEP_TYPE_OFF: u8 = 5;

const CONTROL: u64 = 0;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const NAME: &str = "power";
const STATE_VERSION: u16 = 1;

/// Calls back when the guest powers itself off.
pub struct PowerDevice {
    state: State,
    on_off: Box<dyn Fn() + Send>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    off_wanted: bool,
}

impl PowerDevice {
    /// `on_off` is called on the vCPU's thread, with the device's mutex locked: it should set a flag or an
    /// event and return.
    #[must_use]
    pub fn new(on_off: Box<dyn Fn() + Send>) -> Self {
        Self {
            state: State::default(),
            on_off,
        }
    }
}

impl BusDevice for PowerDevice {
    /// Both registers: nothing set, nothing woken up.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (CONTROL, &[control]) = (offset, data) else {
            return;
        };
        let sleep_type = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        if control & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF {
            self.state.off_wanted = true;
            (self.on_off)();
        }
    }
}

impl Snapshot for PowerDevice {
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

impl Device for PowerDevice {
    /// A power-off that the old host had not acted upon is acted upon here.
    fn start(&mut self) {
        if self.state.off_wanted {
            (self.on_off)();
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

    /// Soft off, enabled.
    const OFF: u8 = 0b11_0100;

    fn device() -> (PowerDevice, Arc<AtomicU32>) {
        let offs = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&offs);
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        (PowerDevice::new(Box::new(count)), offs)
    }

    #[test]
    fn only_soft_off_powers_off() {
        let (mut device, offs) = device();
        // Not enabled, another sleep, another register, another width.
        device.write(0, &[0b01_0100]);
        device.write(0, &[0b10_1100]);
        device.write(1, &[OFF]);
        device.write(0, &[OFF, 0]);
        device.write(0, &[]);
        assert_eq!(offs.load(Ordering::Relaxed), 0);
        device.write(0, &[OFF]);
        assert_eq!(offs.load(Ordering::Relaxed), 1);
        let mut registers = [0xff; 2];
        device.read(0, &mut registers);
        assert_eq!(registers, [0, 0]);
    }

    #[test]
    fn a_power_off_in_flight_is_part_of_the_state() {
        let (mut first, _) = device();
        let fresh = first.save().unwrap();
        first.write(0, &[OFF]);
        let ended = first.save().unwrap();
        assert_ne!(fresh, ended);
        first.restore(&fresh).unwrap();
        assert_eq!(first.save().unwrap(), fresh);

        let (mut second, offs) = device();
        second.restore(&ended).unwrap();
        assert_eq!(second.save().unwrap(), ended);
        assert_eq!(offs.load(Ordering::Relaxed), 0);
        second.start();
        assert_eq!(offs.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_bad_state_is_refused() {
        let (mut device, _) = device();
        let good = device.save().unwrap();
        let refused = |device: &mut PowerDevice, change: fn(&mut DeviceState)| {
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
        let error = refused(&mut device, |s| s.body[0] = 7);
        assert!(matches!(error, DeviceError::Malformed { .. }));
    }
}
