//! The power button: a person or a program outside asks the guest to shut itself down. ACPI tells the guest
//! about the button (`PNP0C0C`) and about the event device (`ACPI0013`) that reads its register when the
//! interrupt comes; Linux' driver is `button`.
//!
//! What must not be done here: end anything. The guest may take its time, or ignore the button.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::{ButtonDevice, EVENT_PORT, EVENT_PRESSED, PowerButton};
