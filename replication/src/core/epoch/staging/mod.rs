//! Staging (steps ⑥ and ⑦): the backup collects a whole epoch aside and verifies it before it may
//! be committed. Rule R2 is enforced here: nothing of an epoch touches committed memory until all
//! of it has arrived and is verified. Then all of it is committed.
//!
//! Must not be done here: deciding what to do about a bad epoch. The backup's core does that.

use bytes::Bytes;

use super::tally::EpochTally;
use crate::core::codec::{CodecError, PageSink, decode};
use crate::core::disk;
use crate::core::message::EpochSummary;
use crate::ids::{EpochId, PAGE_BYTES, Page, PageIndex};
use crate::output::SealedOutput;
use crate::page_set::{MemoryLayout, PageSet};
use crate::ports::{MachineError, PageMemory};

/// How many frames are kept for the next epoch (64 MiB). The rest of a larger epoch's frames is
/// freed.
const POOL_PAGES_MAX: usize = 16 << 10;

/// Limit on the sum of an epoch's disk batches, in bytes. A primary slows its guest long before
/// that.
pub const DISK_BYTES_MAX: usize = 256 << 20;

/// What a batch of disk writes counts in addition to its bytes, so that tiny ones are bounded too.
const BATCH_OVERHEAD_BYTES: usize = 128;

/// Why an epoch cannot be committed. Names the epoch if there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StagingError {
    /// A message of an epoch other than the one being staged.
    #[error("{what} of {found} while {expected} is being staged")]
    WrongEpoch {
        /// The message.
        what: &'static str,
        /// Its epoch.
        found: EpochId,
        /// The epoch being staged.
        expected: EpochId,
    },
    /// A message that is out of order.
    #[error("{epoch}: {what} out of order")]
    OutOfOrder {
        /// The epoch.
        epoch: EpochId,
        /// The message.
        what: &'static str,
    },
    /// A batch of pages is corrupt.
    #[error("{epoch}: batch {batch}: {error}")]
    Batch {
        /// The epoch.
        epoch: EpochId,
        /// Number of the batch in the epoch, from 0.
        batch: u32,
        /// What is wrong with it.
        #[source]
        error: CodecError,
    },
    /// A batch of disk writes is corrupt.
    #[error("{epoch}: disk batch {batch}: {why}")]
    Disk {
        /// The epoch.
        epoch: EpochId,
        /// Number of the batch in the epoch, from 0.
        batch: usize,
        /// What is wrong with it.
        why: String,
    },
    /// More bytes of disk writes than an epoch may have.
    #[error("{epoch}: more than {DISK_BYTES_MAX} bytes of disk writes")]
    DiskBytes {
        /// The epoch.
        epoch: EpochId,
    },
    /// A batch of the initial synchronisation is corrupt.
    #[error("initial synchronisation: {0}")]
    Sync(#[source] CodecError),
    /// Memory could not be written during the initial synchronisation.
    #[error("initial synchronisation: {0}")]
    SyncWrite(String),
    /// The summary of what arrived differs from the summary of what was sent.
    #[error("{epoch}: {found:?} arrived, {sent:?} was sent")]
    SummaryDiffers {
        /// The epoch.
        epoch: EpochId,
        /// The primary's summary.
        sent: EpochSummary,
        /// The backup's own.
        found: EpochSummary,
    },
}

/// A committed epoch: the state to continue from, apart from memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The epoch.
    pub epoch: EpochId,
    /// Machine state at its end.
    pub state: Bytes,
    /// Output sealed under it.
    pub output: SealedOutput,
    /// Pages it changed.
    pub pages: u64,
}

/// The frames of an epoch, and spare ones.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Frames {
    seen: PageSet,
    staged: Vec<(PageIndex, Box<Page>)>,
    pool: Vec<Box<Page>>,
    /// How many of the staged ones have been committed.
    written: usize,
}

impl PageSink for Frames {
    fn frame(&mut self, page: PageIndex) -> Result<&mut Page, CodecError> {
        if self.seen.contains(page) || !self.seen.insert(page) {
            return Err(CodecError::Duplicate { page });
        }
        let frame = self.pool.pop().unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
        self.staged.push((page, frame));
        let (_, frame) = self.staged.last_mut().expect("pushed just now");
        Ok(frame)
    }
}

