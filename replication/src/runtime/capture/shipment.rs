//! The messages of one epoch on their way to the link, in the order of the protocol: pages, disk
//! writes, state, output, end.

use understudy_transport::{Frame, LinkError};

use super::Target;
use crate::core::codec::{BATCH_BYTES_DEFAULT, BatchWriter};
use crate::core::disk::{DISK_BATCH_BYTES_DEFAULT, DiskBatch, DiskBatchWriter, DiskWrite};
use crate::core::epoch::tally::EpochTally;
use crate::core::message::{EpochSummary, Message};
use crate::disk::SealedDisks;
use crate::ids::EpochId;
use crate::ports::SealedOutput;

/// The messages of one epoch on their way to the link, and what has to be said at its end.
pub(super) struct Shipment<'a> {
    target: &'a Target,
    epoch: EpochId,
    pub(super) batch: BatchWriter,
    tally: EpochTally,
    pub(super) wire_bytes: u64,
    /// Of these, in disk writes.
    disk_bytes: u64,
}

impl<'a> Shipment<'a> {
    pub(super) fn new(target: &'a Target, epoch: EpochId) -> Self {
        Self {
            target,
            epoch,
            batch: BatchWriter::new(BATCH_BYTES_DEFAULT),
            tally: EpochTally::new(),
            wire_bytes: 0,
            disk_bytes: 0,
        }
    }

    pub(super) fn send_batch(&mut self) -> Result<(), LinkError> {
        let Some(batch) = self.batch.finish() else {
            return Ok(());
        };
        self.tally.batch(&batch.body, batch.pages);
        self.wire_bytes += batch.body.len() as u64;
        send(
            self.target,
            &Message::EpochPages {
                epoch: self.epoch,
                batch: batch.body,
            },
        )
    }

    fn send_disks(&mut self, disks: &SealedDisks) -> Result<(), LinkError> {
        in_batches(&disks.writes, |batch| {
            self.tally.disk_batch(&batch.body);
            self.disk_bytes += batch.body.len() as u64;
            let epoch = self.epoch;
            let batch = batch.body;
            send(self.target, &Message::EpochDisk { epoch, batch })
        })
    }

    /// Ships the rest of the epoch; returns its bytes on the wire, and how many of these are disk writes.
    pub(super) fn end(
        mut self,
        disks: &SealedDisks,
        state: Vec<u8>,
        output: SealedOutput,
    ) -> Result<(u64, u64), LinkError> {
        self.send_batch()?;
        self.send_disks(disks)?;
        let epoch = self.epoch;
        self.tally.state(&state);
        self.tally.output(&output);
        self.wire_bytes += state.len() as u64;
        send(
            self.target,
            &Message::EpochState {
                epoch,
                state: state.into(),
            },
        )?;
        self.wire_bytes += output
            .frames
            .iter()
            .map(|frame| frame.bytes.len() as u64)
            .sum::<u64>();
        send(self.target, &Message::EpochOutput { epoch, output })?;
        send(
            self.target,
            &Message::EpochEnd {
                epoch,
                summary: EpochSummary {
                    flush: disks.flush,
                    written_through: disks.written_through,
                    ..self.tally.summary()
                },
            },
        )?;
        Ok((self.wire_bytes + self.disk_bytes, self.disk_bytes))
    }
}

/// Hands a message to the link, waiting while its queue is full (R5).
pub(super) fn send(target: &Target, message: &Message) -> Result<(), LinkError> {
    let (kind, epoch, body) = message.encode();
    target.queue.blocking_send(Frame {
        kind,
        generation: target.generation.0,
        epoch,
        body,
    })
}

/// Gives `each` the writes in batches, in order, one at a time so that they are not all in memory twice.
pub(super) fn in_batches(
    writes: &[DiskWrite],
    mut each: impl FnMut(DiskBatch) -> Result<(), LinkError>,
) -> Result<(), LinkError> {
    let mut writer = DiskBatchWriter::new(DISK_BATCH_BYTES_DEFAULT);
    for write in writes {
        let mut outcome = Ok(());
        writer.push(write, |batch| {
            if outcome.is_ok() {
                outcome = each(batch);
            }
        });
        outcome?;
    }
    writer.finish().map_or(Ok(()), each)
}
