//! Putting a kernel into guest memory and a vCPU in front of it.
//!
//! One format today, ELF64 by the Linux 64-bit boot protocol. A format is one function from image bytes
//! to [`EntryPoint`]; another one (bzImage, PVH) becomes another file beside `elf.rs` and another arm in
//! [`load_kernel`]. What must not be done here: keep anything. Booting is over when the vCPU runs.

mod elf;
mod params;
mod registers;

use vm_memory::GuestMemoryError;

use crate::memory::GuestRam;

pub use params::{
    BOOT_PARAMS_ADDRESS, CMDLINE_ADDRESS, CMDLINE_BYTES_MAX, Cmdline, write_boot_params,
};
pub use registers::{initial_regs, initial_sregs, write_tables};

/// Kernels are loaded here or higher; everything the VMM itself puts into memory lies below.
pub const KERNEL_START: u64 = 0x10_0000;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image is no ELF file.
    #[error("the kernel image is not an ELF file: it begins with {0:02x?} instead of 7f 45 4c 46")]
    NotElf(Vec<u8>),
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
        "the kernel image does not fit: segment {segment} needs guest memory {start:#x} to {end:#x}, \
         a kernel may use {KERNEL_START:#x} to {ram_end:#x}; give the guest more memory"
    )]
    DoesNotFit {
        /// Number of the program header.
        segment: usize,
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
        /// Byte behind the last of low RAM.
        ram_end: u64,
    },
    /// The entry point is in no segment.
    #[error("the kernel's entry point {0:#x} lies outside everything the image loads")]
    EntryOutside(u64),
    /// Nothing to load.
    #[error("the kernel image loads nothing: it has no loadable segment")]
    Empty,
    /// The loader found something else wrong.
    #[error("the kernel image cannot be loaded")]
    Loader(#[source] linux_loader::loader::Error),
    /// The command line is too long.
    #[error("the kernel command line has {bytes} bytes, the limit is {}", CMDLINE_BYTES_MAX - 1)]
    CmdlineTooLong {
        /// How long it is.
        bytes: usize,
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

/// Where vCPU 0 starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint(pub u64);

/// Loads a kernel image.
///
/// # Errors
/// If the image is not one, is truncated, or does not fit this guest.
pub fn load_kernel(ram: &GuestRam, image: &[u8]) -> Result<EntryPoint, BootError> {
    elf::load(ram, image)
}

/// Checks a kernel image for a guest whose low RAM ends at `ram_end`, without loading it.
///
/// # Errors
/// As [`load_kernel`].
pub fn check_kernel(image: &[u8], ram_end: u64) -> Result<EntryPoint, BootError> {
    elf::check(image, ram_end)
}

#[cfg(test)]
mod tests;