impl Frames {
    fn clear(&mut self) {
        self.written = 0;
        for (page, frame) in self.staged.drain(..) {
            self.seen.remove(page);
            if self.pool.len() < POOL_PAGES_MAX {
                self.pool.push(frame);
            }
        }
    }

    /// Writes up to `pages_max` more. Returns whether all have been written.
    fn write(&mut self, pages_max: usize, memory: &dyn PageMemory) -> Result<bool, MachineError> {
        let rest = &self.staged[self.written..];
        let now = &rest[..rest.len().min(pages_max)];
        memory.write_pages(now)?;
        self.written += now.len();
        Ok(self.written == self.staged.len())
    }
}

/// One epoch being collected. It is bounded: a page occurs once, so there are at most as many as
/// the guest has; there is one state and one output, each bounded by its message; disk batches have
/// [`DISK_BYTES_MAX`].
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Staging {
    epoch: EpochId,
    frames: Frames,
    disk_batches: Vec<Bytes>,
    disk_bytes: usize,
    batches: u32,
    tally: EpochTally,
    state: Option<Bytes>,
    output: Option<SealedOutput>,
    whole: bool,
}

impl Staging {
    /// Staging for a machine with this layout. Waits for epoch 1.
    #[must_use]
    pub fn new(layout: &MemoryLayout) -> Self {
        Self {
            epoch: EpochId(1),
            frames: Frames {
                seen: PageSet::empty(layout),
                staged: Vec::new(),
                pool: Vec::new(),
                written: 0,
            },
            disk_batches: Vec::new(),
            disk_bytes: 0,
            batches: 0,
            tally: EpochTally::new(),
            state: None,
            output: None,
            whole: false,
        }
    }

