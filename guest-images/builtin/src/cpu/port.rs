//! Port I/O, allowed at CPL 3 by IOPL 3 and by the TSS's I/O bitmap.

use core::arch::asm;

/// Writes one byte.
pub(crate) fn write(port: u16, value: u8) {
    // SAFETY: port I/O touches no memory of this program; no device here is told to do DMA by ports.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}
