//! What the boot protocol hands over: the command line and the memory map.

use core::{ptr, slice};

const CMD_LINE_PTR: usize = 0x228;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_BYTES: usize = 20;
const E820_ENTRIES_MAX: usize = 128;
const E820_RAM: u32 = 1;
const COMMAND_LINE_BYTES_MAX: usize = 2048;

/// The Linux boot protocol's zero page.
pub(crate) struct BootParams(usize);

impl BootParams {
    /// # Safety
    ///
    /// `address` must be the `boot_params` the machine was entered with, unchanged since.
    pub(crate) unsafe fn new(address: usize) -> Self {
        Self(address)
    }

    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: offsets are constants of the protocol inside the 4 KiB page that `new` was promised,
        // read as plain integers without assuming alignment.
        unsafe { ptr::read_unaligned((self.0 + offset) as *const T) }
    }

    /// The command line, or an empty one if it is not text. The page it lies in is never written.
    pub(crate) fn command_line(&self) -> &'static str {
        let start = self.read::<u32>(CMD_LINE_PTR) as usize;
        if start == 0 {
            return "";
        }
        // SAFETY: the protocol promises a NUL-terminated string in RAM below 4 GiB, all of which is
        // mapped; the scan is bounded, and nothing writes there while the guest runs.
        let bytes = unsafe { slice::from_raw_parts(start as *const u8, COMMAND_LINE_BYTES_MAX) };
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        core::str::from_utf8(&bytes[..end]).unwrap_or("").trim()
    }

    /// The first address after the RAM that contains `address`, or 0 if no RAM does.
    pub(crate) fn ram_end(&self, address: usize) -> usize {
        let entries = usize::from(self.read::<u8>(E820_ENTRIES)).min(E820_ENTRIES_MAX);
        (0..entries)
            .map(|entry| E820_TABLE + entry * E820_ENTRY_BYTES)
            .map(|at| {
                (
                    self.read::<u64>(at),
                    self.read::<u64>(at + 8),
                    self.read::<u32>(at + 16),
                )
            })
            .filter(|(_, _, kind)| *kind == E820_RAM)
            .map(|(start, length, _)| (start as usize, start.saturating_add(length) as usize))
            .find(|(start, end)| (*start..*end).contains(&address))
            .map_or(0, |(_, end)| end)
    }
}
