//! Runs and protects a guest: the public face of the primary side. The loop itself is in
//! [`driver`].

mod driver;
mod output_signal;
mod shared_disks;

use std::marker::PhantomData;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use understudy_transport::Endpoint;

use self::driver::Driver;
use super::RuntimeError;
use super::arbitration::Arbitration;
use super::capture::{CaptureJob, Capturer};
use super::metrics::Metrics;
use super::side::{Side, SideBuilder, SideHandle, StoppedOnDrop, required, spawn};
use super::standby::Promoted;
use crate::arbiter::{Arbiter, Claim, Verdict};
use crate::ids::Generation;
use crate::ports::Machine;

/// Told to end at once, it waits so long for a thread that may be waiting for storage.
const LEAVE_BEHIND: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// Jobs of the capture thread wait in a queue of this length. The core has one capture under way at a
/// time, so a handful is all that can wait.
const JOBS_MAX: usize = 64;

/// Entry to the primary side; see [`Primary::builder`].
#[derive(Debug)]
pub struct Primary;

/// Collects what a primary needs.
pub type PrimaryBuilder<M> = SideBuilder<PrimaryPart<M>>;

/// What only a primary has to know.
pub struct PrimaryPart<M: Machine> {
    machine: StoppedOnDrop<M>,
    backup: Option<Endpoint>,
    promoted: Option<Reign>,
    start_over: bool,
}

/// Under what a machine runs.
struct Reign {
    generation: Generation,
    claimant: String,
    metrics: Metrics,
}

/// A guest that runs, protected whenever there is a backup.
pub struct Protection<M: Machine> {
    handle: ProtectionHandle,
    driver: JoinHandle<Result<Ended, RuntimeError>>,
    capturer: JoinHandle<()>,
    machine: PhantomData<fn() -> M>,
    jobs: std::sync::mpsc::SyncSender<CaptureJob>,
}

/// Looks at a [`Protection`] and makes requests, from any thread.
pub type ProtectionHandle = SideHandle<Request>;

/// How protection ended. The guest is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The guest ended by itself, or was stopped on request; the backup was told so.
    GuestStopped,
    /// It was to end at once: what the guest had said and was still held is lost. A thread that waits for storage
    /// may be left behind.
    Abandoned,
    /// Another side owns the guest (R4). Held output was dropped.
    Fenced {
        /// For a person.
        reason: String,
    },
}

/// What a [`ProtectionHandle`] asks for.
#[derive(Debug)]
pub enum Request {
    /// See [`ProtectionHandle::checkpoint`].
    Checkpoint,
    /// See [`ProtectionHandle::reset_guest`].
    ResetGuest,
    /// See [`ProtectionHandle::guest_stopped`].
    GuestStopped,
    /// See [`ProtectionHandle::stop`].
    Stop,
}

impl Primary {
    /// Starts to describe a primary for `machine`, which has not run yet.
    pub fn builder<M: Machine>(machine: M) -> PrimaryBuilder<M> {
        let part = PrimaryPart {
            machine: StoppedOnDrop::new(machine),
            backup: None,
            promoted: None,
            start_over: false,
        };
        SideBuilder::new("primary", part)
    }

    /// Starts to describe a primary for a machine that was promoted and runs already.
    pub fn promoted<M: Machine>(promoted: Promoted<M>) -> PrimaryBuilder<M> {
        let mut builder = Self::builder(promoted.machine);
        builder.part.promoted = Some(Reign {
            generation: promoted.generation,
            claimant: promoted.claimant,
            metrics: promoted.metrics,
        });
        builder
    }
}

impl<M: Machine> PrimaryBuilder<M> {
    /// Where a standby listens. Without it the guest runs unprotected.
    #[must_use]
    pub fn backup(mut self, endpoint: Endpoint) -> Self {
        self.part.backup = Some(endpoint);
        self
    }

    /// Starts the guest from nothing even if a standby may have a copy of it, which is given up.
    #[must_use]
    pub fn start_over(mut self) -> Self {
        self.part.start_over = true;
        self
    }

