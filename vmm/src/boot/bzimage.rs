//! bzImage, the compressed kernel that distributions ship. It is entered by the 64-bit boot protocol (the kernel's
//! Documentation/arch/x86/boot.rst) and decompresses itself.
//!
//! The setup header is checked here first, so that an error names what is wrong; then `linux-loader` copies the
//! image. What must not be done here: other formats.

use std::io::Cursor;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{KernelLoader, bzimage::BzImage};
use vm_memory::{ByteValued, GuestAddress};

use super::{BootError, CMDLINE_BYTES_MAX, EntryPoint, KERNEL_START, Plan, has_bytes};
use crate::memory::GuestRam;

/// Offset of the setup header, and of the byte with its length.
const HEADER: usize = 0x1f1;
const HEADER_JUMP: usize = 0x201;
/// The length counts from here.
const HEADER_END_BASE: usize = 0x202;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// 2.12, of 2012: the first version whose header tells whether there is a 64-bit entry.
const PROTOCOL_MIN: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const SECTOR_BYTES: u64 = 512;
/// The meaning of 0.
const SETUP_SECTORS_DEFAULT: u8 = 4;
const PARAGRAPH_BYTES: u64 = 16;
/// Offset of the 64-bit entry point in the loaded part.
const ENTRY_64: u64 = 0x200;

/// Whether `image` has the magic number of a setup header.
pub(super) fn is(image: &[u8]) -> bool {
    image
        .get(HEADER_END_BASE..HEADER_END_BASE + 4)
        .is_some_and(|magic| magic == HEADER_MAGIC.to_le_bytes())
}

pub(super) fn load(ram: &GuestRam, image: &[u8], plan: &Plan) -> Result<(), BootError> {
    let at = GuestAddress(plan.header.pref_address);
    BzImage::load(ram, Some(at), &mut Cursor::new(image), None).map_err(BootError::Loader)?;
    Ok(())
}

/// Checks the header and plans to load the kernel at its preferred address.
pub(super) fn plan(image: &[u8], ram_end: u64) -> Result<Plan, BootError> {
    let header = header(image)?;
    let version = header.version;
    if version < PROTOCOL_MIN {
        return Err(BootError::OldProtocol {
            major: version >> 8,
            minor: version & 0xff,
        });
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 || header.loadflags & LOADED_HIGH == 0 {
        return Err(BootError::No64BitEntry);
    }
    let sectors = match header.setup_sects {
        0 => SETUP_SECTORS_DEFAULT,
        sectors => sectors,
    };
    let setup_bytes = (u64::from(sectors) + 1) * SECTOR_BYTES;
    let kernel_bytes = u64::from(header.syssize) * PARAGRAPH_BYTES;
    has_bytes(image, "the compressed kernel", setup_bytes, kernel_bytes)?;
    // In Debian's images a signature follows. It is loaded, too, and then overwritten.
    let loaded_bytes = image.len() as u64 - setup_bytes;
    let start = header.pref_address;
    let needed_bytes = u64::from(header.init_size).max(loaded_bytes);
    let end = start.saturating_add(needed_bytes);
    if start < KERNEL_START {
        return Err(BootError::TooLow {
            what: "the bzImage".into(),
            start,
        });
    }
    if end > ram_end {
        return Err(BootError::DoesNotFit {
            what: "the bzImage".into(),
            start,
            end,
            ram_end,
        });
    }
    if loaded_bytes <= ENTRY_64 {
        return Err(BootError::EntryOutside(start + ENTRY_64));
    }
    Ok(Plan {
        entry: EntryPoint::Linux64(start + ENTRY_64),
        kernel_end: end,
        cmdline_bytes_max: (header.cmdline_size as usize).min(CMDLINE_BYTES_MAX - 1),
        initrd_end_max: u64::from(header.initrd_addr_max) + 1,
        header,
        initrd: None,
    })
}

/// The setup header. Fields that an older kernel lacks are zero.
fn header(image: &[u8]) -> Result<setup_header, BootError> {
    has_bytes(image, "the setup header", 0, HEADER_END_BASE as u64 + 4)?;
    let end = HEADER_END_BASE + usize::from(image[HEADER_JUMP]);
    has_bytes(image, "the setup header", 0, end as u64)?;
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    let known = bytes.len().min(end - HEADER);
    bytes[..known].copy_from_slice(&image[HEADER..HEADER + known]);
    Ok(header)
}
