//! The end of a standby that is promoted: from the arbiter's grant to the running guest.
//!
//! Must not be done here: asking whether it may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

use super::driver::Driver;
use super::ending::{Detected, Granted};
use super::{Outcome, Request};
use crate::causes::causes;
use crate::core::backup::BackupInput;
use crate::core::message::Message;
use crate::ids::{EpochId, Generation};
use crate::output::Arrivals;
use crate::ports::{BackupDisks, DiskError, Machine};
use crate::runtime::alarms::Topic;
use crate::runtime::clock::monotonic_ns;
use crate::runtime::error::RuntimeError;
use crate::runtime::metrics::milliseconds;
use crate::runtime::reign::{Promoted, Reign};
use crate::runtime::status::FailoverFigures;
use crate::runtime::threads::spawn;

impl<M: Machine> Driver<M> {
    /// This side owns the guest: it finishes what is committed, announces where the guest is, and
    /// runs it. Only with its disks is the guest's output true that is repeated. The frames of the last epoch
    /// follow the announcement, so that switches already know the new port.
    pub(super) fn promote(
        mut self,
        granted: Granted,
        runtime: &Runtime,
    ) -> Result<Outcome<M>, RuntimeError> {
        let Granted {
            generation,
            epoch,
            cause,
            machine_broke,
            arrivals,
        } = granted;
        if !self.promote_disks(generation, epoch)? {
            return Ok(Outcome::Stopped);
        }
        // The request may have come while something else was waited for.
        if is_stop_asked(&mut self.requests) {
            tracing::warn!("stopped right before the promotion, the guest runs nowhere");
            return Ok(Outcome::Stopped);
        }
        let mut machine = self.trials.take_machine()?;
        machine.restore(self.core.committed_state())?;
        machine.announce();
        machine.gate().repeat(&self.core.output_to_repeat());
        if let Some(mut arrivals) = arrivals {
            runtime.block_on(self.late_arrivals(&mut arrivals));
            machine.gate().deliver(&arrivals.take());
        }
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
        runtime.block_on(self.take_leave());
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

    /// Adds what comes over the link from a primary that hands the guest over, since the grant and for a moment after the
    /// announcement, in which switches still sent frames there.
    async fn late_arrivals(&mut self, arrivals: &mut Arrivals) {
        let ends_at = tokio::time::Instant::now() + LATE_ARRIVALS;
        while let Some(session) = &mut self.session {
            match tokio::time::timeout_at(ends_at, session.recv()).await {
                Ok(Ok((_, Message::Arrived(frames)))) => arrivals.add(frames),
                Ok(Ok(_)) => {}
                // The time is over, or the link is gone.
                Ok(Err(_)) | Err(_) => return,
            }
            if tokio::time::Instant::now() >= ends_at {
                return;
            }
        }
    }

    /// Tells a primary that lives, if it still has a link, that the guest is here now.
    async fn take_leave(&mut self) {
        let (now, memory) = (self.clock.now(), Arc::clone(&self.memory));
        for effect in self.core.handle(now, BackupInput::Runs, &*memory) {
            if let Err(error) = self.perform(effect).await {
                // The guest runs, whatever becomes of the link.
                tracing::warn!(%error, "cannot take leave of the primary");
            }
        }
    }

    /// Brings the disks to the epoch. Storage that fails is tried again and again: nobody else may run the guest any more, and
    /// its memory is here. Says whether it was done; not if this side was told to stop meanwhile.
    fn promote_disks(
        &mut self,
        generation: Generation,
        epoch: EpochId,
    ) -> Result<bool, RuntimeError> {
        if !self.has_disks() {
            // Nothing can hang, and on a busy host a thread may take milliseconds to begin.
            return Ok(true);
        }
        self.disks
            .disks
            .learn(&self.setup.reign.history(generation));
        let mut wait = Wait {
            said: String::new(),
            is_stopped: false,
        };
        loop {
            let failed = match Attempt::begin(self.disks.disks.clone(), epoch) {
                Ok(attempt) => match self.follow(&attempt, &mut wait)? {
                    Some(Ok(())) => return Ok(true),
                    Some(Err(error @ (DiskError::Io { .. } | DiskError::File { .. }))) => {
                        format!("this host's storage fails: {}", causes(&error))
                    }
                    Some(Err(error)) if !wait.is_stopped => return Err(error.into()),
                    _ => String::from("it was not over"),
                },
                Err(error) => causes(&error),
            };
            if wait.is_stopped {
                tracing::warn!(
                    "stopped while the promotion waited, and the guest runs nowhere: its memory is lost, what was \
                     acknowledged of its disks is on the images and in their journal ({failed})"
                );
                return Ok(false);
            }
            let what = format!("{failed}: this is tried again and again");
            self.say_what_is_waited_for(&what, &mut wait);
            std::thread::sleep(STORAGE_RETRY);
        }
    }

    /// Listens to an attempt until it is over, and to whoever wants this side to stop. Gives nothing if it had to be left
    /// behind, because the storage does not let go of it.
    fn follow(
        &mut self,
        attempt: &Attempt,
        wait: &mut Wait,
    ) -> Result<Option<Result<(), DiskError>>, RuntimeError> {
        let patience = self.setup.reign.settings.policy.storage_timeout;
        let (begun, mut is_known, mut stopped_at) = (Instant::now(), false, None);
        loop {
            match attempt.news.recv_timeout(LOOK_EVERY) {
                Ok(News::Over(outcome)) => return Ok(Some(outcome)),
                Ok(News::Waits(what)) => {
                    is_known = true;
                    self.say_what_is_waited_for(&what, wait);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(RuntimeError::Panicked("promotion"));
                }
            }
            if is_stop_asked(&mut self.requests) {
                wait.is_stopped = true;
                attempt.is_stopped.store(true, Ordering::Release);
                stopped_at.get_or_insert_with(Instant::now);
            }
            if stopped_at.is_some_and(|at| at.elapsed() >= STOP_PATIENCE) {
                return Ok(None);
            }
            if !is_known && begun.elapsed() >= patience {
                let what = "this host's storage does not answer, and only this host has the guest";
                self.say_what_is_waited_for(what, wait);
            }
        }
    }

    /// The wait may be long; the log needs it only once.
    fn say_what_is_waited_for(&self, what: &str, wait: &mut Wait) {
        if wait.said != what {
            what.clone_into(&mut wait.said);
            let what = format!("the promotion waits: {what}");
            self.metrics.alarm(Topic::Disks, what);
        }
    }
}

/// How long a guest waits for what may still be on its way from its old host. Without it, whoever sent that would wait for
/// a time-out of 200 ms or more.
const LATE_ARRIVALS: Duration = Duration::from_millis(1);
/// Pause between attempts to bring the disks to the epoch on storage that fails.
const STORAGE_RETRY: Duration = Duration::from_millis(500);
/// How often the driver looks whether it is to stop while an attempt says nothing.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a side that is to stop waits for an attempt.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What people were told, and have said, about a promotion that waits.
struct Wait {
    said: String,
    is_stopped: bool,
}

/// What an attempt says.
enum News {
    /// It waits for this.
    Waits(String),
    Over(Result<(), DiskError>),
}

/// An attempt to bring the disks to the epoch. It has a thread of its own, because storage may hang in it, and nobody can take it
/// back then. Left behind, it only does what the next start of these disks would do.
struct Attempt {
    news: std::sync::mpsc::Receiver<News>,
    is_stopped: Arc<AtomicBool>,
}

impl Attempt {
    fn begin(disks: Arc<dyn BackupDisks>, epoch: EpochId) -> Result<Self, RuntimeError> {
        let (say, news) = channel();
        let is_stopped: Arc<AtomicBool> = Arc::default();
        let ends = is_stopped.clone();
        spawn("promotion", move || {
            let outcome = disks.promote(epoch, &mut |what| {
                // Fails only if the driver is gone.
                let _ = say.send(News::Waits(what.into()));
                !ends.load(Ordering::Acquire)
            });
            let _ = say.send(News::Over(outcome));
        })?;
        Ok(Self { news, is_stopped })
    }
}

/// Whether this side was asked to stop. Other requests come too late.
fn is_stop_asked(requests: &mut Receiver<Request>) -> bool {
    std::iter::from_fn(|| requests.try_recv().ok()).any(|request| matches!(request, Request::Stop))
}
