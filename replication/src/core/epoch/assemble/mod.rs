//! Assembling (steps ④ and ⑤): turns pages, disk writes, state and output into the messages of an
//! epoch, in the order of the protocol. [`staging`](super::staging) is the mirror image: it takes
//! apart what is put together here.
//!
//! The sink decides where the messages go: to a link, into a list, one day to a file. If it takes
//! them one by one and waits while it is full, memory is bounded (R5): there is never more than one
//! batch of pages, or of disk writes, beside what the caller holds.
//!
//! Must not be done here: I/O, and deciding what belongs to an epoch.

use std::convert::Infallible;

use bytes::Bytes;

use super::tally::EpochTally;
use crate::core::codec::{BATCH_BYTES_DEFAULT, Batch, BatchWriter, EncodedPage, Encoder};
use crate::core::disk::{DISK_BATCH_BYTES_DEFAULT, DiskBatchWriter, DiskWrite};
use crate::core::message::{EpochSummary, Message};
use crate::ids::{EpochId, Page, PageIndex};
use crate::output::SealedOutput;

/// Takes messages in order.
pub trait MessageSink {
    /// Why a message could not be taken.
    type Error;

    /// Takes the next message.
    ///
    /// # Errors
    /// If it cannot be taken. What was being assembled is then useless.
    fn put(&mut self, message: Message) -> Result<(), Self::Error>;
}

impl<S: MessageSink> MessageSink for &mut S {
    type Error = S::Error;

    fn put(&mut self, message: Message) -> Result<(), S::Error> {
        (**self).put(message)
    }
}

impl MessageSink for Vec<Message> {
    type Error = Infallible;

    fn put(&mut self, message: Message) -> Result<(), Infallible> {
        self.push(message);
        Ok(())
    }
}

/// Limits on the length of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchBytes {
    /// Of pages, in bytes.
    pub pages: usize,
    /// Of disk writes, in bytes.
    pub disk: usize,
}

impl Default for BatchBytes {
    fn default() -> Self {
        Self {
            pages: BATCH_BYTES_DEFAULT,
            disk: DISK_BATCH_BYTES_DEFAULT,
        }
    }
}

/// The disks' part of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EpochDisks<'a> {
    /// What the guest wrote, in order.
    pub writes: &'a [DiskWrite],
    /// As in [`EpochSummary::flush`].
    pub flush: bool,
    /// As in [`EpochSummary::written_through`].
    pub written_through: EpochId,
}

/// The size of an epoch or of a piece of the initial synchronisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Assembled {
    /// Bytes of pages, state and output.
    pub machine_bytes: u64,
    /// Bytes of disk writes.
    pub disk_bytes: u64,
}

/// What both assemblers share: they turn pages and disk writes into batches, and batches into
/// messages.
#[derive(Debug)]
struct Batches<S> {
    sink: S,
    pages: BatchWriter,
    disk_batch_bytes: usize,
    assembled: Assembled,
}

impl<S: MessageSink> Batches<S> {
    fn new(bytes: BatchBytes, sink: S) -> Self {
        Self {
            sink,
            pages: BatchWriter::new(bytes.pages),
            disk_batch_bytes: bytes.disk,
            assembled: Assembled::default(),
        }
    }

    fn page(
        &mut self,
        encoder: &mut Encoder,
        page: PageIndex,
        frame: Box<Page>,
        message: impl FnOnce(Batch) -> Message,
    ) -> Result<EncodedPage, S::Error> {
        let encoded = encoder.encode(page, frame, &mut self.pages);
        if self.pages.is_full() {
            self.end_pages(message)?;
        }
        Ok(encoded)
    }

    fn end_pages(&mut self, message: impl FnOnce(Batch) -> Message) -> Result<(), S::Error> {
        let Some(batch) = self.pages.finish() else {
            return Ok(());
        };
        self.assembled.machine_bytes += batch.body.len() as u64;
        self.sink.put(message(batch))
    }

    /// One batch at a time, so that the writes are not all in memory twice.
    fn disk(
        &mut self,
        writes: &[DiskWrite],
        mut message: impl FnMut(Bytes) -> Message,
    ) -> Result<(), S::Error> {
        let mut writer = DiskBatchWriter::new(self.disk_batch_bytes);
        let mut put = |batch: Bytes| {
            self.assembled.disk_bytes += batch.len() as u64;
            self.sink.put(message(batch))
        };
        for write in writes {
            let mut outcome = Ok(());
            writer.push(write, |batch| {
                if outcome.is_ok() {
                    outcome = put(batch.body);
                }
            });
            outcome?;
        }
        writer.finish().map_or(Ok(()), |batch| put(batch.body))
    }
}

