//! The saved state of the power button.

use serde::{Deserialize, Serialize};

/// The device's name.
pub(super) const NAME: &str = "button";
/// Version of [`ButtonState`].
pub(super) const VERSION: u16 = 1;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ButtonState {
    /// The button was pressed, and the guest has not read the register since.
    pub(super) is_pressed: bool,
}
