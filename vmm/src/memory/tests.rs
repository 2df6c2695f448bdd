use proptest::prelude::*;
use understudy_replication::ids::Page;
use understudy_replication::ports::PageMemory;
use understudy_replication::{PAGE_BYTES, PageIndex, Region};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;

fn dirty_pages(memory: &Memory) -> Vec<u64> {
    let mut pages = Vec::new();
    for region in memory.ram().iter() {
        for page in 0..region.len() / PAGE_BYTES as u64 {
            if region.bitmap().dirty_at(page as usize * PAGE_BYTES) {
                pages.push(region.start_addr().0 / PAGE_BYTES as u64 + page);
            }
        }
    }
    pages
}

proptest! {
    #[test]
    fn pages_come_out_as_they_went_in(page in 0u64..512, seed: u8, memfd: bool) {
        let backing = if memfd { Backing::Memfd } else { Backing::Anonymous };
        let memory = Memory::allocate(2, backing).unwrap();
        let mut content: Page = [0; PAGE_BYTES];
        for (number, byte) in content.iter_mut().enumerate() {
            *byte = seed.wrapping_add((number / 7) as u8);
        }
        memory.pages().write_page(PageIndex(page), &content).unwrap();
        let mut back: Page = [1; PAGE_BYTES];
        memory.pages().read_page(PageIndex(page), &mut back).unwrap();
        prop_assert_eq!(back, content);
        let mut seen = vec![0; PAGE_BYTES];
        memory.ram().read_slice(&mut seen, GuestAddress(page * PAGE_BYTES as u64)).unwrap();
        prop_assert_eq!(&seen[..], &content[..]);
        prop_assert_eq!(dirty_pages(&memory), Vec::<u64>::new());
        memory.pages().clear().unwrap();
        memory.pages().read_page(PageIndex(page), &mut back).unwrap();
        prop_assert_eq!(back, [0; PAGE_BYTES]);
    }
}

#[test]
fn locked_memory_is_cleared_as_any_other() {
    let memory = Memory::allocate(2, Backing::Anonymous).unwrap();
    let region = memory.ram().iter().next().unwrap();
    let start = std::ptr::NonNull::new(region.as_ptr().cast()).unwrap();
    // SAFETY: the range is one mapping, which outlives the call.
    unsafe { nix::sys::mman::mlock(start, region.len() as usize) }.expect("2 MiB can be locked");
    let page = PageIndex(7);
    memory.pages().write_page(page, &[7; PAGE_BYTES]).unwrap();
    memory.pages().clear().unwrap();
    let mut back: Page = [1; PAGE_BYTES];
    memory.pages().read_page(page, &mut back).unwrap();
    assert_eq!(back, [0; PAGE_BYTES]);
}

#[test]
fn pages_of_both_sides_of_the_hole_are_copied_at_once() {
    let memory = Memory::allocate(3 * 1024 + 2, Backing::Anonymous).unwrap();
    let [low, high] = [0, 1].map(|region| memory.layout().regions()[region]);
    let last = |region: Region| PageIndex(region.first.0 + region.pages - 1);
    let places = [last(high), low.first, last(low), high.first, PageIndex(1)];
    let content = |page: PageIndex| Box::new([page.0 as u8 ^ (page.0 >> 8) as u8; PAGE_BYTES]);
    let written: Vec<_> = places.iter().map(|page| (*page, content(*page))).collect();
    memory.pages().write_pages(&written).unwrap();
    let mut read: Vec<_> = places
        .iter()
        .map(|page| (*page, Box::new([0; PAGE_BYTES])))
        .collect();
    memory.pages().read_pages(&mut read).unwrap();
    assert_eq!(read, written);
    // None of the pages before the one that is not there is taken for it.
    let beyond = PageIndex(last(low).0 + 1);
    read.push((beyond, Box::new([0; PAGE_BYTES])));
    let error = memory.pages().read_pages(&mut read).unwrap_err();
    assert_eq!(error.to_string(), format!("{beyond} is not guest RAM"));
}

#[test]
fn a_page_outside_ram_is_refused_by_name() {
    let memory = Memory::allocate(2, Backing::Anonymous).unwrap();
    let mut page: Page = [0; PAGE_BYTES];
    let error = memory
        .pages()
        .read_page(PageIndex(512), &mut page)
        .unwrap_err();
    assert_eq!(error.to_string(), "page 0x200 is not guest RAM");
    let error = memory
        .pages()
        .write_page(PageIndex(u64::MAX), &page)
        .unwrap_err();
    assert!(error.to_string().contains("is not guest RAM"));
}

#[test]
fn device_writes_are_noted_page_by_page() {
    let memory = Memory::allocate(2, Backing::Anonymous).unwrap();
    memory
        .ram()
        .write_slice(&[1, 2], GuestAddress(0x2fff))
        .unwrap();
    assert_eq!(dirty_pages(&memory), [2, 3]);
}

#[test]
fn more_than_the_host_has_is_refused_with_both_numbers() {
    let error = Memory::allocate(1 << 20, Backing::Anonymous).unwrap_err();
    assert!(
        matches!(error, MemoryError::HostTooSmall { mib, available_mib } if mib == 1 << 20 && available_mib > 0),
        "{error}"
    );
    for mib in [0, 1, (1 << 20) + 1, u64::MAX] {
        let error = Memory::allocate(mib, Backing::Anonymous).unwrap_err();
        assert!(matches!(error, MemoryError::Size { .. }), "{error}");
    }
}

/// As many as are copied one by one, or past the caches.
#[test]
fn pages_are_the_same_however_many_are_read_at_once() {
    let memory = Memory::allocate(16, Backing::Anonymous).unwrap();
    let content = |page: u64| -> Page {
        std::array::from_fn(|at| (page as usize * 31 + at / 3 * 7 + at) as u8)
    };
    let pages = (0..4096).filter(|page| page % 3 != 0);
    for page in pages.clone() {
        let content = content(page);
        memory
            .pages()
            .write_page(PageIndex(page), &content)
            .unwrap();
    }
    for count in [1, 63, 64, 65, 66, 1000, 2700] {
        let pages = pages.clone().rev().take(count);
        let mut read: Vec<_> = pages
            .map(|page| (PageIndex(page), Box::new([0xff; PAGE_BYTES])))
            .collect();
        memory.pages().read_pages(&mut read).unwrap();
        for (page, frame) in &read {
            assert!(**frame == content(page.0), "{page} of {count}");
        }
        read[count / 2].0 = PageIndex(4096);
        let error = memory.pages().read_pages(&mut read).unwrap_err();
        assert!(error.to_string().contains("is not guest RAM"), "{error}");
    }
}
