//! Which pages changed (step ②): the union of what vCPUs wrote (KVM's log) and what devices wrote
//! (`vm-memory`'s bitmap), harvested so that no bit is ever lost (R3).
//!
//! The order inside a harvest makes it safe, even while the guest runs: bits are first copied to
//! the caller, then cleared, and only the copied bits are cleared. If a page is written between the
//! two, either its bit was copied (the content is read later and includes the write) or its bit
//! stays set. After a failed call, everything read so far is also kept in `pending`, and the next
//! harvest reports it again: reporting a page too often is waste, missing one is corruption.
//!
//! A page whose bit is not cleared stays open: it is not write-protected, costs the guest no fault, and is
//! reported again by every harvest. [`OpenPages`] decides which, from what a fault costs and how often a page
//! is written. Only vCPUs' bits are left; those of devices cost no faults.
//!
//! What must not be done here: copy pages, or pause the guest.

use std::io;
use std::time::Duration;

use understudy_replication::open_pages::{Looked, OpenPages};
use understudy_replication::page_set::{BLOCK_WORDS, is_zero};
use understudy_replication::{MemoryLayout, PageSet};
use vm_memory::GuestMemoryBackend;

use crate::kvm::DirtyLog;
use crate::memory::GuestRam;

/// Pages per clearing call. The kernel holds the guest's memory lock during a call, so a running
/// guest waits for it. 64 Ki pages are 256 MiB, or 8 KiB of bitmap.
const CHUNK_PAGES: u64 = 1 << 16;

