//! The zero page and the command line of the Linux boot protocol.
//!
//! Layout of low memory, all below [`super::KERNEL_START`]:
//!
//! | address | what |
//! | --- | --- |
//! | 0x500 | GDT |
//! | 0x6000 | PVH's `struct hvm_start_info`, and what it points to |
//! | 0x7000 | `struct boot_params` |
//! | 0x8ff0 | initial stack pointer |
//! | 0x9000.. | page tables |
//! | 0x20000 | command line |
//! | 0x9fc00.. | not RAM for the guest, as on a PC |
//! | 0xe0000.. | ACPI tables |
//! | 0xffff0.. | reset vector |

use linux_loader::loader::bootparam::{boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::acpi::TABLES_START;
use super::{BootError, KERNEL_START, Plan};
use crate::memory::GuestRam;

/// Where `struct boot_params` lies.
pub const BOOT_PARAMS_ADDRESS: u64 = 0x7000;
/// Where the command line lies.
pub const CMDLINE_ADDRESS: u64 = 0x2_0000;
/// Longest command line, its final NUL included; Linux takes no more on x86.
pub const CMDLINE_BYTES_MAX: usize = 2048;

/// Where a PC's extended BIOS data begins; not for the guest.
const LOW_RAM_END: u64 = 0x9_fc00;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT_BYTES: u32 = 0x100_0000;
/// 2.12: the first with 64-bit entry and everything we use.
const PROTOCOL_VERSION: u16 = 0x020c;

/// A kernel command line, checked and bounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline(String);

impl Cmdline {
    /// A command line of `words`, joined by blanks.
    ///
    /// # Errors
    /// If it is longer than [`CMDLINE_BYTES_MAX`] or has bytes other than printable ASCII.
    pub fn new<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Result<Self, BootError> {
        let mut text = String::new();
        for word in words {
            if !text.is_empty() && !word.as_ref().is_empty() {
                text.push(' ');
            }
            text.push_str(word.as_ref());
        }
        if text.len() >= CMDLINE_BYTES_MAX {
            return Err(BootError::CmdlineTooLong {
                bytes: text.len(),
                limit: CMDLINE_BYTES_MAX - 1,
            });
        }
        if let Some((offset, byte)) = text
            .bytes()
            .enumerate()
            .find(|(_, byte)| !(b' '..=b'~').contains(byte))
        {
            return Err(BootError::CmdlineByte { byte, offset });
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Writes the command line and the zero page that points to it.
///
/// # Errors
/// If guest memory has no room for them.
pub(super) fn write_boot_params(
    ram: &GuestRam,
    cmdline: &Cmdline,
    plan: &Plan,
) -> Result<(), BootError> {
    write_cmdline(ram, cmdline)?;
    ram.write_obj(
        zero_page(ram, cmdline.as_str().len(), plan),
        GuestAddress(BOOT_PARAMS_ADDRESS),
    )
    .map_err(|source| BootError::Write {
        what: "struct boot_params",
        source,
    })
}

/// Writes the command line and its NUL.
pub(super) fn write_cmdline(ram: &GuestRam, cmdline: &Cmdline) -> Result<(), BootError> {
    let text = cmdline.as_str().as_bytes();
    ram.write_slice(text, GuestAddress(CMDLINE_ADDRESS))
        .and_then(|()| {
            let end = GuestAddress(CMDLINE_ADDRESS + text.len() as u64);
            ram.write_slice(&[0], end)
        })
        .map_err(|source| BootError::Write {
            what: "the command line",
            source,
        })
}

/// The header of a kernel that brings none.
pub(super) fn plain_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL_VERSION,
        kernel_alignment: KERNEL_ALIGNMENT_BYTES,
        ..Default::default()
    }
}

fn zero_page(ram: &GuestRam, cmdline_bytes: usize, plan: &Plan) -> boot_params {
    let mut params = boot_params {
        hdr: plan.header,
        acpi_rsdp_addr: TABLES_START,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.setup_data = 0;
    params.hdr.cmd_line_ptr = CMDLINE_ADDRESS as u32;
    params.hdr.cmdline_size = cmdline_bytes as u32;
    if let Some(initrd) = plan.initrd() {
        // Low RAM ends at 3 GiB, so both are 32-bit numbers.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    let mut entries = 0;
    for (start, end, kind) in memory_map(ram) {
        params.e820_table[entries].addr = start;
        params.e820_table[entries].size = end - start;
        params.e820_table[entries].r#type = kind;
        entries += 1;
    }
    params.e820_entries = entries as u8;
    params
}

/// The memory map: start, end and type. All RAM except what a PC has below 1 MiB: there only the
/// ACPI tables and the reset vector are used.
pub(super) fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, u32)> {
    let mut map = Vec::new();
    for region in ram.iter() {
        let start = region.start_addr().0;
        let end = start + region.len();
        if start == 0 {
            map.push((0, LOW_RAM_END, E820_RAM));
            map.push((LOW_RAM_END, TABLES_START, E820_RESERVED));
            map.push((TABLES_START, KERNEL_START, E820_ACPI));
            map.push((KERNEL_START, end, E820_RAM));
        } else {
            map.push((start, end, E820_RAM));
        }
    }
    map
}
