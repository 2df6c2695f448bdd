//! Port 0x64, the PC's keyboard controller, as far as guests use it to reset: writing 0xFE ends the guest.
//!
//! It has no state, so it is on the bus but in no snapshot. What must not be done here: keyboards.

use std::sync::Arc;

use super::events::Events;
use crate::devices::BusDevice;

pub(super) const PORT: u64 = 0x64;
const PULSE_RESET_LINE: u8 = 0xfe;
/// "Ready for a command, no key pressed".
const STATUS_IDLE: u8 = 0;

pub(super) struct ResetPort(pub(super) Arc<Events>);

impl BusDevice for ResetPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(STATUS_IDLE);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET_LINE) {
            self.0.guest_reset();
        }
    }
}
