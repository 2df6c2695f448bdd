//! Writes to shared disks that were held: they go out when the core says so, and are tried again for as long
//! as the storage refuses. The guest's other output waits for them.
//!
//! Must not be done here: deciding that they may go.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::causes::causes;
use crate::core::primary::PrimaryInput;
use crate::ids::{EpochId, Generation};
use crate::ports::{DiskError, PrimaryDisks};
use crate::runtime::capture::CaptureJob;
use crate::runtime::metrics::Metrics;

/// Pause before shared disks that could not be written are tried again.
const DISKS_RETRY: Duration = Duration::from_secs(1);

pub(super) struct SharedDisks {
    disks: Arc<dyn PrimaryDisks>,
    /// Reports, bounded by the core, which asks for one at a time.
    done: UnboundedSender<DisksWritten>,
    written: UnboundedReceiver<DisksWritten>,
}

/// How writing to shared disks ended.
pub(super) struct DisksWritten {
    pub(super) session: u64,
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

impl SharedDisks {
    pub(super) fn new(disks: Arc<dyn PrimaryDisks>) -> Self {
        let (done, written) = unbounded_channel();
        Self {
            disks,
            done,
            written,
        }
    }

    /// Lets what is held go; [`SharedDisks::written`] says how that ended.
    pub(super) fn write(&self, session: u64, epoch: EpochId) {
        let done = self.done.clone();
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
        self.disks.release(epoch, Box::new(told));
    }

    /// Waits for the next report; for ever if nothing is being written. Cancel safe.
    pub(super) async fn written(&mut self) -> DisksWritten {
        match self.written.recv().await {
            Some(written) => written,
            // Not while a sender is a field of ours.
            None => std::future::pending().await,
        }
    }

    /// What the core must hear of a report of the present session.
    pub(super) fn input(&self, written: DisksWritten, metrics: &Metrics) -> Option<PrimaryInput> {
        let DisksWritten { session, epoch, .. } = written;
        match written.outcome {
            Outcome::Written => return Some(PrimaryInput::DisksWritten { epoch }),
            Outcome::TryAgain => self.write(session, epoch),
            Outcome::Failed(error) => {
                refused(metrics, &error);
                let again = self.done.clone();
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
        None
    }
}

/// The guest is to go on alone, but what is held cannot be written: has it tried again.
pub(super) fn still_held(
    generation: Generation,
    error: &str,
    jobs: SyncSender<CaptureJob>,
    metrics: &Metrics,
) {
    refused(metrics, error);
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

fn refused(metrics: &Metrics, error: &str) {
    metrics.alarm(format!(
        "the guest's output is held until its shared disks can be written: {error}"
    ));
}