/// Why dirty pages could not be harvested.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// Dirty pages are not being tracked.
    #[error("dirty pages are not being tracked")]
    NotTracking,
    /// The page set has different regions than the machine.
    #[error("the page set to harvest into has a different memory layout than this machine")]
    OtherLayout,
    /// KVM refused to read the log.
    #[error("cannot read the dirty log of memory slot {slot}")]
    Get {
        /// The slot.
        slot: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// KVM refused to clear the log.
    #[error("cannot clear the dirty log of memory slot {slot} from its page {first_page:#x} on")]
    Clear {
        /// The slot.
        slot: u32,
        /// The first page of the chunk, counted from the slot's start.
        first_page: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The tracker of one machine. The layout's region numbers are the log's slot numbers.
pub struct DirtyTracker {
    log: Box<dyn DirtyLog>,
    ram: GuestRam,
    layout: MemoryLayout,
    /// Bits that were read in a harvest that failed.
    pending: PageSet,
    /// Looking whether there are any takes as long as taking them.
    has_pending: bool,
    /// The buffer for reading logs; as long as the longest slot.
    scratch: Vec<u64>,
    tracking: bool,
    open: OpenPages,
}

impl DirtyTracker {
    /// Creates a tracker that does not track yet.
    #[must_use]
    pub fn new(log: Box<dyn DirtyLog>, ram: GuestRam, layout: MemoryLayout) -> Self {
        let longest = layout.regions().iter().map(|region| region.pages).max();
        Self {
            log,
            ram,
            pending: PageSet::empty(&layout),
            has_pending: false,
            scratch: vec![0; longest.unwrap_or(0).div_ceil(64) as usize],
            open: OpenPages::new(&layout),
            layout,
            tracking: false,
        }
    }

    /// From now on every page written is dirty and all others are clean. KVM must already be
    /// logging (`Memory::attach` with logging on). The guest may be running. The first write to a page
    /// costs it `fault`, as far as is known; with zero, no page is left open.
    ///
    /// # Errors
    /// If KVM refuses; then nothing is tracked.
    pub fn start(&mut self, fault: Duration) -> Result<(), DirtyError> {
        self.tracking = false;
        self.forget_pending();
        self.open.start(fault);
        // Device bits first: anything a device writes from here on may be reported, which is
        // harmless.
        for region in self.ram.iter() {
            region.get_mmap().bitmap().take(|_, _| {});
        }
        for slot in 0..self.layout.regions().len() {
            self.clean(slot)?;
        }
        self.tracking = true;
        Ok(())
    }

    /// Discards all dirty bits.
    pub fn stop(&mut self) {
        self.tracking = false;
        self.forget_pending();
    }

    fn forget_pending(&mut self) {
        self.pending.clear();
        self.has_pending = false;
    }

    /// Clears all bits of a slot that has just started logging.
    fn clean(&mut self, slot: usize) -> Result<(), DirtyError> {
        let pages = self.layout.regions()[slot].pages;
        let words = &mut self.scratch[..pages.div_ceil(64) as usize];
        let number = slot as u32;
        if self.log.is_initially_set() {
            // The kernel starts with all bits set and nothing write-protected. Clearing
            // write-protects chunk by chunk, so a running guest never waits long.
            words.fill(u64::MAX);
        } else {
            // The kernel starts with no bit set and everything write-protected. But if it was
            // logging already, there are old bits to clear.
            self.log
                .get(number, words)
                .map_err(|source| DirtyError::Get {
                    slot: number,
                    source,
                })?;
            if !self.log.is_manual() {
                return Ok(());
            }
        }
        clear_chunks(self.log.as_mut(), number, pages, words)
    }

    /// Takes what was found out about the pages of the last harvest.
    pub fn looked(&mut self, looked: Looked<'_>) {
        self.open.looked(looked);
    }

    /// The pages that are left open now.
    #[must_use]
    pub fn open(&self) -> &OpenPages {
        &self.open
    }

    /// Adds the pages dirtied since the last harvest to `into` and clears their bits, but for those that are
    /// left open. The guest must stand still until the pages are copied.
    ///
    /// # Errors
    /// If a call fails. What was read until then is in `into`, and the next harvest reports it
    /// again; the rest is still tracked.
    pub fn harvest(&mut self, into: &mut PageSet) -> Result<(), DirtyError> {
        self.harvest_all(into, true)
    }

    /// The same while the guest runs. No page is left open.
    ///
    /// # Errors
    /// As [`DirtyTracker::harvest`].
    pub fn harvest_and_protect(&mut self, into: &mut PageSet) -> Result<(), DirtyError> {
        self.harvest_all(into, false)
    }

    fn harvest_all(&mut self, into: &mut PageSet, leave_open: bool) -> Result<(), DirtyError> {
        if !self.tracking {
            return Err(DirtyError::NotTracking);
        }
        if *into.layout() != self.layout {
            return Err(DirtyError::OtherLayout);
        }
        let result = (0..self.layout.regions().len()).try_for_each(|slot| {
            self.harvest_devices(slot, into);
            self.harvest_vcpus(slot, into, leave_open)
        });
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.has_pending) {
                    into.union(&self.pending);
                    self.pending.clear();
                }
                Ok(())
            }
            Err(error) => {
                // A superset of what this harvest took: `into` may already have held other pages.
                self.pending.union(into);
                self.has_pending = true;
                into.union(&self.pending);
                Err(error)
            }
        }
    }

    fn harvest_devices(&mut self, slot: usize, into: &mut PageSet) {
        let Some(region) = self.ram.iter().nth(slot) else {
            return;
        };
        // A device thread's bit is either in this harvest or stays set.
        let words = into.region_words_mut(slot);
        region
            .get_mmap()
            .bitmap()
            .take(|number, bits| words[number] |= bits);
    }

    fn harvest_vcpus(
        &mut self,
        slot: usize,
        into: &mut PageSet,
        leave_open: bool,
    ) -> Result<(), DirtyError> {
        let pages = self.layout.regions()[slot].pages;
        let words = &mut self.scratch[..pages.div_ceil(64) as usize];
        let number = slot as u32;
        self.log
            .get(number, words)
            .map_err(|source| DirtyError::Get {
                slot: number,
                source,
            })?;
        // Copy the bits out first, then clear them: see the top of the file. Most blocks of a large guest have none.
        let into = into.region_words_mut(slot).chunks_mut(BLOCK_WORDS);
        for (block, (into, bits)) in into.zip(words.chunks_mut(BLOCK_WORDS)).enumerate() {
            if is_zero(bits) && self.open.has_none_in(slot, block) {
                continue;
            }
            for (word, bits) in into.iter_mut().zip(&*bits) {
                *word |= bits;
            }
            if leave_open && self.log.is_manual() {
                self.open.settle(slot, block, bits);
            }
        }
        if self.log.is_manual() {
            clear_chunks(self.log.as_mut(), number, pages, words)?;
        }
        Ok(())
    }
}

/// Clears the bits of `words` in a slot of `pages` pages, skipping chunks that have none.
fn clear_chunks(
    log: &mut dyn DirtyLog,
    slot: u32,
    pages: u64,
    words: &[u64],
) -> Result<(), DirtyError> {
    for (number, chunk) in words.chunks((CHUNK_PAGES / 64) as usize).enumerate() {
        if is_zero(chunk) {
            continue;
        }
        let first_page = number as u64 * CHUNK_PAGES;
        let chunk_pages = (pages - first_page).min(CHUNK_PAGES) as u32;
        log.clear(slot, first_page, chunk_pages, chunk)
            .map_err(|source| DirtyError::Clear {
                slot,
                first_page,
                source,
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