    /// The epoch being staged.
    #[must_use]
    pub fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// Whether anything of the epoch has arrived.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.batches > 0
            || !self.disk_batches.is_empty()
            || self.state.is_some()
            || self.output.is_some()
    }

    /// Whether the epoch is whole and verified, so that it can be committed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Drops everything that has arrived and waits for `epoch`.
    pub fn restart(&mut self, epoch: EpochId) {
        self.epoch = epoch;
        self.frames.clear();
        self.disk_batches.clear();
        self.disk_bytes = 0;
        self.batches = 0;
        self.tally = EpochTally::new();
        self.state = None;
        self.output = None;
        self.whole = false;
    }

    /// Applies a batch of the initial synchronisation to memory at once.
    ///
    /// # Errors
    /// If it is corrupt, memory cannot be written, or epoch 1 has begun to arrive. Memory is then
    /// useless.
    pub fn sync(&mut self, batch: &[u8], memory: &dyn PageMemory) -> Result<(), StagingError> {
        if self.has_begun() || self.epoch != EpochId(1) {
            return Err(StagingError::OutOfOrder {
                epoch: self.epoch,
                what: "page of the initial synchronisation",
            });
        }
        let decoded = decode(batch, memory, &mut self.frames).map_err(StagingError::Sync);
        let written = decoded.and_then(|_| {
            self.frames
                .write(usize::MAX, memory)
                .map(drop)
                .map_err(|error| StagingError::SyncWrite(error.to_string()))
        });
        self.frames.clear();
        written
    }

    /// Stages a batch of pages. `base` is committed memory and is only read.
    ///
    /// # Errors
    /// If it belongs to another epoch, comes after disk writes or the state, or is corrupt.
    pub fn pages(
        &mut self,
        epoch: EpochId,
        batch: &[u8],
        base: &dyn PageMemory,
    ) -> Result<(), StagingError> {
        let in_order = self.state.is_none() && self.disk_batches.is_empty();
        self.expect("pages", epoch, in_order)?;
        let pages = decode(batch, base, &mut self.frames).map_err(|error| StagingError::Batch {
            epoch,
            batch: self.batches,
            error,
        })?;
        self.batches += 1;
        self.tally.batch(batch, pages);
        Ok(())
    }

    /// Stages a batch of writes to disks of these sizes, in bytes.
    ///
    /// # Errors
    /// If it belongs to another epoch, comes after the state, is corrupt, or exceeds
    /// [`DISK_BYTES_MAX`].
    pub fn disk(
        &mut self,
        epoch: EpochId,
        batch: Bytes,
        sizes: &[u64],
    ) -> Result<(), StagingError> {
        self.expect("disk writes", epoch, self.state.is_none())?;
        let bytes = batch.len() + BATCH_OVERHEAD_BYTES;
        if self.disk_bytes + bytes > DISK_BYTES_MAX {
            return Err(StagingError::DiskBytes { epoch });
        }
        disk::decode_batch(&batch, sizes, drop).map_err(|error| StagingError::Disk {
            epoch,
            batch: self.disk_batches.len(),
            why: error.to_string(),
        })?;
        self.tally.disk_batch(&batch);
        self.disk_bytes += bytes;
        self.disk_batches.push(batch);
        Ok(())
    }

    /// Takes the disk writes of the whole epoch, to be persisted.
    pub fn take_disk_batches(&mut self) -> Vec<Bytes> {
        self.disk_bytes = 0;
        std::mem::take(&mut self.disk_batches)
    }

    /// Stages the machine state.
    ///
    /// # Errors
    /// If it belongs to another epoch or is out of order.
    pub fn state(&mut self, epoch: EpochId, state: Bytes) -> Result<(), StagingError> {
        self.expect("state", epoch, self.state.is_none())?;
        self.tally.state(&state);
        self.state = Some(state);
        Ok(())
    }

    /// The state of the epoch, once it is whole; empty before.
    #[must_use]
    pub fn whole_state(&self) -> Bytes {
        let state = self.state.clone().filter(|_| self.whole);
        state.unwrap_or_default()
    }

    /// Stages the sealed output.
    ///
    /// # Errors
    /// If it belongs to another epoch or is out of order.
    pub fn output(&mut self, epoch: EpochId, output: SealedOutput) -> Result<(), StagingError> {
        let in_order = self.state.is_some() && self.output.is_none();
        self.expect("output", epoch, in_order)?;
        self.tally.output(&output);
        self.output = Some(output);
        Ok(())
    }

    /// Verifies that the epoch is whole. From then on it can always be committed.
    ///
    /// # Errors
    /// If it belongs to another epoch, something is missing, or the summary differs.
    pub fn end(&mut self, epoch: EpochId, sent: EpochSummary) -> Result<(), StagingError> {
        self.expect("end", epoch, self.output.is_some())?;
        // These two cannot be derived from what arrived.
        let found = EpochSummary {
            flush: sent.flush,
            written_through: sent.written_through,
            ..self.tally.summary()
        };
        if found != sent {
            return Err(StagingError::SummaryDiffers { epoch, sent, found });
        }
        self.whole = true;
        Ok(())
    }

    fn expect(
        &self,
        what: &'static str,
        found: EpochId,
        in_order: bool,
    ) -> Result<(), StagingError> {
        if found != self.epoch {
            return Err(StagingError::WrongEpoch {
                what,
                found,
                expected: self.epoch,
            });
        }
        if !in_order || self.whole {
            return Err(StagingError::OutOfOrder { epoch: found, what });
        }
        Ok(())
    }

    /// Commits up to `pages_max` pages of the whole epoch to memory. Once all are committed, it
    /// waits for the next epoch. `None` if the epoch is not whole or not all of it is committed
    /// yet. In between, nothing else may be done here, and memory must not be used.
    ///
    /// # Errors
    /// If memory cannot be written although every page was checked against its layout. Memory then
    /// belongs to no epoch: this standby must never be promoted.
    pub fn commit(
        &mut self,
        pages_max: usize,
        memory: &dyn PageMemory,
    ) -> Result<Option<Committed>, MachineError> {
        if !self.whole {
            return Ok(None);
        }
        let epoch = self.epoch;
        let all = self
            .frames
            .write(pages_max, memory)
            .map_err(|error| MachineError::caused(format!("commit {epoch}"), error))?;
        if !all {
            return Ok(None);
        }
        let (Some(state), Some(output)) = (self.state.take(), self.output.take()) else {
            return Ok(None);
        };
        let committed = Committed {
            epoch,
            state,
            output,
            pages: self.frames.staged.len() as u64,
        };
        self.restart(committed.epoch.next());
        Ok(Some(committed))
    }
}

#[cfg(test)]
mod tests;
