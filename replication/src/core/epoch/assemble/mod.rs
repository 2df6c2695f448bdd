//! Assembling (steps ④ and ⑤): pages, disk writes, state and output become the messages of an
//! epoch, in the order of the protocol. The mirror of [`staging`](super::staging): what is put
//! together here is taken apart there.
//!
//! Where the messages go is the sink's concern: to a link, into a list, one day to a file. A sink
//! that takes them one by one and waits while it is full bounds what is in memory (R5): never more
//! than a batch of pages, or one of disk writes, beside what the caller holds.
//!
//! Must not be done here: I/O, and deciding what belongs to an epoch.

use std::convert::Infallible;

use bytes::Bytes;

use super::tally::EpochTally;
use crate::core::codec::{BATCH_BYTES_DEFAULT, BatchWriter, Encoder};
use crate::core::disk::{DISK_BATCH_BYTES_DEFAULT, DiskBatchWriter, DiskWrite};
use crate::core::message::{EpochSummary, Message};
use crate::ids::{EpochId, Page, PageIndex};
use crate::output::SealedOutput;

/// Takes messages, in order.
pub trait MessageSink {
    /// Why a message could not be taken.
    type Error;

    /// Takes the next message.
    ///
    /// # Errors
    /// If it cannot be taken. What was being assembled is then of no use.
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

/// How long batches become.
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

/// What an epoch, or a piece of the initial synchronisation, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Assembled {
    /// Bytes of pages, state and output.
    pub machine_bytes: u64,
    /// Bytes of disk writes.
    pub disk_bytes: u64,
}

/// Assembles one epoch: first its pages, one by one, then all the rest at its end.
#[derive(Debug)]
pub struct EpochAssembler<S> {
    sink: S,
    epoch: EpochId,
    pages: BatchWriter,
    disk_batch_bytes: usize,
    tally: EpochTally,
    assembled: Assembled,
}

impl<S: MessageSink> EpochAssembler<S> {
    /// An empty epoch.
    #[must_use]
    pub fn new(epoch: EpochId, batches: BatchBytes, sink: S) -> Self {
        Self {
            sink,
            epoch,
            pages: BatchWriter::new(batches.pages),
            disk_batch_bytes: batches.disk,
            tally: EpochTally::new(),
            assembled: Assembled::default(),
        }
    }

    /// Whether the sink has got something of the epoch: then the epoch cannot be given up any more,
    /// only the session.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.assembled != Assembled::default()
    }

    /// Adds a page whose content is in `frame`. Gives back a frame to be used for another page, as
    /// [`Encoder::encode`] does.
    ///
    /// # Errors
    /// If the sink does not take a batch.
    pub fn page(
        &mut self,
        encoder: &mut Encoder,
        page: PageIndex,
        frame: Box<Page>,
    ) -> Result<Option<Box<Page>>, S::Error> {
        let spare = encoder.encode(page, frame, &mut self.pages);
        if self.pages.is_full() {
            self.end_batch()?;
        }
        Ok(spare)
    }

    fn end_batch(&mut self) -> Result<(), S::Error> {
        let Some(batch) = self.pages.finish() else {
            return Ok(());
        };
        self.tally.batch(&batch.body, batch.pages);
        self.assembled.machine_bytes += batch.body.len() as u64;
        self.sink.put(Message::EpochPages {
            epoch: self.epoch,
            batch: batch.body,
        })
    }

    /// Ends the epoch with everything that comes after its pages.
    ///
    /// # Errors
    /// If the sink does not take a message.
    pub fn end(
        mut self,
        disks: EpochDisks<'_>,
        state: Bytes,
        output: SealedOutput,
    ) -> Result<Assembled, S::Error> {
        self.end_batch()?;
        let epoch = self.epoch;
        in_batches(disks.writes, self.disk_batch_bytes, |batch| {
            self.tally.disk_batch(&batch);
            self.assembled.disk_bytes += batch.len() as u64;
            self.sink.put(Message::EpochDisk { epoch, batch })
        })?;
        self.tally.state(&state);
        self.tally.output(&output);
        let frames = output.frames.iter().map(|frame| frame.bytes.len() as u64);
        self.assembled.machine_bytes += state.len() as u64 + frames.sum::<u64>();
        let summary = EpochSummary {
            flush: disks.flush,
            written_through: disks.written_through,
            ..self.tally.summary()
        };
        self.sink.put(Message::EpochState { epoch, state })?;
        self.sink.put(Message::EpochOutput { epoch, output })?;
        self.sink.put(Message::EpochEnd { epoch, summary })?;
        Ok(self.assembled)
    }
}

/// Assembles pieces of the initial synchronisation, which are applied as they come.
#[derive(Debug)]
pub struct SyncAssembler<S> {
    sink: S,
    pages: BatchWriter,
    disk_batch_bytes: usize,
    assembled: Assembled,
}

impl<S: MessageSink> SyncAssembler<S> {
    /// Nothing yet.
    #[must_use]
    pub fn new(batches: BatchBytes, sink: S) -> Self {
        Self {
            sink,
            pages: BatchWriter::new(batches.pages),
            disk_batch_bytes: batches.disk,
            assembled: Assembled::default(),
        }
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
    ) -> Result<Option<Box<Page>>, S::Error> {
        let spare = encoder.encode(page, frame, &mut self.pages);
        if self.pages.is_full() {
            self.end_batch()?;
        }
        Ok(spare)
    }

    /// Whether every page added so far has gone to the sink.
    #[must_use]
    pub fn is_between_batches(&self) -> bool {
        self.pages.is_empty()
    }

    /// Adds disk writes; they go to the sink at once.
    ///
    /// # Errors
    /// If the sink does not take a batch.
    pub fn disk(&mut self, writes: &[DiskWrite]) -> Result<(), S::Error> {
        in_batches(writes, self.disk_batch_bytes, |batch| {
            self.assembled.disk_bytes += batch.len() as u64;
            self.sink.put(Message::SyncDisk(batch))
        })
    }

    /// Gives the last pages to the sink.
    ///
    /// # Errors
    /// If the sink does not take them.
    pub fn end(mut self) -> Result<Assembled, S::Error> {
        self.end_batch()?;
        Ok(self.assembled)
    }

    fn end_batch(&mut self) -> Result<(), S::Error> {
        let Some(batch) = self.pages.finish() else {
            return Ok(());
        };
        self.assembled.machine_bytes += batch.body.len() as u64;
        self.sink.put(Message::SyncPages(batch.body))
    }
}

/// Gives `each` the writes in batches, in order, one at a time so that they are not all in memory
/// twice.
fn in_batches<E>(
    writes: &[DiskWrite],
    bytes_max: usize,
    mut each: impl FnMut(Bytes) -> Result<(), E>,
) -> Result<(), E> {
    let mut writer = DiskBatchWriter::new(bytes_max);
    for write in writes {
        let mut outcome = Ok(());
        writer.push(write, |batch| {
            if outcome.is_ok() {
                outcome = each(batch.body);
            }
        });
        outcome?;
    }
    writer.finish().map_or(Ok(()), |batch| each(batch.body))
}

#[cfg(test)]
mod tests;
