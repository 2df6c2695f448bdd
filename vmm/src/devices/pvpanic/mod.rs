//! pvpanic: how a guest's kernel says that it has panicked. One port (QEMU's `docs/specs/pvpanic`), which Linux
//! finds by ACPI (`QEMU0001`) and drives with `pvpanic` and `pvpanic-mmio`.
//!
//! What must not be done here: decide what follows.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::{PORT, Panic, PanicDevice};
