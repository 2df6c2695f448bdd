//! The thread that applies the journal to the images.
//!
//! What must not be done here: writing to an image what is not durable in the journal, or is not
//! committed in memory.

use std::time::Instant;

use parking_lot::MutexGuard;

use super::journal::JournalFile;
use super::replica::{Replica, SYNC_FLUSH_BYTES, Slot, State};
use crate::causes::causes;
use crate::core::disk::PairId;
use crate::disk::DiskError;
use crate::disk::place::Place;

/// What the destaging thread does next.
struct Destage {
    /// The file and its last record, if there is anything to apply.
    file: Option<(usize, JournalFile, Place)>,
    /// If this makes the copy whole: the pairs the images will belong to.
    finish: Vec<PairId>,
}

impl Replica {
    pub(super) fn destage_work(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            if state.unflushed_bytes >= SYNC_FLUSH_BYTES {
                state.unflushed_bytes = 0;
                state = self.out_of_lock(state, |_| self.flush(false));
            } else if let Some(work) = self.next_destage(&mut state) {
                let applied = work.file.as_ref().map(|(_, _, last)| *last);
                state = self.out_of_lock(state, |_| self.destage(&work));
                if state.failed.is_none() {
                    if let Some((slot, ..)) = work.file {
                        state.slots[slot] = Slot::default();
                    }
                    state.applied = applied.unwrap_or(state.applied);
                    if state.candidates == work.finish {
                        state.candidates.clear();
                    }
                }
                self.bell.notify_all();
            } else {
                let since = state.slots[state.active].since;
                let due = since.map(|since| since + self.limits.destage_interval);
                let left = due.map(|due| due.saturating_duration_since(Instant::now()));
                // If it is due but cannot run, it waits for a commit or a persist, which notify
                // `bell`.
                match left.filter(|left| !left.is_zero()) {
                    Some(left) => {
                        self.bell.wait_for(&mut state, left);
                    }
                    None => self.bell.wait(&mut state),
                }
            }
        }
    }

    fn out_of_lock<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        work: impl FnOnce(&Self) -> Result<(), DiskError>,
    ) -> MutexGuard<'a, State> {
        state.destaging = true;
        drop(state);
        let done = work(self);
        let mut state = self.state.lock();
        state.destaging = false;
        if let Err(error) = done {
            let text = causes(&error);
            tracing::warn!(error = text, "the journal cannot be brought to the images");
            state.failed.get_or_insert(text);
        }
        self.bell.notify_all();
        state
    }

    fn next_destage(&self, state: &mut State) -> Option<Destage> {
        if !state.session || state.failed.is_some() || state.committed.0 == 0 {
            return None;
        }
        let finish = !state.candidates.is_empty();
        let slot = &state.slots[state.active];
        let Some(since) = slot.since else {
            // The journal is empty. At most, the copy must be declared whole.
            return finish.then(|| Destage {
                file: None,
                finish: state.candidates.clone(),
            });
        };
        let due = state.needs_room
            || finish
            || slot.end >= self.limits.destage_bytes
            || since.elapsed() >= self.limits.destage_interval;
        // A file is applied whole, so it must wait if it holds epochs that memory has not
        // committed.
        if !due || slot.last.1 > state.committed || state.last != slot.last {
            return None;
        }
        let (active, last) = (state.active, slot.last);
        let file = state.journal.as_ref()?[active].clone();
        state.active = 1 - active;
        state.needs_room = false;
        state.slots[active].since = None;
        Some(Destage {
            file: Some((active, file, last)),
            finish: if finish {
                state.candidates.clone()
            } else {
                Vec::new()
            },
        })
    }

    fn destage(&self, work: &Destage) -> Result<(), DiskError> {
        if let Some((_, file, last)) = &work.file {
            // An image may only receive what is durable in the journal.
            file.sync()?;
            let (found, _) = file.walk(|record| self.apply_record(record))?;
            if found != Some(*last) {
                return Err(DiskError::Failed(format!(
                    "the journal {} has lost records",
                    file.path.display()
                )));
            }
            self.flush(false)?;
        }
        self.finish(&work.finish)?;
        if let Some((_, file, last)) = &work.file {
            file.empty(*last)?;
        }
        Ok(())
    }
}
