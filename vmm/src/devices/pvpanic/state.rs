//! The saved state of the panic port.

use serde::{Deserialize, Serialize};

/// The device's name.
pub(super) const NAME: &str = "pvpanic";
/// Version of [`PanicState`].
pub(super) const VERSION: u16 = 1;

/// The kernel has panicked and is about to halt or reboot.
pub(super) const PANICKED: u8 = 1 << 0;
/// It has panicked, and a crash kernel takes over in the guest.
pub(super) const CRASH_LOADED: u8 = 1 << 1;
/// All events there are.
pub(super) const ALL_EVENTS: u8 = PANICKED | CRASH_LOADED;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PanicState {
    /// The events that the guest has reported since it was last reset.
    pub(super) reported: u8,
}