/// Assembles one epoch: first its pages, one by one, then everything else at its end.
#[derive(Debug)]
pub struct EpochAssembler<S> {
    epoch: EpochId,
    batches: Batches<S>,
    tally: EpochTally,
}

impl<S: MessageSink> EpochAssembler<S> {
    /// An empty epoch.
    #[must_use]
    pub fn new(epoch: EpochId, bytes: BatchBytes, sink: S) -> Self {
        Self {
            epoch,
            batches: Batches::new(bytes, sink),
            tally: EpochTally::new(),
        }
    }

    /// Whether the sink has received a part of the epoch. Then only the whole session can be given
    /// up, not the epoch alone.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.batches.assembled != Assembled::default()
    }

    /// Adds a page whose content is in `frame`, as [`Encoder::encode`] does.
    ///
    /// # Errors
    /// If the sink does not take a batch.
    pub fn page(
        &mut self,
        encoder: &mut Encoder,
        page: PageIndex,
        frame: Box<Page>,
    ) -> Result<EncodedPage, S::Error> {
        let (epoch, tally) = (self.epoch, &mut self.tally);
        self.batches
            .page(encoder, page, frame, |batch| counted(epoch, batch, tally))
    }

    /// Hands the pages so far to the sink.
    ///
    /// # Errors
    /// If the sink does not take a batch.
    pub fn end_batch(&mut self) -> Result<(), S::Error> {
        let (epoch, tally) = (self.epoch, &mut self.tally);
        self.batches.end_pages(|batch| counted(epoch, batch, tally))
    }

    /// Ends the epoch with everything that comes after its pages.
    ///
    /// # Errors
    /// If the sink does not take a message.
    pub fn end(
        self,
        disks: EpochDisks<'_>,
        state: Bytes,
        output: SealedOutput,
    ) -> Result<Assembled, S::Error> {
        let Self {
            epoch,
            mut batches,
            mut tally,
        } = self;
        batches.end_pages(|batch| counted(epoch, batch, &mut tally))?;
        batches.disk(disks.writes, |batch| {
            tally.disk_batch(&batch);
            Message::EpochDisk { epoch, batch }
        })?;
        tally.state(&state);
        tally.output(&output);
        let frames = output.frames.iter().map(|frame| frame.bytes.len() as u64);
        batches.assembled.machine_bytes += state.len() as u64 + frames.sum::<u64>();
        let summary = EpochSummary {
            flush: disks.flush,
            written_through: disks.written_through,
            ..tally.summary()
        };
        let sink = &mut batches.sink;
        sink.put(Message::EpochState { epoch, state })?;
        sink.put(Message::EpochOutput { epoch, output })?;
        sink.put(Message::EpochEnd { epoch, summary })?;
        Ok(batches.assembled)
    }
}

/// Counts a batch of an epoch's pages in `tally` and makes it a message.
fn counted(epoch: EpochId, batch: Batch, tally: &mut EpochTally) -> Message {
    tally.batch(&batch.body, batch.pages);
    Message::EpochPages {
        epoch,
        batch: batch.body,
    }
}

/// Assembles pieces of the initial synchronisation, which are applied as they arrive.
#[derive(Debug)]
pub struct SyncAssembler<S>(Batches<S>);

impl<S: MessageSink> SyncAssembler<S> {
    /// An assembler without a page yet.
    #[must_use]
    pub fn new(bytes: BatchBytes, sink: S) -> Self {
        Self(Batches::new(bytes, sink))
    }

    /// Adds a page, as [`EpochAssembler::page`] does.
    ///
    /// # Errors
    /// If the sink does not take a batch.
    pub fn page(
        &mut self,
        encoder: &mut Encoder,
        page: PageIndex,
        frame: Box<Page>,
    ) -> Result<EncodedPage, S::Error> {
        self.0.page(encoder, page, frame, sync_pages)
    }

    /// Whether every page added so far has gone to the sink.
    #[must_use]
    pub fn is_between_batches(&self) -> bool {
        self.0.pages.is_empty()
    }

    /// Adds disk writes. They go to the sink at once.
    ///
    /// # Errors
    /// If the sink does not take a batch.
    pub fn disk(&mut self, writes: &[DiskWrite]) -> Result<(), S::Error> {
        self.0.disk(writes, Message::SyncDisk)
    }

    /// Gives the last pages to the sink.
    ///
    /// # Errors
    /// If the sink does not take them.
    pub fn end(mut self) -> Result<Assembled, S::Error> {
        self.0.end_pages(sync_pages)?;
        Ok(self.0.assembled)
    }
}

fn sync_pages(batch: Batch) -> Message {
    Message::SyncPages(batch.body)
}

#[cfg(test)]
mod tests;
