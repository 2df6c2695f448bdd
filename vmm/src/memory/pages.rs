//! Guest RAM page by page: how replication copies pages out (step ③) and in (step ⑦).
//!
//! What must not be done here: mark pages dirty. A page written here came from the other side, or
//! will be overwritten by it.

use std::io;

use nix::fcntl::{FallocateFlags, fallocate};
use understudy_replication::ids::Page;
use understudy_replication::ports::{MachineError, PageMemory};
use understudy_replication::{MemoryLayout, PAGE_BYTES, PageIndex, Region};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::GuestRam;

/// [`PageMemory`] for a machine's RAM.
#[derive(Debug)]
pub struct GuestPages {
    layout: MemoryLayout,
    /// Host address of each region of `layout`, as a number. It becomes a pointer only during a
    /// copy.
    hosts: Vec<usize>,
    /// Keeps the regions mapped.
    ram: GuestRam,
}

impl GuestPages {
    pub(super) fn new(ram: GuestRam) -> Self {
        let layout = MemoryLayout::new(
            ram.iter()
                .map(|region| Region {
                    first: PageIndex(region.start_addr().0 / PAGE_BYTES as u64),
                    pages: region.len() / PAGE_BYTES as u64,
                })
                .collect(),
        );
        let hosts = ram.iter().map(|region| region.as_ptr() as usize).collect();
        Self { layout, hosts, ram }
    }

    /// Gives `copy` the host address of each page, which is page-aligned and has [`PAGE_BYTES`] mapped
    /// bytes. A region is looked up once for all the pages in a row that lie in it.
    fn for_each<F>(
        &self,
        pages: impl IntoIterator<Item = (PageIndex, F)>,
        mut copy: impl FnMut(*mut u8, F),
    ) -> Result<(), MachineError> {
        let (mut first, mut count, mut host) = (0, 0, 0);
        for (page, frame) in pages {
            let mut offset = page.0.wrapping_sub(first);
            if offset >= count {
                let (number, at) = self
                    .layout
                    .locate(page)
                    .ok_or_else(|| MachineError::new(format!("{page} is not guest RAM")))?;
                let region = self.layout.regions()[number];
                (first, count, host) = (region.first.0, region.pages, self.hosts[number]);
                offset = at;
            }
            copy((host + offset as usize * PAGE_BYTES) as *mut u8, frame);
        }
        Ok(())
    }

    fn read<'a>(
        &self,
        pages: impl IntoIterator<Item = (PageIndex, &'a mut Page)>,
    ) -> Result<(), MachineError> {
        self.for_each(pages, |from, into| {
            // SAFETY: `from` is a whole page inside a region that `self.ram` keeps mapped readable;
            // `into` is a page of ours. The guest may write its page at the same time; it is a
            // processor outside the Rust program, and no reference to its page is created.
            unsafe { copy_page(from.cast_const(), into.as_mut_ptr()) };
        })
    }

    fn write<'a>(
        &self,
        pages: impl IntoIterator<Item = (PageIndex, &'a Page)>,
    ) -> Result<(), MachineError> {
        self.for_each(pages, |into, from| {
            // SAFETY: `into` is a whole page inside a region that `self.ram` keeps mapped writable;
            // `from` is a page of ours. No Rust reference to guest memory exists anywhere, so nothing
            // the compiler may rely on changes.
            unsafe { copy_page(from.as_ptr(), into) };
        })
    }
}

/// Copies one page with the processor's string instruction. This takes half the time of a loop if
/// the frame is in no cache, as is the case in a capture. Unlike a copy in Rust, it promises the
/// compiler nothing about bytes that a guest may be writing: the worst result is a mixture of old
/// and new bytes, which [`PageMemory`] allows.
///
/// # Safety
/// `from` must be readable and `into` writable for [`PAGE_BYTES`]; they must not overlap.
unsafe fn copy_page(from: *const u8, into: *mut u8) {
    // SAFETY: the instruction reads and writes exactly what the caller vouches for, in ascending
    // order: the direction flag is clear in Rust code. It touches neither the stack nor the flags.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") PAGE_BYTES => _,
            inout("rsi") from => _,
            inout("rdi") into => _,
            options(nostack, preserves_flags),
        );
    }
}

impl PageMemory for GuestPages {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        self.read([(page, into)])
    }

    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError> {
        self.write([(page, from)])
    }

    fn read_pages(&self, pages: &mut [(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        self.read(pages.iter_mut().map(|(page, into)| (*page, &mut **into)))
    }

    fn write_pages(&self, pages: &[(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        self.write(pages.iter().map(|(page, from)| (*page, &**from)))
    }

    fn clear(&self) -> Result<(), MachineError> {
        for region in self.ram.iter() {
            clear_region(region).map_err(|error| {
                MachineError::caused(
                    format!(
                        "cannot clear {:#x} bytes of guest memory at {:#x}",
                        region.len(),
                        region.start_addr().0
                    ),
                    error,
                )
            })?;
        }
        Ok(())
    }
}

/// Gives the region's pages back to the host; the next access finds zeros. The mapping stays, so
/// KVM's memory slots stay valid (the kernel drops the guest's translations on its own).
fn clear_region(
    region: &vm_memory::GuestRegionMmap<vm_memory::bitmap::AtomicBitmap>,
) -> io::Result<()> {
    if let Some(file) = region.file_offset() {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let at = |offset: u64| i64::try_from(offset).map_err(io::Error::other);
        fallocate(file.file(), hole, at(file.start())?, at(region.len())?)?;
        return Ok(());
    }
    let give_back = |advice| {
        // SAFETY: the range is exactly one anonymous, private mapping owned by `region`, borrowed
        // here. Either advice replaces its contents with zeros and unmaps nothing. No Rust reference
        // points into it.
        let result =
            unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // Locked memory takes only the first, and kernels before 5.18 know only the second.
    give_back(libc::MADV_DONTNEED_LOCKED).or_else(|_| give_back(libc::MADV_DONTNEED))
}
