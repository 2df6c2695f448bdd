//! The thread that writes epochs to the journal. This decides when they may be acknowledged.
//!
//! What must not be done here: reporting an epoch as kept before it is, or waiting for anything that no
//! other thread ends.

use std::time::Instant;

use bytes::Bytes;

use super::journal::{FILE_HEADER_BYTES, Record};
use super::replica::{Replica, given_up};
use crate::disk::DiskError;
use crate::disk::epoch_writes::EpochWrites;
use crate::disk::place::Place;
use crate::epoch_queue::Bucket;
use crate::ids::EpochId;
use crate::ports::disks::EpochToPersist;

impl Replica {
    pub(super) fn journal_work(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            let Some((epoch, told)) = state.job.take() else {
                self.bell.wait(&mut state);
                continue;
            };
            state.persisting = true;
            drop(state);
            let done = self.put_down(epoch);
            let mut now = self.state.lock();
            now.persisting = false;
            now.note_failure(&done);
            drop(now);
            self.bell.notify_all();
            told(done);
            state = self.state.lock();
        }
    }

    fn put_down(&self, epoch: EpochToPersist) -> Result<(), DiskError> {
        let place = (epoch.generation, epoch.epoch);
        let (mut held, mut journal) = (EpochWrites::default(), false);
        for batch in &epoch.batches {
            for write in self.decode(epoch.epoch, batch)? {
                if self.drives[usize::from(write.disk)].is_shared() && !write.is_check() {
                    held.push(write);
                } else {
                    journal = true;
                }
            }
        }
        self.hold(epoch.epoch, held, epoch.written_through)?;
        if journal {
            self.append(place, epoch.batches)?;
        }
        Ok(())
    }

    /// Keeps an epoch's writes to shared disks. Forgets those that are durable on the shared
    /// images.
    fn hold(&self, epoch: EpochId, writes: EpochWrites, through: EpochId) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        state.held.release(through).for_each(drop);
        // The primary holds up to its log's limit. This side also holds what is not durable yet.
        let (bytes, limit) = (
            state.held.bytes() + writes.bytes(),
            self.limits.log_bytes_max * 4,
        );
        if bytes > limit {
            return Err(DiskError::TooMuch {
                epoch,
                bytes,
                limit,
            });
        }
        *state.held.current_mut() = writes;
        state.held.seal(epoch);
        Ok(())
    }

    fn append(&self, place: Place, batches: Vec<Bytes>) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let mut record = Record {
            place,
            previous: state.last,
            synced: state.synced,
            batches,
        };
        let limit = self.limits.journal_bytes_max / 2;
        let bytes = record.bytes();
        if bytes > limit - FILE_HEADER_BYTES.min(limit) {
            return Err(DiskError::TooMuch {
                epoch: place.1,
                bytes,
                limit,
            });
        }
        while state.slots[state.active].end.max(FILE_HEADER_BYTES) + bytes > limit {
            if let Some(failed) = &state.failed {
                return Err(DiskError::Failed(failed.clone()));
            }
            if state.stop || !state.session {
                return Err(given_up());
            }
            state.needs_room = true;
            self.bell.notify_all();
            self.bell.wait(&mut state);
        }
        let at = state.slots[state.active].end.max(FILE_HEADER_BYTES);
        let active = state.active;
        let Some(file) = state.journal.as_ref().map(|files| files[active].clone()) else {
            return Err(DiskError::Failed("there is no journal".into()));
        };
        // Only this thread appends records. The files do not change places while `last` lags behind
        // the slot.
        record.previous = state.last;
        state.slots[active].first.get_or_insert(place.1);
        state.slots[active].last = place;
        state.slots[active].is_unsynced = true;
        drop(state);
        file.append(&record, at)?;
        let mut state = self.state.lock();
        let slot = &mut state.slots[active];
        slot.end = at + bytes;
        slot.since.get_or_insert_with(Instant::now);
        state.before_last = std::mem::replace(&mut state.last, place);
        self.bell.notify_all();
        Ok(())
    }
}
