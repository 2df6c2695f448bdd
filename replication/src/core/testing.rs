//! Memory for the unit tests of the core.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ids::{PAGE_BYTES, Page, PageIndex};
use crate::page_set::{MemoryLayout, Region};
use crate::ports::{MachineError, PageMemory};

/// A few pages of guest memory, from page 100 on.
#[derive(Debug)]
pub(crate) struct TestMemory {
    layout: MemoryLayout,
    pages: Mutex<Vec<Page>>,
    /// Whether writing fails.
    pub(crate) broken: AtomicBool,
}

impl TestMemory {
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            layout: MemoryLayout::new(vec![Region {
                first: PageIndex(100),
                pages,
            }]),
            pages: Mutex::new(vec![[0; PAGE_BYTES]; pages as usize]),
            broken: AtomicBool::new(false),
        }
    }

    /// All pages' content.
    pub(crate) fn content(&self) -> Vec<Page> {
        self.pages.lock().unwrap().clone()
    }

    fn slot(&self, page: PageIndex) -> Result<usize, MachineError> {
        self.layout
            .locate(page)
            .map(|(_, offset)| offset as usize)
            .ok_or_else(|| MachineError::new(format!("{page} is not guest memory")))
    }
}

impl PageMemory for TestMemory {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        *into = self.pages.lock().unwrap()[self.slot(page)?];
        Ok(())
    }

    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(MachineError::new("memory is broken"));
        }
        self.pages.lock().unwrap()[self.slot(page)?] = *from;
        Ok(())
    }

    fn clear(&self) -> Result<(), MachineError> {
        self.pages.lock().unwrap().fill([0; PAGE_BYTES]);
        Ok(())
    }
}
