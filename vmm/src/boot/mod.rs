//! Loading a kernel into guest memory and pointing a vCPU at it.
//!
//! Two formats: bzImage and ELF64, both entered by the Linux 64-bit boot protocol, ELF64 also by
//! PVH's. A format is a function from image bytes to a [`Plan`], which touches no memory, and one
//! that copies. Another format would be another file beside `elf.rs` and another arm in [`plan`]
//! and [`load`]. What must not be done here: keep anything. Booting is over when the vCPU runs.

mod acpi;
mod bios;
mod bzimage;
mod elf;
mod params;
mod pvh;
mod registers;
mod table;
mod wdat;

use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{GuestRam, MMIO_HOLE_START, low_ram_end};

pub use acpi::{Hardware, MmioDevice, PortDevice, PowerRegisters};
pub use params::{BOOT_PARAMS_ADDRESS, CMDLINE_ADDRESS, CMDLINE_BYTES_MAX, Cmdline};
pub use registers::{entry_sregs, initial_regs, initial_sregs};
pub use wdat::Watchdog;

use params::write_boot_params;
use registers::write_tables;

/// Kernels are loaded here or higher; everything the VMM itself puts into memory lies below.
pub const KERNEL_START: u64 = 0x10_0000;
/// How much of an unknown image is shown.
const BEGINNING_BYTES: usize = 8;
/// An initramfs begins at a multiple of this.
const INITRD_ALIGNMENT_BYTES: u64 = 4096;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image is not a kernel.
    #[error("the kernel image is neither a bzImage nor an ELF file: it {}", beginning(.0))]
    UnknownFormat(Vec<u8>),
    /// The image is an ELF file, but one that an operating system runs.
    #[error(
        "the kernel image is no kernel but a program that runs on one: it asks for a dynamic linker"
    )]
    Program,
    /// The image wants to be where the VMM puts tables of its own.
    #[error(
        "the kernel image is none for this machine: {what} is to be at guest memory {start:#x}, kernels begin at \
         {KERNEL_START:#x} or higher. Is it a program, or a kernel for something else?"
    )]
    TooLow {
        /// Which part of it.
        what: String,
        /// First byte.
        start: u64,
    },
    /// The bzImage is too old to describe its abilities.
    #[error("the bzImage speaks boot protocol {major}.{minor:02}, at least 2.12 is needed")]
    OldProtocol {
        /// Before the dot.
        major: u16,
        /// Behind it.
        minor: u16,
    },
    /// The bzImage is that of a 32-bit kernel, or of one that is loaded below 1 MiB.
    #[error("the bzImage has no 64-bit entry point: it is not a kernel for x86-64")]
    No64BitEntry,
    /// The image is an ELF file of the wrong kind.
    #[error("the kernel image is an ELF file for {found}, this machine boots {wanted}")]
    WrongMachine {
        /// What it is for.
        found: String,
        /// What it should be for.
        wanted: &'static str,
    },
    /// The image ends too early.
    #[error(
        "the kernel image is truncated: {what} ends at byte {end:#x}, the image has {bytes:#x}"
    )]
    Truncated {
        /// What is cut off.
        what: String,
        /// Where it should end.
        end: u64,
        /// How long the image is.
        bytes: u64,
    },
    /// A segment lies where there is no memory for it.
    #[error(
        "the kernel image does not fit: {what} needs guest memory {start:#x} to {end:#x}, \
         a kernel may use {KERNEL_START:#x} to {ram_end:#x}; {}", more_memory(*.end)
    )]
    DoesNotFit {
        /// Which part of it.
        what: String,
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
        /// Byte behind the last of low RAM.
        ram_end: u64,
    },
    /// The entry point is not in any segment.
    #[error("the kernel's entry point {0:#x} lies outside everything the image loads")]
    EntryOutside(u64),
    /// PVH was requested, but the image does not offer it.
    #[error("the kernel image cannot be booted by PVH: {0}; set the boot protocol to auto")]
    NoPvh(&'static str),
    /// Nothing to load.
    #[error("the kernel image loads nothing: it has no loadable segment")]
    Empty,
    /// The loader found something else wrong.
    #[error("the kernel image cannot be loaded")]
    Loader(#[source] linux_loader::loader::Error),
    /// The command line is too long.
    #[error("the kernel command line has {bytes} bytes, the limit is {limit}")]
    CmdlineTooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be for this kernel.
        limit: usize,
    },
    /// There is nothing in the initramfs.
    #[error("the initramfs is empty")]
    InitrdEmpty,
    /// There is no memory for the initramfs.
    #[error(
        "the initramfs of {bytes:#x} bytes does not fit: the kernel leaves it guest memory {start:#x} to \
         {end:#x}; {hint}"
    )]
    InitrdDoesNotFit {
        /// How long it is.
        bytes: u64,
        /// Where it could begin.
        start: u64,
        /// Where it must end.
        end: u64,
        /// What may help.
        hint: &'static str,
    },
    /// The command line has a byte that cannot be handed over.
    #[error(
        "the kernel command line has the byte {byte:#04x} at offset {offset}: only printable ASCII works"
    )]
    CmdlineByte {
        /// The byte.
        byte: u8,
        /// Where.
        offset: usize,
    },
    /// There are more devices than can be described.
    #[error("the ACPI tables would have {bytes:#x} bytes, there is room for {:#x}", acpi::TABLES_END - acpi::TABLES_START)]
    AcpiTooLong {
        /// How long they would be.
        bytes: usize,
    },
    /// Guest memory is too small for the tables of the boot protocol.
    #[error("cannot write {what} to guest memory")]
    Write {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// How an image begins, in words.
fn beginning(image: &[u8]) -> String {
    if image.is_empty() {
        return "is empty".into();
    }
    match std::str::from_utf8(image) {
        Ok(text) if !text.contains(|c: char| c.is_control() && c != '\n') => {
            format!("begins with the text {text:?}")
        }
        _ => {
            let bytes: Vec<String> = image.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("begins with the bytes {}", bytes.join(" "))
        }
    }
}

/// Whether more memory would help what would end at `end`.
fn more_memory(end: u64) -> &'static str {
    if end > MMIO_HOLE_START {
        "no guest has memory for that below 3 GiB"
    } else {
        "give the guest more memory"
    }
}