    /// Claims the guest, runs it, and protects it: initial synchronisation, then epochs. Returns as
    /// soon as the guest runs.
    ///
    /// # Errors
    /// If the arbiter refuses or cannot be asked, or the guest cannot be run.
    pub fn protect(self) -> Result<Protection<M>, RuntimeError> {
        let arbiter = required(Side::Primary, "an arbiter", self.arbiter)?;
        let (settings, part) = (self.settings, self.part);
        let mut machine = part.machine;
        let reign = match part.promoted {
            Some(reign) => reign,
            None => {
                let claim = if part.start_over {
                    Claim::StartOver
                } else {
                    Claim::Start
                };
                let (vm, node) = (&settings.vm, &settings.node);
                let reign = claim_guest(&*machine, arbiter.as_ref(), claim, vm, node)?;
                machine.run()?;
                reign
            }
        };
        let (jobs, to_do) = std::sync::mpsc::sync_channel(JOBS_MAX);
        // Bounded by the jobs.
        let (events, happened) = mpsc::unbounded_channel();
        let (handle, requested) = SideHandle::new(&*machine, reign.metrics.clone());
        let limits = settings.limits.clone();
        let driver = Driver::new(
            driver::Setup {
                settings,
                backup: part.backup,
                generation: reign.generation,
                fingerprint: machine.fingerprint(),
                layout: machine.memory().layout().clone(),
                gate: machine.gate(),
                disks: machine.disks(),
            },
            Arbitration::new(Arc::clone(&arbiter), reign.claimant),
            requested,
            jobs.clone(),
            happened,
            reign.metrics.clone(),
        )?;
        let capturer = Capturer::new(machine, arbiter, limits, events, reign.metrics);
        let capturer = spawn("capture", move || capturer.run(&to_do))?;
        let driver = spawn("driver", move || driver.run())?;
        Ok(Protection {
            handle,
            driver,
            capturer,
            jobs,
            machine: PhantomData,
        })
    }
}

/// Asks the arbiter for the guest, which has not run yet.
fn claim_guest(
    machine: &impl Machine,
    arbiter: &dyn Arbiter,
    claim: Claim,
    vm: &str,
    node: &str,
) -> Result<Reign, RuntimeError> {
    let disks = machine.disks();
    // Before anything is claimed: who fails here must not be who held the guest last.
    disks.check_whole()?;
    if disks.has_replicated() && claim == Claim::Start {
        check_newest(arbiter, node)?;
    }
    let claimant = super::claimant(node);
    match arbiter.claim(claim, &claimant)? {
        Verdict::Granted(generation) => {
            disks.own()?;
            Ok(Reign {
                generation,
                claimant,
                metrics: Metrics::new(Side::Primary, vm, node),
            })
        }
        Verdict::Refused { current, holder } => Err(RuntimeError::Owned {
            holder,
            generation: current,
        }),
    }
}

/// Whether this node's own images can be the newest: nobody else ran the guest last.
fn check_newest(arbiter: &dyn Arbiter, node: &str) -> Result<(), RuntimeError> {
    let (generation, holder) = arbiter.current()?;
    if generation.0 == 0 || super::node_of(&holder) == node {
        return Ok(());
    }
    Err(RuntimeError::OlderDisks { holder, generation })
}

impl<M: Machine> Protection<M> {
    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> ProtectionHandle {
        self.handle.clone()
    }

    /// Waits until protection ends; the guest is stopped then.
    ///
    /// # Errors
    /// If the runtime failed; the guest is stopped in that case too.
    pub fn wait(self) -> Result<Ended, RuntimeError> {
        let ended = self
            .driver
            .join()
            .map_err(|_| RuntimeError::Panicked("driver"));
        // Also after a panic of the driver: a guest that nobody watches must not speak.
        let _ = self.jobs.send(CaptureJob::Stop);
        drop(self.jobs);
        if matches!(ended, Ok(Ok(Ended::Abandoned))) {
            // Storage that hangs was a reason to be impatient.
            let deadline = Instant::now() + LEAVE_BEHIND;
            while !self.capturer.is_finished() {
                if Instant::now() >= deadline {
                    return ended?;
                }
                std::thread::sleep(LOOK);
            }
        }
        self.capturer
            .join()
            .map_err(|_| RuntimeError::Panicked("capture"))?;
        ended?
    }
}

impl ProtectionHandle {
    /// Asks for a checkpoint as soon as possible.
    pub fn checkpoint(&self) {
        // A full queue means that requests for checkpoints already wait.
        let _ = self.ask_at_once(Request::Checkpoint);
    }

    /// Asks for the guest to be started over in place ([`Machine::reset`]), protected as it is. Waits while
    /// the queue of requests is full; must not be called from within an asynchronous runtime.
    pub fn reset_guest(&self) {
        // No receiver: protection has ended, and the guest with it.
        let _ = self.ask(Request::ResetGuest);
    }

    /// The guest ended by itself. Once what it has said and written has left, by the rules by which it always does,
    /// tells the backup that there is nothing to take over, and ends. If nobody acknowledges it and the arbiter does
    /// not answer either, that takes as long as it takes: calling [`ProtectionHandle::stop`] twice cuts it short.
    /// Waits while the queue of requests is full; must not be called from within an asynchronous runtime.
    pub fn guest_stopped(&self) {
        // No receiver: protection has ended already.
        let _ = self.ask(Request::GuestStopped);
    }

    /// Ends as if the guest had ended by itself, which is better seen to first: what it says from now on may or may
    /// not leave. Asked for again, ends at once: what has not left is dropped. Waits while the queue of requests is
    /// full; must not be called from within an asynchronous runtime. Returns whether the request was taken: who has
    /// ended takes none.
    pub fn stop(&self) -> bool {
        self.ask(Request::Stop)
    }
}
