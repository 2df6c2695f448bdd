//! The simulated guest: a few pages of real memory, a program whose every step depends on all it
//! did before and on inputs that a re-execution would not see again, and outputs with consecutive
//! numbers. A guest continued from a state that lacks something released would number or value its
//! next output differently: the client notices.

use std::sync::Mutex;

use bytes::Bytes;
use understudy_replication::ids::{PAGE_BYTES, Page, PageIndex};
use understudy_replication::page_set::{MemoryLayout, PageSet, Region};
use understudy_replication::ports::{MachineError, PageMemory};

use super::disk::{SECTORS, Write};

pub const PAGES: u64 = 32;

/// Guest memory with dirty tracking.
pub struct SimMemory {
    layout: MemoryLayout,
    inner: Mutex<Inner>,
}

struct Inner {
    pages: Vec<Page>,
    /// Checksums of the pages; `None` where one has been written since.
    checksums: Vec<Option<u32>>,
    dirty: PageSet,
}

impl SimMemory {
    pub fn new() -> Self {
        let layout = layout();
        let dirty = PageSet::empty(&layout);
        let pages = vec![[0; PAGE_BYTES]; PAGES as usize];
        let checksums = vec![None; PAGES as usize];
        Self {
            layout,
            inner: Mutex::new(Inner {
                pages,
                checksums,
                dirty,
            }),
        }
    }

    fn slot(&self, page: PageIndex) -> Result<usize, MachineError> {
        let (region, offset) = self
            .layout
            .locate(page)
            .ok_or_else(|| MachineError::new(format!("{page} is not guest memory")))?;
        let before: u64 = self.layout.regions()[..region]
            .iter()
            .map(|r| r.pages)
            .sum();
        Ok((before + offset) as usize)
    }

    /// A write by the guest: marks the page dirty.
    fn modify(&self, number: u64, change: impl FnOnce(&mut Page)) {
        let page = page_number(number);
        let slot = self.slot(page).unwrap();
        let mut inner = self.inner.lock().unwrap();
        change(&mut inner.pages[slot]);
        inner.checksums[slot] = None;
        inner.dirty.insert(page);
    }

    /// Takes the dirty pages.
    pub fn harvest(&self) -> PageSet {
        let empty = PageSet::empty(&self.layout);
        std::mem::replace(&mut self.inner.lock().unwrap().dirty, empty)
    }

    /// R3: an aborted capture gives its pages back.
    pub fn give_back(&self, pages: &PageSet) {
        self.inner.lock().unwrap().dirty.union(pages);
    }

    pub fn dirty_pages(&self) -> u64 {
        self.inner.lock().unwrap().dirty.len()
    }

    /// A copy of a page.
    pub fn frame(&self, page: PageIndex) -> Box<Page> {
        let mut frame = Box::new([0; PAGE_BYTES]);
        self.read_page(page, &mut frame).unwrap();
        frame
    }

    pub fn checksum(&self) -> u64 {
        let inner = &mut *self.inner.lock().unwrap();
        let pages = inner.pages.iter().zip(&mut inner.checksums);
        pages.fold(0, |all, (page, checksum)| {
            let page = checksum.get_or_insert_with(|| crc32fast::hash(page));
            mix(all ^ u64::from(*page)).wrapping_add(1)
        })
    }
}

impl PageMemory for SimMemory {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        *into = self.inner.lock().unwrap().pages[self.slot(page)?];
        Ok(())
    }

    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError> {
        let slot = self.slot(page)?;
        let mut inner = self.inner.lock().unwrap();
        inner.pages[slot] = *from;
        inner.checksums[slot] = None;
        Ok(())
    }

    fn clear(&self) -> Result<(), MachineError> {
        let mut inner = self.inner.lock().unwrap();
        inner.pages.fill([0; PAGE_BYTES]);
        inner.checksums.fill(None);
        Ok(())
    }
}

/// Two regions with a hole, as real machines have.
pub fn layout() -> MemoryLayout {
    let region = |first, pages| Region {
        first: PageIndex(first),
        pages,
    };
    MemoryLayout::new(vec![region(0, PAGES / 2), region(1 << 20, PAGES / 2)])
}

fn page_number(number: u64) -> PageIndex {
    if number < PAGES / 2 {
        PageIndex(number)
    } else {
        PageIndex((1 << 20) + number - PAGES / 2)
    }
}

/// One output of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    pub number: u64,
    pub value: u64,
    /// Of which start of the guest it is.
    pub start: u32,
}

/// What a step of the guest does to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub output: Option<Output>,
    pub write: Option<Write>,
    pub flush: bool,
}

/// The registers of the simulated machine; the rest of its state is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    state: u64,
    /// Of its last output.
    pub number: u64,
    /// It has powered itself off.
    pub ended: bool,
    /// How often it was started from nothing before.
    pub start: u32,
}

impl Guest {
    pub fn boot(start: u32) -> Self {
        Self {
            state: 1,
            number: 0,
            ended: false,
            start,
        }
    }

    /// It powers itself off.
    pub fn end(&mut self, memory: &SimMemory) {
        self.ended = true;
        memory.modify(0, |page| page[16] = 1);
    }

    /// One step, fed with `input` from outside.
    pub fn step(&mut self, input: u64, memory: &SimMemory) -> Step {
        self.state = mix(self.state ^ input);
        let speaks = self.state.is_multiple_of(3);
        self.number += u64::from(speaks);
        memory.modify(0, |page| {
            page[..8].copy_from_slice(&self.state.to_le_bytes());
            page[8..16].copy_from_slice(&self.number.to_le_bytes());
            page[17..21].copy_from_slice(&self.start.to_le_bytes());
        });
        let mut chance = self.state;
        for _ in 0..chance % 3 {
            chance = mix(chance);
            let target = 1 + (chance >> 8) % (PAGES - 1);
            memory.modify(target, |page| match chance % 8 {
                0 => page.fill(0),
                1 => page.fill(chance as u8),
                2 => {
                    let mut seed = chance;
                    for word in page.chunks_exact_mut(8) {
                        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17) ^ 1;
                        word.copy_from_slice(&seed.to_le_bytes());
                    }
                }
                _ => {
                    let at = (chance >> 40) as usize % 512 * 8;
                    page[at..at + 8].copy_from_slice(&chance.to_le_bytes());
                }
            });
        }
        let output = speaks.then_some(Output {
            number: self.number,
            value: self.state,
            start: self.start,
        });
        let write = (self.state % 4 == 1).then_some(Write {
            disk: (self.state >> 20 & 1) as u16,
            sector: (self.state >> 30) as usize % SECTORS,
            value: self.state,
        });
        Step {
            output,
            write,
            flush: self.state % 16 == 5,
        }
    }

    pub fn save(&self) -> Bytes {
        let mut bytes = self.state.to_le_bytes().to_vec();
        bytes.extend(self.number.to_le_bytes());
        bytes.push(u8::from(self.ended));
        bytes.extend(self.start.to_le_bytes());
        bytes.into()
    }

    /// The guest of a saved state, if memory is of the same moment.
    pub fn restore(state: &[u8], memory: &SimMemory) -> Result<Self, String> {
        let mut page = [0; PAGE_BYTES];
        memory.read_page(PageIndex(0), &mut page).unwrap();
        if state != &page[..21] {
            return Err("machine state and memory are of different moments".into());
        }
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        Ok(Self {
            state: word(0),
            number: word(8),
            ended: page[16] == 1,
            start: u32::from_le_bytes(page[17..21].try_into().unwrap()),
        })
    }
}

/// One instruction of the guest's program: every bit of its state depends on every bit before.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
