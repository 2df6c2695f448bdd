//! Which pages changed (step ②): the union of what vCPUs wrote (KVM's log) and what devices wrote
//! (`vm-memory`'s bitmap), harvested so that no bit is ever lost (R3).
//!
//! The order inside a harvest is what makes it safe, also while the guest runs: bits are first copied
//! to the caller, then cleared, and exactly those are cleared that were copied. A page written between
//! the two either was in the copy (its content is read later, so the write is in it) or stays set.
//! After a failed call everything read so far is kept in `pending` as well and reported again by the
//! next harvest: a page too often is waste, a page too rarely is corruption.
//!
//! What must not be done here: copy pages, or pause anybody.

use std::io;

use understudy_replication::{MemoryLayout, PageSet};
use vm_memory::GuestMemoryBackend;

use crate::kvm::DirtyLog;
use crate::memory::GuestRam;

/// Pages per clearing call. The kernel holds the guest's memory lock during a call, so a running guest
/// waits for it; 64 Ki pages are 256 MiB or 8 KiB of bitmap.
const CHUNK_PAGES: u64 = 1 << 16;

/// Why dirty pages could not be harvested.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// Nobody tracks.
    #[error("dirty pages are not being tracked")]
    NotTracking,
    /// The page set has other regions than the machine.
    #[error("the page set to harvest into ranges over another memory layout than this machine's")]
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
    #[error("cannot clear the dirty log of memory slot {slot} from page {first_page:#x} of it on")]
    Clear {
        /// The slot.
        slot: u32,
        /// First page of the chunk, counted from the slot's start.
        first_page: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The tracker of one machine. Region numbers of the layout are slot numbers of the log.
pub struct DirtyTracker {
    log: Box<dyn DirtyLog>,
    ram: GuestRam,
    layout: MemoryLayout,
    /// Bits that were read but whose harvest failed.
    pending: PageSet,
    /// Where logs are read to; as long as the longest slot.
    scratch: Vec<u64>,
    tracking: bool,
}

impl DirtyTracker {
    /// A tracker that does not track yet.
    #[must_use]
    pub fn new(log: Box<dyn DirtyLog>, ram: GuestRam, layout: MemoryLayout) -> Self {
        let longest = layout.regions().iter().map(|region| region.pages).max();
        Self {
            log,
            ram,
            pending: PageSet::empty(&layout),
            scratch: vec![0; longest.unwrap_or(0).div_ceil(64) as usize],
            layout,
            tracking: false,
        }
    }

    /// Whether dirty pages are tracked.
    #[must_use]
    pub fn is_tracking(&self) -> bool {
        self.tracking
    }

    /// From now on every page written is dirty and all others are clean. KVM must already log
    /// (`Memory::attach` with logging on), the guest may run.
    ///
    /// # Errors
    /// If KVM refuses; then nothing is tracked.
    pub fn start(&mut self) -> Result<(), DirtyError> {
        self.tracking = false;
        self.pending.clear();
        // Device bits first: whatever a device writes from here on may be reported, which is harmless.
        for region in self.ram.iter() {
            region.get_mmap().bitmap().reset();
        }
        for slot in 0..self.layout.regions().len() {
            self.clean(slot)?;
        }
        self.tracking = true;
        Ok(())
    }

    /// Forgets everything about dirty pages.
    pub fn stop(&mut self) {
        self.tracking = false;
        self.pending.clear();
    }

    /// Makes a slot that has just begun to log all clean.
    fn clean(&mut self, slot: usize) -> Result<(), DirtyError> {
        let pages = self.layout.regions()[slot].pages;
        let words = &mut self.scratch[..pages.div_ceil(64) as usize];
        let number = slot as u32;
        if self.log.is_initially_set() {
            // The kernel begins with all bits set and nothing write-protected: clearing protects, chunk by
            // chunk, so that a running guest never waits long.
            words.fill(u64::MAX);
        } else {
            // The kernel begins with no bit set and everything write-protected; but if it was logging
            // already, old bits are there.
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

    /// Adds the pages dirtied since the last harvest to `into` and forgets them.
    ///
    /// # Errors
    /// If a call fails. What was read until then is in `into`, and will be reported by the next harvest
    /// too; the rest is still tracked.
    pub fn harvest(&mut self, into: &mut PageSet) -> Result<(), DirtyError> {
        if !self.tracking {
            return Err(DirtyError::NotTracking);
        }
        if *into.layout() != self.layout {
            return Err(DirtyError::OtherLayout);
        }
        let result = (0..self.layout.regions().len()).try_for_each(|slot| {
            self.harvest_devices(slot, into);
            self.harvest_vcpus(slot, into)
        });
        match result {
            Ok(()) => {
                into.union(&self.pending);
                self.pending.clear();
                Ok(())
            }
            Err(error) => {
                // A superset of what this harvest took: `into` may have held other pages before.
                self.pending.union(into);
                into.union(&self.pending);
                Err(error)
            }
        }
    }

    fn harvest_devices(&mut self, slot: usize, into: &mut PageSet) {
        let Some(region) = self.ram.iter().nth(slot) else {
            return;
        };
        // Takes and resets each word at once: a device thread's bit is either in this harvest or left.
        let bits = region.get_mmap().bitmap().get_and_reset();
        for (word, bits) in into.region_words_mut(slot).iter_mut().zip(bits) {
            *word |= bits;
        }
    }

    fn harvest_vcpus(&mut self, slot: usize, into: &mut PageSet) -> Result<(), DirtyError> {
        let pages = self.layout.regions()[slot].pages;
        let words = &mut self.scratch[..pages.div_ceil(64) as usize];
        let number = slot as u32;
        self.log
            .get(number, words)
            .map_err(|source| DirtyError::Get {
                slot: number,
                source,
            })?;
        // First give the bits away, then clear them: see the top of the file.
        for (word, bits) in into.region_words_mut(slot).iter_mut().zip(words.iter()) {
            *word |= bits;
        }
        if self.log.is_manual() {
            clear_chunks(self.log.as_mut(), number, pages, words)?;
        }
        Ok(())
    }
}

/// Clears the bits of `words` in a slot of `pages` pages, leaving out chunks without any.
fn clear_chunks(
    log: &mut dyn DirtyLog,
    slot: u32,
    pages: u64,
    words: &[u64],
) -> Result<(), DirtyError> {
    for (number, chunk) in words.chunks((CHUNK_PAGES / 64) as usize).enumerate() {
        if chunk.iter().all(|word| *word == 0) {
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
