//! Memory for the unit tests of the core, and time for its model.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::ids::{PAGE_BYTES, Page, PageIndex};
use crate::page_set::{MemoryLayout, Region};
use crate::ports::{MachineError, PageMemory};

/// The time in the model, always.
pub(crate) const NOW: Duration = Duration::from_secs(1 << 20);
/// Longer than any time-out.
pub(crate) const AGE: Duration = Duration::from_secs(1 << 16);

/// Of a time in the future, all that the model remembers is that it has not come.
pub(crate) fn forget_when(at: &mut Option<Duration>, now: Duration) {
    if let Some(at) = at {
        *at = if *at <= now { NOW } else { NOW + AGE };
    }
}

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
