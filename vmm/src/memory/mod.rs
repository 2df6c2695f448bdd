//! Guest RAM (step ①): allocating it, handing it to KVM, and copying pages out of it and into it.
//!
//! Devices write through `vm-memory`, whose bitmap records their writes. [`GuestPages`] reads and
//! writes whole pages for replication and records nothing. What must not be done here: interpret
//! the bytes, or decide which pages are dirty.

mod keeper;
mod layout;
mod pages;
mod written;

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use understudy_replication::MemoryLayout;
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap,
};

use crate::kvm::{self, KvmError};

pub(crate) use keeper::Keeper;
pub(crate) use layout::available_mib;
pub use layout::{MIB_MAX, MIB_MIN, MMIO_HOLE_START, ranges};
pub use pages::GuestPages;
pub use written::Written;

/// Guest RAM as devices see it: cheap to clone. A bitmap records every write through it.
pub type GuestRam = GuestMemoryMmap<Written>;

/// What guest RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Anonymous private memory.
    #[default]
    Anonymous,
    /// A memory file, which can be shared with other processes.
    Memfd,
}

/// Why guest RAM cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is out of range.
    #[error("guest memory of {mib} MiB is outside what is supported: {min_mib} to {max_mib} MiB")]
    Size {
        /// The requested size.
        mib: u64,
        /// The minimum.
        min_mib: u64,
        /// The maximum.
        max_mib: u64,
    },
    /// The host has less free memory than that.
    #[error(
        "the guest needs {mib} MiB of memory but this host has only {available_mib} MiB available: \
         give the guest less, or free memory"
    )]
    HostTooSmall {
        /// The requested size.
        mib: u64,
        /// What the host has available.
        available_mib: u64,
    },
    /// The host refuses to map the memory.
    #[error("cannot allocate {bytes:#x} bytes of guest memory at guest address {guest_address:#x}")]
    Map {
        /// The guest address.
        guest_address: u64,
        /// The length.
        bytes: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The regions do not fit together.
    #[error("guest memory regions do not fit together")]
    Regions(#[from] GuestRegionCollectionError),
    /// KVM refuses the memory.
    #[error("KVM does not accept the guest's memory")]
    Kvm(#[from] KvmError),
}

/// The RAM of one machine.
#[derive(Debug, Clone)]
pub struct Memory {
    ram: GuestRam,
    pages: Arc<GuestPages>,
}

impl Memory {
    /// Allocates `mib` MiB of zeroed RAM. The host provides a page only when it is first touched.
    ///
    /// # Errors
    /// If the host has too little memory available, or refuses.
    pub fn allocate(mib: u64, backing: Backing) -> Result<Self, MemoryError> {
        layout::check_size(mib)?;
        if let Some(available_mib) = layout::available_mib()
            && available_mib < mib
        {
            return Err(MemoryError::HostTooSmall { mib, available_mib });
        }
        let mut regions = Vec::new();
        for (guest_address, bytes) in ranges(mib) {
            let at = guest_address.0;
            let region = map(bytes, backing).map_err(|source| MemoryError::Map {
                guest_address: at,
                bytes,
                source,
            })?;
            regions.push(GuestRegionMmap::new(region, guest_address).ok_or_else(|| {
                MemoryError::Map {
                    guest_address: at,
                    bytes,
                    source: io::Error::other(
                        "the region wraps around the end of the address space",
                    ),
                }
            })?);
        }
        let ram = GuestRam::from_regions(regions)?;
        let pages = Arc::new(GuestPages::new(ram.clone()));
        Ok(Self { ram, pages })
    }

    /// RAM as devices see it.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// RAM page by page, as replication sees it.
    #[must_use]
    pub fn pages(&self) -> &Arc<GuestPages> {
        &self.pages
    }

    /// The regions of RAM. Region number and KVM slot number are the same.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        understudy_replication::ports::PageMemory::layout(&*self.pages)
    }

    /// How many pages each region has.
    #[must_use]
    pub fn slot_pages(&self) -> Vec<u64> {
        let regions = self.layout().regions().iter();
        regions.map(|region| region.pages).collect()
    }

    /// Registers all regions as memory slots of `vm`, with or without KVM logging writes. A second
    /// call changes only the logging.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn attach(&self, vm: &VmFd, log_dirty_pages: bool) -> Result<(), KvmError> {
        for slot in 0..self.ram.num_regions() {
            self.attach_slot(vm, slot, log_dirty_pages)?;
        }
        Ok(())
    }

    fn attach_slot(&self, vm: &VmFd, slot: usize, log: bool) -> Result<(), KvmError> {
        let Some(region) = self.ram.iter().nth(slot) else {
            return Ok(());
        };
        // SAFETY: the region is mapped for `region.len()` bytes from `as_ptr`. It stays mapped
        // while a vCPU can run, because each `VcpuHandle` holds a clone of `self.ram`. No Rust
        // reference to guest memory exists anywhere: `vm-memory` and `GuestPages` copy through raw
        // pointers.
        unsafe {
            kvm::set_memory_slot(
                vm,
                slot as u32,
                region.start_addr().0,
                region.len(),
                region.as_ptr() as u64,
                log,
            )
        }
    }
}

fn map(bytes: usize, backing: Backing) -> io::Result<vm_memory::MmapRegion<Written>> {
    let builder = MmapRegionBuilder::new_with_bitmap(bytes, Written::with_len(bytes))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match backing {
        Backing::Anonymous => {
            builder.with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        }
        Backing::Memfd => {
            let file = std::fs::File::from(nix::sys::memfd::memfd_create(
                "understudy-guest-ram",
                nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
            )?);
            file.set_len(bytes as u64)?;
            builder
                .with_file_offset(FileOffset::new(file, 0))
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        }
    };
    builder.build().map_err(io::Error::other)
}

/// The guest-physical address just past the highest byte of RAM below the hole.
#[must_use]
pub fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.iter()
        .filter(|region| region.start_addr() < GuestAddress(MMIO_HOLE_START))
        .map(|region| region.start_addr().0 + region.len())
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
