//! The serial console: a 16550 UART at the guest's COM1, whose output goes through the output gate.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::{PORTS, SerialDevice, SerialInput};