/// Where and how vCPU 0 starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// In 64-bit mode, by the Linux boot protocol.
    Linux64(u64),
    /// In 32-bit mode without paging, by PVH's.
    Pvh(u32),
}

/// By which protocol a kernel is entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// Linux' if the image can, else PVH's.
    #[default]
    Auto,
    /// The Linux 64-bit boot protocol.
    Linux,
    /// PVH: an ELF image with a note that says where its 32-bit entry is.
    Pvh,
}

impl std::str::FromStr for BootProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "linux" => Ok(Self::Linux),
            "pvh" => Ok(Self::Pvh),
            _ => Err(format!("{text:?} is none of auto, linux, pvh")),
        }
    }
}

/// What is booted: bytes of files.
#[derive(Debug, Clone)]
pub struct Payload {
    /// By which protocol.
    pub protocol: BootProtocol,
    /// A kernel image.
    pub kernel: Vec<u8>,
    /// An initramfs for it.
    pub initrd: Option<Vec<u8>>,
}

enum Format {
    Elf,
    BzImage,
}

impl Format {
    fn of(image: &[u8]) -> Result<Self, BootError> {
        if elf::is(image) {
            Ok(Self::Elf)
        } else if bzimage::is(image) {
            Ok(Self::BzImage)
        } else {
            let beginning = &image[..image.len().min(BEGINNING_BYTES)];
            Err(BootError::UnknownFormat(beginning.into()))
        }
    }
}

/// Where everything goes. Made from a [`Payload`] and the size of memory alone.
#[derive(Debug)]
pub struct Plan {
    entry: EntryPoint,
    /// Behind the last byte that the kernel uses before it manages memory itself.
    kernel_end: u64,
    /// Longest command line, without its NUL.
    cmdline_bytes_max: usize,
    /// Behind the last byte that an initramfs may have.
    initrd_end_max: u64,
    /// The kernel's own header, or a plain one; completed when it is written.
    header: setup_header,
    initrd: Option<Range<u64>>,
}

impl Plan {
    /// Where vCPU 0 starts.
    #[must_use]
    pub fn entry(&self) -> EntryPoint {
        self.entry
    }

