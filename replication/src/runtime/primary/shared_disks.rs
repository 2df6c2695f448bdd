//! Held writes to shared disks. They go out when the core says so and are tried again as long as
//! the storage refuses them. The guest's other output waits for them.
//!
//! Must not be done here: deciding when they may go.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::causes::causes;
use crate::core::primary::PrimaryInput;
use crate::ids::{EpochId, Generation};
use crate::ports::{DiskError, PrimaryDisks};
use crate::runtime::alarms::Topic;
use crate::runtime::capture::CaptureJob;
use crate::runtime::metrics::Metrics;

/// Pause before trying again to write to shared disks.
const DISKS_RETRY: Duration = Duration::from_secs(1);

pub(super) struct SharedDisks {
    disks: Arc<dyn PrimaryDisks>,
    /// Reports. The core asks for one write at a time, so they are bounded, but for those that come too late to
    /// matter: as many as epochs are released within `patience`.
    done: UnboundedSender<DisksWritten>,
    written: UnboundedReceiver<DisksWritten>,
    /// What is being written: the session and the epoch.
    open: Option<(u64, EpochId)>,
    /// Storage that has not answered for so long hangs.
    patience: Duration,
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
    /// The storage has not answered yet.
    Hangs,
    /// It failed some time ago and is to be tried again if its session is still the present one. In
    /// another session the same number names an epoch that may not be acknowledged.
    TryAgain,
}

impl SharedDisks {
    pub(super) fn new(disks: Arc<dyn PrimaryDisks>, patience: Duration) -> Self {
        let (done, written) = unbounded_channel();
        Self {
            disks,
            done,
            written,
            open: None,
            patience,
        }
    }

    /// Lets what is held through `epoch` go; [`SharedDisks::written`] reports the outcome.
    pub(super) fn write(&mut self, session: u64, epoch: EpochId) {
        self.open = Some((session, epoch));
        self.report_later(self.patience, session, epoch, Outcome::Hangs);
        let done = self.done.clone();
        let told = move |outcome: Result<(), DiskError>| {
            let outcome = match outcome {
                Ok(()) => Outcome::Written,
                Err(error) => Outcome::Failed(causes(&error)),
            };
            // Fails only if the driver is gone.
            let _ = done.send(DisksWritten {
                session,
                epoch,
                outcome,
            });
        };
        self.disks.release(epoch, Box::new(told));
    }

    /// Waits for the next report, forever if nothing is being written. Cancel safe.
    pub(super) async fn written(&mut self) -> DisksWritten {
        match self.written.recv().await {
            Some(written) => written,
            // Cannot happen: `self` holds a sender.
            None => std::future::pending().await,
        }
    }

    /// The core's input from a report of the present session, if any.
    pub(super) fn input(
        &mut self,
        written: DisksWritten,
        metrics: &Metrics,
    ) -> Option<PrimaryInput> {
        let DisksWritten { session, epoch, .. } = written;
        let is_open = self.open == Some((session, epoch));
        match written.outcome {
            Outcome::Hangs if is_open => refused(metrics, "their storage does not answer"),
            Outcome::Hangs => {}
            Outcome::Written => {
                self.open = None;
                metrics.over(Topic::Disks);
                return Some(PrimaryInput::DisksWritten { epoch });
            }
            Outcome::TryAgain => self.write(session, epoch),
            Outcome::Failed(error) => {
                self.open = None;
                refused(metrics, &error);
                self.report_later(DISKS_RETRY, session, epoch, Outcome::TryAgain);
            }
        }
        None
    }

    fn report_later(&self, time: Duration, session: u64, epoch: EpochId, outcome: Outcome) {
        let done = self.done.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            // Fails only if the driver is gone.
            let _ = done.send(DisksWritten {
                session,
                epoch,
                outcome,
            });
        });
    }
}

/// The guest is to go on alone, but what is held cannot be written. Has it tried again.
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
    let what = format!("the guest's output is held until its shared disks can be written: {error}");
    metrics.alarm(Topic::Disks, what);
}
