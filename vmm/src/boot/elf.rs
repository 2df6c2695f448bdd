//! ELF64 images (the built-in guest, `vmlinux`), loaded by their physical addresses.
//!
//! `linux-loader` copies the segments; it is told nothing before the headers have been checked here, so
//! that an error can name what is wrong. What must not be done here: other formats.

use std::io::Cursor;

use linux_loader::loader::{KernelLoader, elf::Elf};
use vm_memory::{Bytes, GuestAddress};

use super::params::plain_header;
use super::{
    BootError, BootProtocol, CMDLINE_BYTES_MAX, EntryPoint, KERNEL_START, Plan, has_bytes, pvh,
};
use crate::memory::{GuestRam, low_ram_end};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const PAGE_BYTES: u64 = 4096;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
/// What Linux says of itself in a bzImage: 2 GiB.
const INITRD_END_MAX: u64 = 0x8000_0000;
const WANTED: &str = "64-bit x86";

struct Segment {
    offset: u64,
    file_bytes: u64,
    start: u64,
    end: u64,
}

/// Whether `image` says that it is an ELF file.
pub(super) fn is(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// Copies the segments. Where they are longer than their bytes in the image, the rest is zeroed,
/// whatever is there (from an earlier run of the guest).
pub(super) fn load(ram: &GuestRam, image: &[u8]) -> Result<(), BootError> {
    for segment in segments(image, low_ram_end(ram))? {
        clear(ram, segment.start + segment.file_bytes, segment.end)?;
    }
    Elf::load(ram, None, &mut Cursor::new(image), None).map_err(BootError::Loader)?;
    Ok(())
}

/// Zeros memory. Pages that are already zero stay untouched, so that the host does not have to
/// provide fresh ones.
fn clear(ram: &GuestRam, start: u64, end: u64) -> Result<(), BootError> {
    let mut chunk = [0; PAGE_BYTES as usize];
    let mut at = start;
    while at < end {
        let next = ((at / PAGE_BYTES + 1) * PAGE_BYTES).min(end);
        let bytes = &mut chunk[..(next - at) as usize];
        let done = ram.read_slice(bytes, GuestAddress(at)).and_then(|()| {
            if bytes.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            bytes.fill(0);
            ram.write_slice(bytes, GuestAddress(at))
        });
        done.map_err(|source| BootError::Write {
            what: "the kernel's zeroed memory",
            source,
        })?;
        at = next;
    }
    Ok(())
}

/// Checks the headers. An ELF image has no setup header: it gets a plain one, and may have an initramfs
/// wherever Linux takes one.
pub(super) fn plan(image: &[u8], ram_end: u64, protocol: BootProtocol) -> Result<Plan, BootError> {
    let segments = segments(image, ram_end)?;
    let kernel_end = segments.iter().map(|segment| segment.end).max();
    Ok(Plan {
        entry: entry(image, &segments, protocol)?,
        kernel_end: kernel_end.unwrap_or(KERNEL_START),
        cmdline_bytes_max: CMDLINE_BYTES_MAX - 1,
        initrd_end_max: INITRD_END_MAX,
        header: plain_header(),
        initrd: None,
    })
}

/// The 64-bit entry point, or that of PVH's note: if it is asked for, or the other one is in no segment.
fn entry(
    image: &[u8],
    segments: &[Segment],
    protocol: BootProtocol,
) -> Result<EntryPoint, BootError> {
    let is_loaded = |entry: u64| {
        let mut segments = segments.iter();
        segments.any(|segment| (segment.start..segment.end).contains(&entry))
    };
    let entry = u64_at(image, 24);
    let pvh_entry = match protocol {
        BootProtocol::Auto if is_loaded(entry) => None,
        BootProtocol::Linux => None,
        BootProtocol::Auto => pvh_entry(image),
        BootProtocol::Pvh => Some(pvh_entry(image).ok_or(BootError::NoPvh(
            "it has no note that says where its 32-bit entry is (XEN_ELFNOTE_PHYS32_ENTRY)",
        ))?),
    };
    let place = pvh_entry.map_or(entry, u64::from);
    if !is_loaded(place) {
        return Err(BootError::EntryOutside(place));
    }
    Ok(pvh_entry.map_or(EntryPoint::Linux64(entry), EntryPoint::Pvh))
}

/// PVH's entry point, as a note in one of the image's note segments tells it.
fn pvh_entry(image: &[u8]) -> Option<u32> {
    program_headers(image)
        .filter(|at| u32_at(image, *at) == PT_NOTE)
        .find_map(|at| {
            let start = usize::try_from(u64_at(image, at + 8)).ok()?;
            let bytes = usize::try_from(u64_at(image, at + 32)).ok()?;
            pvh::entry_in_notes(image.get(start..start.checked_add(bytes)?)?)
        })
}

/// Checks the headers and returns the loadable segments.
fn segments(image: &[u8], ram_end: u64) -> Result<Vec<Segment>, BootError> {
    has_bytes(image, "the ELF header", 0, HEADER_BYTES as u64)?;
    let machine = u16_at(image, 18);
    if image[4] != CLASS_64 || image[5] != LITTLE_ENDIAN || machine != MACHINE_X86_64 {
        return Err(BootError::WrongMachine {
            found: format!(
                "machine {machine}, class {}, byte order {}",
                image[4], image[5]
            ),
            wanted: WANTED,
        });
    }
    let table = u64_at(image, 32);
    let count = usize::from(u16_at(image, 56));
    has_bytes(
        image,
        "the program header table",
        table,
        count as u64 * PROGRAM_HEADER_BYTES,
    )?;
    if program_headers(image).any(|at| u32_at(image, at) == PT_INTERP) {
        return Err(BootError::Program);
    }
    let mut segments = Vec::new();
    for (number, at) in program_headers(image).enumerate() {
        if u32_at(image, at) == PT_LOAD {
            segments.push(segment(image, at, number, ram_end)?);
        }
    }
    if segments.is_empty() {
        return Err(BootError::Empty);
    }
    Ok(segments)
}

/// Where the program headers are. Their table has been checked to be in the image.
fn program_headers(image: &[u8]) -> impl Iterator<Item = usize> {
    let table = u64_at(image, 32) as usize;
    let count = usize::from(u16_at(image, 56));
    (0..count).map(move |number| table + number * PROGRAM_HEADER_BYTES as usize)
}

fn segment(image: &[u8], at: usize, number: usize, ram_end: u64) -> Result<Segment, BootError> {
    let start = u64_at(image, at + 24);
    let memory_bytes = u64_at(image, at + 40).max(u64_at(image, at + 32));
    let end = start.saturating_add(memory_bytes);
    let segment = Segment {
        offset: u64_at(image, at + 8),
        file_bytes: u64_at(image, at + 32),
        start,
        end,
    };
    has_bytes(
        image,
        &format!("segment {number}"),
        segment.offset,
        segment.file_bytes,
    )?;
    if memory_bytes > 0 && start < KERNEL_START {
        return Err(BootError::TooLow {
            what: format!("segment {number}"),
            start,
        });
    }
    if memory_bytes > 0 && end > ram_end {
        return Err(BootError::DoesNotFit {
            what: format!("segment {number}"),
            start,
            end,
            ram_end,
        });
    }
    Ok(segment)
}

// The callers have checked that the image is long enough.
fn u16_at(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from(u16_at(image, at)) | u32::from(u16_at(image, at + 2)) << 16
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    u64::from(u32_at(image, at)) | u64::from(u32_at(image, at + 4)) << 32
}
