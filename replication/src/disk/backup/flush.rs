//! The thread that makes the journal durable when the guest has flushed. Epochs are appended meanwhile.
//!
//! What must not be done here: holding the state's lock while storage is waited for, or taking for durable what was
//! appended after a sync began.

use super::replica::Replica;
use crate::disk::DiskError;

impl Replica {
    pub(super) fn flush_work(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            let Some(told) = state.flush.take() else {
                self.bell.wait(&mut state);
                continue;
            };
            state.flushing = true;
            drop(state);
            let done = self.sync_journal();
            let mut now = self.state.lock();
            now.flushing = false;
            now.note_failure(&done);
            drop(now);
            self.bell.notify_all();
            told(done);
            state = self.state.lock();
        }
    }

    /// Makes what has been appended so far survive a loss of power. It may be in both files. What is on the images already,
    /// or was synced, is not synced again: that may take long.
    fn sync_journal(&self) -> Result<(), DiskError> {
        let state = self.state.lock();
        let last = state.last;
        let mut unsynced = Vec::new();
        for (number, slot) in state.slots.iter().enumerate() {
            let files = state.journal.as_ref();
            if let Some(files) = files.filter(|_| slot.is_unsynced) {
                unsynced.push((number, slot.last, files[number].clone()));
            }
        }
        drop(state);
        for (number, appended, file) in unsynced {
            file.sync()?;
            let slot = &mut self.state.lock().slots[number];
            // What is being appended, or was since, may not be covered. A file that was emptied has nothing.
            let is_covered = slot.last == appended && appended <= last;
            slot.is_unsynced &= !is_covered;
        }
        let mut state = self.state.lock();
        if let Some(failed) = &state.failed {
            // An error is reported once for a file: whoever else synced it may have got this one's.
            return Err(DiskError::Failed(failed.clone()));
        }
        state.synced = state.synced.max(last);
        Ok(())
    }
}
