//! The registers of both switches, and the handle that turns the one for power.

use std::sync::{Arc, Mutex};

use super::state::{SwitchState, VERSION};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, EventSource, Snapshot, lock};

/// The port of the keyboard controller's commands (written) and status (read).
pub const RESET_PORT: u16 = 0x64;
/// The command "pulse the reset line".
pub const RESET_COMMAND: u8 = 0xfe;
/// The first port of power-off: the PM1 control register, 16 bits.
pub const CONTROL_PORT: u16 = 0x604;
/// The type of sleep that is soft off, as the guest is told in `_S5`.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Fixed hardware is ACPI's, always: there is no firmware that would have it otherwise.
const ACPI_ENABLED: u8 = 1 << 0;
/// What ends the run is in the register's upper byte.
const UPPER_BYTE: u64 = 1;
const SLEEP_ENABLE: u8 = 1 << 5;
pub(super) const SLEEP_TYPE_SHIFT: u8 = 2;
pub(super) const SLEEP_TYPE_MASK: u8 = 0b111;

/// Which switch it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The guest wants to be reset.
    Reset,
    /// The guest wants to be powered off.
    PowerOff,
}

impl Kind {
    /// The device's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "i8042",
            Self::PowerOff => "power",
        }
    }

    /// How many ports it has.
    #[must_use]
    pub fn ports(self) -> u16 {
        match self {
            Self::Reset => 1,
            Self::PowerOff => 2,
        }
    }

    /// Whether writing `data` at `offset` turns the switch.
    fn is_turned_by(self, offset: u64, data: &[u8]) -> bool {
        match (self, offset, data) {
            (Self::Reset, _, &[command]) => command == RESET_COMMAND,
            (Self::PowerOff, 0, &[_, control]) | (Self::PowerOff, UPPER_BYTE, &[control]) => {
                let sleep_type = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                control & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF
            }
            _ => false,
        }
    }
}

/// Calls back when the guest turns it.
pub struct Switch {
    kind: Kind,
    state: SwitchState,
    on_turned: Box<dyn Fn() + Send>,
}

/// Turns a guest's power switch from outside. Clones are the same switch.
#[derive(Clone)]
pub struct PowerSwitch(Arc<Mutex<Switch>>);

impl PowerSwitch {
    /// A handle to `switch`, which must be a [`Kind::PowerOff`] one.
    #[must_use]
    pub fn of(switch: Arc<Mutex<Switch>>) -> Self {
        Self(switch)
    }

    /// The guest stands still from when its vCPUs next leave it (a pause makes them), as if it had powered itself
    /// off. Waits while the guest is paused.
    pub fn turn(&self) {
        lock(&self.0).turn();
    }
}

impl Switch {
    /// `on_turned` is called with the device's mutex locked, on the vCPU's thread: it should set a flag or an
    /// event and return.
    #[must_use]
    pub fn new(kind: Kind, on_turned: Box<dyn Fn() + Send>) -> Self {
        Self {
            kind,
            state: SwitchState::default(),
            on_turned,
        }
    }

    /// Turns the switch on the guest's behalf, for what ends its run just as well.
    pub fn turn(&mut self) {
        self.state.is_turned = true;
        (self.on_turned)();
    }
}

impl BusDevice for Switch {
    /// The keyboard controller has nothing to say and is ready for a command.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Kind::PowerOff, 0, Some(low)) = (self.kind, offset, data.first_mut()) {
            *low = ACPI_ENABLED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if self.kind.is_turned_by(offset, data) {
            self.turn();
        }
    }
}

impl Snapshot for Switch {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(self.kind.name(), VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        self.state = state.decode(self.kind.name(), VERSION)?;
        Ok(())
    }
}

impl Device for Switch {
    /// Reports a turned switch again: the old host may not have acted on it.
    fn start(&mut self) {
        if self.state.is_turned {
            (self.on_turned)();
        }
    }

    fn stop(&mut self) {}

    fn reset(&mut self) {
        self.state = SwitchState::default();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    fn handle_event(&mut self, _source: usize) {}
}
