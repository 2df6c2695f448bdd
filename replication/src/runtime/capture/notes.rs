//! What the arbiter is told about a copy elsewhere, in order. Nobody waits for the note that there
//! is no copy any more: only a later start of the guest reads it, and storage that hangs must not
//! stop the capture thread.
//!
//! Must not be done here: letting a copy begin before it has been noted.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::arbiter::{Arbiter, ArbiterError, Note};
use crate::ids::Generation;

/// How long a note may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);

pub(super) struct Notes {
    arbiter: Arc<dyn Arbiter>,
    /// A note being written, after all earlier ones.
    pending: Option<Noting>,
}

type Noting = (Generation, JoinHandle<()>);

impl Notes {
    pub(super) fn new(arbiter: Arc<dyn Arbiter>) -> Self {
        Self {
            arbiter,
            pending: None,
        }
    }

    /// Notes that there is no copy any more. Does not wait.
    pub(super) fn no_backup(&mut self, generation: Generation) {
        let before = match self.pending.take() {
            Some((noted, thread)) if noted == generation && !thread.is_finished() => {
                self.pending = Some((noted, thread));
                return;
            }
            before => before,
        };
        let arbiter = Arc::clone(&self.arbiter);
        let before = Arc::new(Mutex::new(before));
        let waits_for = Arc::clone(&before);
        let noting = move || {
            wait(take(&waits_for));
            if let Err(error) = arbiter.note(generation, Note::NoBackup) {
                tracing::warn!(%error, "cannot note that there is no backup any more");
            }
        };
        match std::thread::Builder::new()
            .name("note".into())
            .spawn(noting)
        {
            Ok(thread) => self.pending = Some((generation, thread)),
            Err(error) => {
                self.pending = take(&before);
                tracing::warn!(%error, "cannot note that there is no backup any more");
            }
        }
    }

    /// Notes that `backup` is about to get a copy. Waits, because no copy must ever be forgotten.
    pub(super) fn backup(
        &mut self,
        generation: Generation,
        backup: &str,
    ) -> Result<(), ArbiterError> {
        self.finish();
        self.arbiter.note(generation, Note::Backup(backup))
    }

    /// Waits until everything is noted.
    pub(super) fn finish(&mut self) {
        wait(self.pending.take());
    }
}

fn take(noting: &Mutex<Option<Noting>>) -> Option<Noting> {
    noting.lock().take()
}

/// Waits, but not for storage that hangs: then the thread is left behind.
fn wait(noting: Option<Noting>) {
    if let Some((_, thread)) = noting {
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!(
                    "the arbiter does not take the note that there is no backup any more"
                );
                return;
            }
            std::thread::sleep(LOOK);
        }
        // A panic there has already been printed. A note is no reason for another one.
        let _ = thread.join();
    }
}
