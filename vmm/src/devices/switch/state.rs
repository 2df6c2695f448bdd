//! The saved state of a switch.

use serde::{Deserialize, Serialize};

/// Version of [`SwitchState`].
pub(super) const VERSION: u16 = 1;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SwitchState {
    /// The guest has turned the switch since it was last reset.
    pub(super) is_turned: bool,
}
