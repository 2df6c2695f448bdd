//! The saved state of the watchdog.

use serde::{Deserialize, Serialize};

/// The device's name.
pub const NAME: &str = "watchdog";
/// Most ticks.
pub const TICKS_MAX: u8 = 240;
/// Version of [`WatchdogState`].
pub(super) const VERSION: u16 = 1;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WatchdogState {
    /// Ticks until it fires; `None` if it is stopped.
    pub(super) ticks_left: Option<u8>,
    /// It has fired, and has not been started since.
    pub(super) has_fired: bool,
    /// The ticks that a start by [`super::RUN_PORT`] gives.
    pub(super) count: u8,
}

impl WatchdogState {
    /// Whether a watchdog can be in this state.
    pub(super) fn is_possible(self) -> bool {
        let counts = match self.ticks_left {
            None => true,
            Some(left) => (1..=TICKS_MAX).contains(&left) && !self.has_fired,
        };
        counts && self.count <= TICKS_MAX
    }
}
