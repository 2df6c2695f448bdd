//! The end of a standby that is promoted: from the arbiter's grant to the running guest.
//!
//! Must not be done here: asking whether it may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;

use super::driver::{Detected, Driver};
use super::{Outcome, Request};
use crate::causes::causes;
use crate::ids::{EpochId, Generation};
use crate::ports::{DiskError, Machine};
use crate::runtime::alarms::Topic;
use crate::runtime::clock::monotonic_ns;
use crate::runtime::error::RuntimeError;
use crate::runtime::metrics::Metrics;
use crate::runtime::metrics::milliseconds;
use crate::runtime::reign::{Promoted, Reign};
use crate::runtime::status::FailoverFigures;
use crate::runtime::threads::spawn;

impl<M: Machine> Driver<M> {
    /// This side owns the guest: it finishes what is committed, announces where the guest is, and
    /// runs it. The frames of the last epoch follow the announcement, so that switches already know
    /// the new port.
    pub(super) fn promote(
        mut self,
        generation: Generation,
        epoch: EpochId,
        cause: String,
        machine_broke: bool,
    ) -> Result<Outcome<M>, RuntimeError> {
        if !self.promote_disks(generation, epoch)? {
            return Ok(Outcome::Stopped);
        }
        // The request may have come while something else was waited for.
        if is_stop_asked(&mut self.requests) {
            tracing::warn!("stopped right before the promotion, the guest runs nowhere");
            return Ok(Outcome::Stopped);
        }
        let mut machine = self.trials.into_machine()?;
        machine.restore(self.core.committed_state())?;
        machine.announce();
        machine.gate().repeat(&self.core.output_to_repeat());
        machine.run()?;
        let (running, running_ns) = (Instant::now(), monotonic_ns());
        let detected = self.detected.unwrap_or(Detected {
            at: running,
            monotonic_ns: running_ns,
            last_contact: self.last_contact,
        });
        let reaction = detected.at.duration_since(detected.last_contact);
        let recovery = running.duration_since(detected.at);
        let figures = FailoverFigures {
            cause,
            machine_broke,
            generation: generation.0,
            epoch: epoch.0,
            reaction_ms: milliseconds(reaction),
            recovery_ms: milliseconds(recovery),
            outage_ms: milliseconds(reaction + recovery),
            repair_ms: None,
            detected_monotonic_ns: detected.monotonic_ns,
            running_monotonic_ns: running_ns,
        };
        tracing::warn!(
            cause = figures.cause,
            generation = figures.generation,
            epoch = figures.epoch,
            reaction_ms = figures.reaction_ms,
            recovery_ms = figures.recovery_ms,
            outage_ms = figures.outage_ms,
            "failover: this side runs the guest now"
        );
        self.metrics.promoted(figures, Some(detected.last_contact));
        self.metrics.set_phase("promoted", generation, epoch, false);
        Ok(Outcome::Promoted(Promoted {
            machine: machine.hand_on(),
            generation,
            epoch,
            reign: Box::new(Reign {
                generation,
                ..self.setup.reign
            }),
        }))
    }

    /// Brings the disks to the epoch. Storage that fails is tried again and again: nobody else may run the guest any more, and
    /// its memory is here. Says whether it was done; not if this side was told to stop meanwhile.
    fn promote_disks(&mut self, generation: Generation, epoch: EpochId) -> Result<bool, DiskError> {
        let metrics = self.metrics.clone();
        let patience = self.setup.reign.settings.policy.storage_timeout;
        let is_known: Arc<AtomicBool> = Arc::default();
        let (mut waits_for, mut is_stopped) = (String::new(), false);
        let mut wait = |what: &str| {
            is_known.store(true, Ordering::Release);
            // The wait may be long; the log needs it only once.
            if waits_for != what {
                what.clone_into(&mut waits_for);
                metrics.alarm(Topic::Disks, waiting(what));
            }
            is_stopped |= is_stop_asked(&mut self.requests);
            !is_stopped
        };
        (self.disks.disks).learn(&self.setup.reign.history(generation));
        loop {
            is_known.store(false, Ordering::Release);
            let watch = Watch::begin(patience, is_known.clone(), metrics.clone());
            let promoted = self.disks.disks.promote(epoch, &mut wait);
            drop(watch);
            let failed = match promoted {
                Ok(()) => return Ok(true),
                Err(failed) => failed,
            };
            let told_to_stop = match &failed {
                DiskError::NotWaited { .. } => true,
                DiskError::Io { .. } | DiskError::File { .. } => {
                    let why = causes(&failed);
                    !wait(&format!(
                        "this host's storage fails, which is tried again and again: {why}"
                    ))
                }
                _ => return Err(failed),
            };
            if told_to_stop {
                let why = causes(&failed);
                tracing::warn!("stopped while the promotion waited, the guest runs nowhere: {why}");
                return Ok(false);
            }
            std::thread::sleep(STORAGE_RETRY);
        }
    }
}

/// Pause between attempts to bring the disks to the epoch on storage that fails.
const STORAGE_RETRY: Duration = Duration::from_millis(500);

fn waiting(what: &str) -> String {
    format!("the promotion waits: {what}")
}

/// Notices, until it is dropped, that the storage has done nothing for long: the driver waits for it, and can be told
/// nothing meanwhile.
struct Watch {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Unless it is known what is waited for. A host that has no thread left has no watch either.
    fn begin(patience: Duration, is_known: Arc<AtomicBool>, metrics: Metrics) -> Self {
        let (over, goes_on) = channel();
        let thread = spawn("promotion", move || {
            let has_waited = goes_on.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
            if has_waited && !is_known.load(Ordering::Acquire) {
                let what = "this host's storage does not answer, and only this host has the guest";
                metrics.alarm(Topic::Disks, waiting(what));
            }
        });
        Self {
            over: Some(over),
            thread: thread.ok(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            // Nothing is said once this is over. A panic was printed.
            let _ = thread.join();
        }
    }
}

/// Whether this side was asked to stop. Other requests come too late.
fn is_stop_asked(requests: &mut Receiver<Request>) -> bool {
    std::iter::from_fn(|| requests.try_recv().ok()).any(|request| matches!(request, Request::Stop))
}
