//! The serial console: log lines for whoever watches the guest.
//!
//! Every byte is an exit from the guest, so lines are short and rare.

use super::port;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

const COM1_DATA: u16 = 0x3f8;

static BUSY: AtomicBool = AtomicBool::new(false);

/// Writes to the serial port.
struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // No look at the line status first: it would double the exits, and an emulated 16550 takes
        // every byte at once.
        text.bytes().for_each(|byte| port::write(COM1_DATA, byte));
        Ok(())
    }
}

/// Writes one line; lines of several vCPUs do not mix.
pub(crate) fn line(arguments: fmt::Arguments<'_>) {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    // Writing to the port cannot fail; a formatting error only shortens the line.
    let _ = fmt::write(&mut Serial, arguments);
    let _ = fmt::Write::write_str(&mut Serial, "\n");
    BUSY.store(false, Ordering::Release);
}

/// Writes a line to the serial console.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::cpu::serial::line(format_args!($($argument)*)) };
}
