//! The thread that puts epochs into the journal, and with that decides when they may be acknowledged.
//!
//! What must not be done here: saying that an epoch is there before it is, or waiting without a reason that
//! another thread removes.

use std::time::Instant;

use bytes::Bytes;

use super::journal::{FILE_HEADER_BYTES, JournalFile, Place, Record};
use super::replica::Replica;
use crate::disk::DiskError;
use crate::disk::epoch_writes::EpochWrites;
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
            if let Err(error) = &done {
                now.failed.get_or_insert(error.to_string());
            }
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
                if self.drives[usize::from(write.disk)].is_shared() {
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
        if epoch.flush {
            // Both: what an earlier epoch wrote may be in the other file.
            let files = self.state.lock().journal.clone();
            files.iter().flatten().try_for_each(JournalFile::sync)?;
        }
        Ok(())
    }

    /// Keeps what an epoch wrote to shared disks; forgets what the primary has durably on their images.
    fn hold(&self, epoch: EpochId, writes: EpochWrites, through: EpochId) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        state.held.release(through).for_each(drop);
        // The primary holds as much as its log may, and this side what is not durable beside.
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
                return Err(DiskError::Shut);
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
        // Only this thread puts records down, and the file is not changed while `last` is not its record.
        record.previous = state.last;
        state.slots[active].first.get_or_insert(place.1);
        state.slots[active].last = place;
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
