//! The whole BIOS: the instruction at which a PC's processor starts after a reset. A kernel that
//! wants a reboot may jump there in real mode; Linux does, if ACPI is hardware-reduced and there is
//! no EFI.
//!
//! What must not be done here: anything else. Guests are not booted this way.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::GuestRam;

/// F000:FFF0, behind the ACPI tables.
pub(super) const RESET_VECTOR: u64 = 0xf_fff0;

/// Writes the code that answers a jump to the reset vector: it writes `value` to `port`, below 0x100.
///
/// # Errors
/// If guest memory has no room for it.
pub(super) fn write(ram: &GuestRam, port: u8, value: u8) -> Result<(), BootError> {
    let code = [
        0xb0, value, // mov al, value
        0xe6, port, // out port, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ];
    ram.write_slice(&code, GuestAddress(RESET_VECTOR))
        .map_err(|source| BootError::Write {
            what: "the reset vector",
            source,
        })
}
