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

/// The processor's caches keep fewer pages than this until somebody looks at them, as the first copy does at once.
const STREAMED_MIN: usize = 65;
/// The length of a line of the caches.
const LINE_BYTES: usize = 64;

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

    /// The same past the processor's caches, for more pages than they keep until somebody looks at them.
    fn stream(&self, pages: &mut [(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        let pages = pages.iter_mut().map(|(page, into)| (*page, &mut **into));
        let done = self.for_each(pages, |from, into| {
            // SAFETY: as in `read`. The processor has AVX, as the caller has found out.
            unsafe { stream_page(from.cast_const(), into.as_mut_ptr()) };
        });
        // SAFETY: has no preconditions. Such stores are not ordered before what follows otherwise, not even before
        // the locks by which other threads get the pages.
        unsafe { std::arch::x86_64::_mm_sfence() };
        done
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

/// Copies one page past the caches: its target is not read before it is overwritten, which is a third of what a copy
/// costs in which no cache helps. The same holds for bytes that a guest is writing.
///
/// # Safety
/// As [`copy_page`]; and the processor must have AVX.
unsafe fn stream_page(from: *const u8, into: *mut u8) {
    // Only whole lines of the cache are worth it; the first and the last may be shared with others.
    let head = into.align_offset(LINE_BYTES);
    let lines = (PAGE_BYTES - head) / LINE_BYTES;
    // SAFETY: the instructions read and write exactly what the caller vouches for: the first line's length and the
    // last's, wherever they begin, and between them `lines` lines from `head` on, which end within the page. They use
    // neither the stack nor other registers than those named.
    unsafe {
        std::arch::asm!(
            "vmovdqu ymm0, [{from}]",
            "vmovdqu ymm1, [{from} + 32]",
            "vmovdqu ymm2, [{from} + 4032]",
            "vmovdqu ymm3, [{from} + 4064]",
            "vmovdqu [{into}], ymm0",
            "vmovdqu [{into} + 32], ymm1",
            "vmovdqu [{into} + 4032], ymm2",
            "vmovdqu [{into} + 4064], ymm3",
            "add {from}, {head}",
            "add {into}, {head}",
            "2:",
            "vmovdqu ymm0, [{from}]",
            "vmovdqu ymm1, [{from} + 32]",
            "vmovntdq [{into}], ymm0",
            "vmovntdq [{into} + 32], ymm1",
            "add {from}, 64",
            "add {into}, 64",
            "dec {lines}",
            "jnz 2b",
            "vzeroupper",
            from = inout(reg) from => _,
            into = inout(reg) into => _,
            head = in(reg) head,
            lines = inout(reg) lines => _,
            out("ymm0") _,
            out("ymm1") _,
            out("ymm2") _,
            out("ymm3") _,
            // `vzeroupper`, which spares SSE code a wait on some processors, clears their upper halves.
            out("ymm4") _,
            out("ymm5") _,
            out("ymm6") _,
            out("ymm7") _,
            out("ymm8") _,
            out("ymm9") _,
            out("ymm10") _,
            out("ymm11") _,
            out("ymm12") _,
            out("ymm13") _,
            out("ymm14") _,
            out("ymm15") _,
            options(nostack),
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
        if pages.len() < STREAMED_MIN || !is_x86_feature_detected!("avx") {
            return self.read(pages.iter_mut().map(|(page, into)| (*page, &mut **into)));
        }
        self.stream(pages)
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
fn clear_region(region: &vm_memory::GuestRegionMmap<super::Written>) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_streamed_whole_wherever_its_frame_lies_and_nothing_beside_it() {
        if !is_x86_feature_detected!("avx") {
            println!("this processor has no AVX: pages are not streamed on it");
            return;
        }
        let from: Vec<u8> = (0..2 * PAGE_BYTES).map(|at| (at * 7 / 3) as u8).collect();
        let mut into = vec![0; 2 * PAGE_BYTES];
        for shift in 0..=LINE_BYTES {
            into.fill(0xaa);
            // SAFETY: both ranges lie in their vectors, as the shifts are no longer than a page; AVX was found.
            unsafe {
                stream_page(
                    from.as_ptr().add(shift),
                    into.as_mut_ptr().add(shift / 2 + 1),
                )
            };
            let (before, rest) = into.split_at(shift / 2 + 1);
            let (page, after) = rest.split_at(PAGE_BYTES);
            assert!(page == &from[shift..][..PAGE_BYTES], "shift {shift}");
            let mut beside = before.iter().chain(after);
            assert!(beside.all(|byte| *byte == 0xaa), "shift {shift}");
        }
    }
}
