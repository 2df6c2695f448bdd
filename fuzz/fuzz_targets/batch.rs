//! A batch of pages, staged over memory of 64 pages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::core::epoch::staging::Staging;
use understudy_replication::ids::Page;
use understudy_replication::ports::{MachineError, PageMemory};
use understudy_replication::{EpochId, MemoryLayout, PageIndex, Region};

struct Memory(MemoryLayout);

impl PageMemory for Memory {
    fn layout(&self) -> &MemoryLayout {
        &self.0
    }
    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        into.fill(page.0 as u8);
        Ok(())
    }
    fn write_page(&self, page: PageIndex, _: &Page) -> Result<(), MachineError> {
        assert!(self.0.contains(page), "wrote outside of memory");
        Ok(())
    }
    fn clear(&self) -> Result<(), MachineError> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let layout = MemoryLayout::new(vec![Region {
        first: PageIndex(0),
        pages: 64,
    }]);
    let memory = Memory(layout.clone());
    let mut staging = Staging::new(&layout);
    let _ = staging.sync(bytes, &memory);
    staging.restart(EpochId(1));
    let _ = staging.pages(EpochId(1), bytes, &memory);
});
