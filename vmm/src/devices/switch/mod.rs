//! The two switches by which a guest ends its run. *Reset* is what is left of the keyboard controller: the
//! one command that the ACPI tables also name. *Power-off* is ACPI's PM1 control register (ACPI 6.5, 4.8.3.2.1); the
//! only sleep here is soft off (S5).
//!
//! What must not be done here: decide what follows. The machine's owner does.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::{
    CONTROL_PORT, Kind, PowerSwitch, RESET_COMMAND, RESET_PORT, SLEEP_TYPE_OFF, Switch,
};
