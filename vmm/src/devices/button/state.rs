//! The saved state of the power button.

use serde::{Deserialize, Serialize};

/// The device's name.
pub(super) const NAME: &str = "button";
/// Version of [`ButtonState`].
pub(super) const VERSION: u16 = 2;

/// The event of the global lock, which firmware raises when it releases it. There is no firmware, but systems
/// enable the event and expect to read that.
pub(super) const GLOBAL_LOCK: u16 = 1 << 5;
/// The event of the button.
pub(super) const POWER_BUTTON: u16 = 1 << 8;
/// What the guest can enable.
pub(super) const EVENTS: u16 = GLOBAL_LOCK | POWER_BUTTON;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ButtonState {
    /// What has happened, as the guest reads it, until the guest clears it.
    pub(super) status: u16,
    /// What the guest wants to be interrupted for.
    pub(super) enable: u16,
}

impl ButtonState {
    /// Something has happened that the guest wants to be interrupted for.
    pub(super) fn is_pending(self) -> bool {
        self.status & self.enable != 0
    }

    /// What of it no device could have.
    pub(super) fn impossible(self) -> Option<String> {
        let Self { status, enable } = self;
        let is_possible = status & !POWER_BUTTON == 0 && enable & !EVENTS == 0;
        (!is_possible).then(|| {
            format!(
                "status {status:#06x} (at most {POWER_BUTTON:#06x}), enabled {enable:#06x} (at most {EVENTS:#06x})"
            )
        })
    }
}
