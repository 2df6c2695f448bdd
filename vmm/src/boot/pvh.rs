//! PVH: the ELF note that offers it, and the start info in memory (Xen's docs/misc/pvh.pandoc and
//! include/public/arch-x86/hvm/start_info.h).
//!
//! What must not be done here: set registers; `registers.rs` does.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::acpi::TABLES_START;
use super::params::{CMDLINE_ADDRESS, memory_map, write_cmdline};
use super::{BootError, Cmdline, Plan};
use crate::memory::GuestRam;

/// Address of `struct hvm_start_info`. What it points to follows, below the zero page.
pub(super) const START_INFO_ADDRESS: u64 = 0x6000;
const MODULES_ADDRESS: u64 = 0x6080;
const MEMORY_MAP_ADDRESS: u64 = 0x6100;

const MAGIC: u32 = 0x336e_c578;
/// The first with a memory map.
const VERSION: u32 = 1;

const NOTE_HEADER_BYTES: usize = 12;
const NOTE_ALIGNMENT: usize = 4;
const NOTE_NAME: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// The entry point in a note segment, if there is one.
pub(super) fn entry_in_notes(mut notes: &[u8]) -> Option<u32> {
    loop {
        let (header, rest) = notes.split_at_checked(NOTE_HEADER_BYTES)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let (name_bytes, content_bytes, kind) = (word(0) as usize, word(4) as usize, word(8));
        let (name, rest) =
            rest.split_at_checked(name_bytes.checked_next_multiple_of(NOTE_ALIGNMENT)?)?;
        // The last note may lack padding.
        let content = rest.get(..content_bytes)?;
        if kind == NOTE_PHYS32_ENTRY && &name[..name_bytes] == NOTE_NAME {
            // 4 or 8 bytes. An entry above 4 GiB does not count.
            let (low, high) = content.split_first_chunk::<4>()?;
            return high
                .iter()
                .all(|byte| *byte == 0)
                .then(|| u32::from_le_bytes(*low));
        }
        let padded = content_bytes.checked_next_multiple_of(NOTE_ALIGNMENT)?;
        notes = rest.get(padded..)?;
    }
}

/// Writes the command line and `struct hvm_start_info`, which points to everything.
///
/// # Errors
/// If guest memory has no room for them.
pub(super) fn write_start_info(
    ram: &GuestRam,
    cmdline: &Cmdline,
    plan: &Plan,
) -> Result<(), BootError> {
    write_cmdline(ram, cmdline)?;
    let initrd = plan.initrd();
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            ..Default::default()
        };
        write(ram, MODULES_ADDRESS, module)?;
    }
    let map = memory_map(ram);
    for (number, (start, end, kind)) in (0u64..).zip(&map) {
        let entry = hvm_memmap_table_entry {
            addr: *start,
            size: end - start,
            // The numbers are those of the e820 map.
            type_: *kind,
            reserved: 0,
        };
        let bytes = size_of::<hvm_memmap_table_entry>() as u64;
        write(ram, MEMORY_MAP_ADDRESS + number * bytes, entry)?;
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| MODULES_ADDRESS),
        cmdline_paddr: CMDLINE_ADDRESS,
        rsdp_paddr: TABLES_START,
        memmap_paddr: MEMORY_MAP_ADDRESS,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    write(ram, START_INFO_ADDRESS, info)
}

fn write<T: ByteValued>(ram: &GuestRam, address: u64, value: T) -> Result<(), BootError> {
    ram.write_obj(value, GuestAddress(address))
        .map_err(|source| BootError::Write {
            what: "PVH's start info",
            source,
        })
}