    /// Where the initramfs lies, if there is one.
    #[must_use]
    pub fn initrd(&self) -> Option<&Range<u64>> {
        self.initrd.as_ref()
    }

    /// Checks that the kernel takes a command line as long as this.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_cmdline(&self, cmdline: &Cmdline) -> Result<(), BootError> {
        let (bytes, limit) = (cmdline.as_str().len(), self.cmdline_bytes_max);
        if bytes > limit {
            return Err(BootError::CmdlineTooLong { bytes, limit });
        }
        Ok(())
    }

    /// As high as possible, as boot loaders do, so that a kernel that moves itself does not hit it.
    fn place_initrd(&mut self, bytes: u64, ram_end: u64) -> Result<(), BootError> {
        if bytes == 0 {
            return Err(BootError::InitrdEmpty);
        }
        let start = self.kernel_end;
        let end = ram_end.min(self.initrd_end_max);
        let at = end
            .checked_sub(bytes)
            .map(|at| at / INITRD_ALIGNMENT_BYTES * INITRD_ALIGNMENT_BYTES)
            .filter(|at| *at >= start)
            .ok_or(BootError::InitrdDoesNotFit {
                bytes,
                start,
                end,
                hint: match end < ram_end {
                    true => "this kernel takes none higher up, so it must be smaller",
                    false => more_memory(start.saturating_add(bytes)),
                },
            })?;
        self.initrd = Some(at..at + bytes);
        Ok(())
    }
}

/// Checks what is to be booted by a guest whose low RAM ends at `ram_end`, and says where it goes.
///
/// # Errors
/// If the image is not one, is truncated, or does not fit this guest.
pub fn plan(payload: &Payload, ram_end: u64) -> Result<Plan, BootError> {
    let image = &payload.kernel;
    let mut plan = match Format::of(image)? {
        Format::Elf => elf::plan(image, ram_end, payload.protocol)?,
        Format::BzImage if payload.protocol == BootProtocol::Pvh => {
            return Err(BootError::NoPvh("it is a bzImage, whose vmlinux could be"));
        }
        Format::BzImage => bzimage::plan(image, ram_end)?,
    };
    if let Some(initrd) = &payload.initrd {
        plan.place_initrd(initrd.len() as u64, ram_end)?;
    }
    Ok(plan)
}

/// Puts kernel, initramfs, command line, ACPI and processor tables, and the reset vector into
/// memory; vCPU 0 then starts at the entry point with [`initial_regs`] and [`entry_sregs`].
///
/// # Errors
/// As [`plan`] and [`Plan::check_cmdline`].
pub fn load(
    ram: &GuestRam,
    payload: &Payload,
    cmdline: &Cmdline,
    hardware: &Hardware,
) -> Result<EntryPoint, BootError> {
    let plan = plan(payload, low_ram_end(ram))?;
    plan.check_cmdline(cmdline)?;
    match Format::of(&payload.kernel)? {
        Format::Elf => elf::load(ram, &payload.kernel)?,
        Format::BzImage => bzimage::load(ram, &payload.kernel, &plan)?,
    }
    if let (Some(initrd), Some(place)) = (&payload.initrd, plan.initrd()) {
        ram.write_slice(initrd, GuestAddress(place.start))
            .map_err(|source| BootError::Write {
                what: "the initramfs",
                source,
            })?;
    }
    acpi::write(ram, hardware)?;
    let (reset_port, reset_value) = hardware.reset;
    bios::write(ram, reset_port, reset_value)?;
    write_tables(ram)?;
    match plan.entry {
        EntryPoint::Linux64(_) => write_boot_params(ram, cmdline, &plan)?,
        EntryPoint::Pvh(_) => pvh::write_start_info(ram, cmdline, &plan)?,
    }
    Ok(plan.entry)
}

/// Checks that the image has `bytes` bytes from `offset` on.
fn has_bytes(image: &[u8], what: &str, offset: u64, bytes: u64) -> Result<(), BootError> {
    let end = offset.saturating_add(bytes);
    if end > image.len() as u64 {
        return Err(BootError::Truncated {
            what: what.to_owned(),
            end,
            bytes: image.len() as u64,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
