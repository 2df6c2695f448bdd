//! What a boot protocol hands over, Linux' or PVH's: the command line and the memory map.

use core::{ptr, slice};

// Offsets in Linux' zero page.
const LINUX_CMDLINE_PTR: usize = 0x228;
const LINUX_MAP_ENTRIES: usize = 0x1e8;
const LINUX_MAP: usize = 0x2d0;
const LINUX_MAP_ENTRY_BYTES: usize = 20;

// Offsets in PVH's start info, which is told by its magic number.
const PVH_MAGIC: u32 = 0x336e_c578;
const PVH_CMDLINE_PTR: usize = 24;
const PVH_MAP_PTR: usize = 40;
const PVH_MAP_ENTRIES: usize = 48;
const PVH_MAP_ENTRY_BYTES: usize = 24;

const MAP_ENTRIES_MAX: usize = 128;
const MAP_RAM: u32 = 1;
const COMMAND_LINE_BYTES_MAX: usize = 2048;

/// Linux' zero page, or PVH's start info.
pub(crate) struct BootParams(usize);

impl BootParams {
    /// # Safety
    ///
    /// `address` must be the `boot_params` or the start info the machine was entered with, unchanged since.
    pub(crate) unsafe fn new(address: usize) -> Self {
        Self(address)
    }

    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: offsets are constants of the protocol inside what `new` was promised, or lie in the map that it
        // points to, read as plain integers without assuming alignment.
        unsafe { ptr::read_unaligned(self.0.wrapping_add(offset) as *const T) }
    }

    fn is_pvh(&self) -> bool {
        self.read::<u32>(0) == PVH_MAGIC
    }

    /// The command line, or an empty one if it is not text. The page it lies in is never written.
    pub(crate) fn command_line(&self) -> &'static str {
        let start = match self.is_pvh() {
            true => self.read::<u64>(PVH_CMDLINE_PTR) as usize,
            false => self.read::<u32>(LINUX_CMDLINE_PTR) as usize,
        };
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
        let (map, entries, bytes) = match self.is_pvh() {
            true => (
                (self.read::<u64>(PVH_MAP_PTR) as usize).wrapping_sub(self.0),
                self.read::<u32>(PVH_MAP_ENTRIES) as usize,
                PVH_MAP_ENTRY_BYTES,
            ),
            false => (
                LINUX_MAP,
                usize::from(self.read::<u8>(LINUX_MAP_ENTRIES)),
                LINUX_MAP_ENTRY_BYTES,
            ),
        };
        (0..entries.min(MAP_ENTRIES_MAX))
            .map(|entry| map.wrapping_add(entry * bytes))
            .map(|at| {
                (
                    self.read::<u64>(at),
                    self.read::<u64>(at + 8),
                    self.read::<u32>(at + 16),
                )
            })
            .filter(|(_, _, kind)| *kind == MAP_RAM)
            .map(|(start, length, _)| (start as usize, start.saturating_add(length) as usize))
            .find(|(start, end)| (*start..*end).contains(&address))
            .map_or(0, |(_, end)| end)
    }
}
