//! Writes to shared disks that were held: they go out when the core says so, and are tried again for as long
//! as the storage refuses. The guest's other output waits for them.
//!
//! Must not be done here: deciding that they may go.

use std::collections::VecDeque;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::driver::Driver;
use crate::core::primary::PrimaryInput;
use crate::disk::{DiskError, PrimaryDisks};
use crate::ids::{EpochId, Generation};
use crate::runtime::arbitration::causes;
use crate::runtime::capture::CaptureJob;

/// Pause before shared disks that could not be written are tried again.
const DISKS_RETRY: Duration = Duration::from_secs(1);

/// How writing to shared disks ended.
pub(super) struct DisksWritten {
    session: u64,
    epoch: EpochId,
    outcome: Outcome,
}

enum Outcome {
    Written,
    Failed(String),
    /// It failed some time ago: it is to be tried again, if its session is still the present one. In
    /// another one the same number names an epoch that may not be acknowledged.
    TryAgain,
}

impl Driver {
    /// Lets what is held for shared disks go.
    pub(super) fn write_disks(&self, epoch: EpochId) {
        write_disks(
            &self.setup.disks,
            self.disks_done.clone(),
            self.session_number,
            epoch,
        );
    }

    pub(super) fn disks_written(&self, written: DisksWritten, inputs: &mut VecDeque<PrimaryInput>) {
        let DisksWritten { session, epoch, .. } = written;
        if self.session.is_none() || session != self.session_number {
            return;
        }
        match written.outcome {
            Outcome::Written => inputs.push_back(PrimaryInput::DisksWritten { epoch }),
            Outcome::TryAgain => self.write_disks(epoch),
            Outcome::Failed(error) => {
                self.metrics.alarm(format!(
                    "the guest's output is held until its shared disks can be written: {error}"
                ));
                let again = self.disks_done.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(DISKS_RETRY).await;
                    // Without a driver nobody waits.
                    let _ = again.send(DisksWritten {
                        session,
                        epoch,
                        outcome: Outcome::TryAgain,
                    });
                });
            }
        }
    }

    /// The guest is to go on alone, but what is held cannot be written.
    pub(super) fn still_held(&self, generation: Generation, error: &str) {
        self.metrics.alarm(format!(
            "the guest's output is held until its shared disks can be written: {error}"
        ));
        let jobs = self.jobs.clone();
        tokio::spawn(async move {
            let mut job = CaptureJob::OpenGate(generation);
            loop {
                tokio::time::sleep(DISKS_RETRY).await;
                match jobs.try_send(job) {
                    Err(TrySendError::Full(full)) => job = full,
                    // Sent, or the capture thread is gone, and the guest with it.
                    _ => return,
                }
            }
        });
    }
}

/// Lets what is held for shared disks go, and has `done` told how that ended.
fn write_disks(
    disks: &PrimaryDisks,
    done: UnboundedSender<DisksWritten>,
    session: u64,
    epoch: EpochId,
) {
    let told = move |outcome: Result<(), DiskError>| {
        let outcome = match outcome {
            Ok(()) => Outcome::Written,
            Err(error) => Outcome::Failed(causes(&error)),
        };
        // Without a driver nobody waits.
        let _ = done.send(DisksWritten {
            session,
            epoch,
            outcome,
        });
    };
    disks.release(epoch, Box::new(told));
}
