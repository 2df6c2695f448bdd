//! The power button: a person or a program outside asks the guest to shut itself down, or wakes it. It is what ACPI
//! calls fixed hardware: an event that the PM1 status register shows, that the PM1 enable register lets through, and
//! that the system control interrupt tells of (ACPI 6.5, 4.8.3.1). Linux takes no other interrupt of ACPI's for a
//! reason to wake from suspend-to-idle; its driver is `button`.
//!
//! What must not be done here: end anything. The guest may take its time, or ignore the button.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::{ButtonDevice, EVENT_PORT, EVENT_PORTS, PowerButton};
