//! Guests to run: the built-in one, embedded as an ELF image.
//!
//! `build.rs` builds the image from `builtin/`, a crate of its own world (no std, no operating system,
//! own linker script). What must not be done here: anything but handing out images.
#![forbid(unsafe_code)]

/// The built-in guest: a static ELF64 executable for the Linux 64-bit boot protocol, to be loaded at
/// its physical addresses (1 MiB and above). Its command line is `understudy_workload::options`.
pub const BUILTIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/builtin-guest.elf"));

#[cfg(test)]
mod tests;
