//! Runs and protects a guest: the public face of the primary side. The loop itself is in
//! [`driver`].

mod driver;
mod output_signal;
mod shared_disks;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use understudy_transport::Endpoint;

use self::driver::Driver;
use super::arbitration::Arbitration;
use super::capture::{Capturer, Command};
use super::metrics::Metrics;
use super::standby::Promoted;
use super::status::{Role, Status};
use super::{HeartbeatPath, Limits, RuntimeError};
use crate::arbiter::{Arbiter, Claim, Verdict};
use crate::core::policy::Policy;
use crate::disk::DiskSet;
use crate::ids::Generation;
use crate::ports::{Machine, OutputGate};

/// Told to end at once, it waits so long for a thread that may be waiting for storage.
const LEAVE_BEHIND: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// Requests of people wait in a queue of this length.
const REQUESTS_MAX: usize = 64;

/// Entry to the primary side; see [`Primary::builder`].
#[derive(Debug)]
pub struct Primary;

/// Collects what a primary needs.
pub struct PrimaryBuilder<M: Machine> {
    machine: M,
    vm: String,
    node: String,
    backup: Option<Endpoint>,
    heartbeat: Option<HeartbeatPath>,
    arbiter: Option<Arc<dyn Arbiter>>,
    policy: Policy,
    limits: Limits,
    promoted: Option<(Generation, Metrics, String)>,
    start_over: bool,
}

/// A guest that runs, protected whenever there is a backup.
pub struct Protection<M: Machine> {
    handle: ProtectionHandle,
    driver: JoinHandle<Result<Ended, RuntimeError>>,
    capturer: JoinHandle<M>,
    commands: std::sync::mpsc::SyncSender<Command>,
}

/// Looks at a [`Protection`] and makes requests, from any thread.
#[derive(Clone)]
pub struct ProtectionHandle {
    requests: mpsc::Sender<Request>,
    metrics: Metrics,
    gate: Arc<dyn OutputGate>,
    disks: DiskSet,
}

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

#[derive(Debug)]
pub(super) enum Request {
    Checkpoint,
    ResetGuest,
    GuestStopped,
    Stop,
}

impl Primary {
    /// Starts to describe a primary for `machine`, which has not run yet.
    pub fn builder<M: Machine>(machine: M) -> PrimaryBuilder<M> {
        PrimaryBuilder {
            machine,
            vm: "vm".into(),
            node: "primary".into(),
            backup: None,
            heartbeat: None,
            arbiter: None,
            policy: Policy::default(),
            limits: Limits::default(),
            promoted: None,
            start_over: false,
        }
    }

    /// Starts to describe a primary for a machine that was promoted and runs already.
    pub fn promoted<M: Machine>(promoted: Promoted<M>) -> PrimaryBuilder<M> {
        PrimaryBuilder {
            promoted: Some((promoted.generation, promoted.metrics, promoted.claimant)),
            ..Self::builder(promoted.machine)
        }
    }
}

impl<M: Machine> PrimaryBuilder<M> {
    /// Name of the virtual machine: equal on both sides. Default `vm`.
    #[must_use]
    pub fn vm(mut self, name: impl Into<String>) -> Self {
        self.vm = name.into();
        self
    }

    /// This side's name, for people. Default `primary`.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.node = name.into();
        self
    }

    /// Where a standby listens. Without it the guest runs unprotected.
    #[must_use]
    pub fn backup(mut self, endpoint: Endpoint) -> Self {
        self.backup = Some(endpoint);
        self
    }

    /// A separate path for heartbeats.
    #[must_use]
    pub fn heartbeat(mut self, path: HeartbeatPath) -> Self {
        self.heartbeat = Some(path);
        self
    }

    /// Who decides who may run alone. Required.
    #[must_use]
    pub fn arbiter(mut self, arbiter: Arc<dyn Arbiter>) -> Self {
        self.arbiter = Some(arbiter);
        self
    }

    /// When epochs end and when a silent backup is lost.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Starts the guest from nothing even if a standby may have a copy of it, which is given up.
    #[must_use]
    pub fn start_over(mut self) -> Self {
        self.start_over = true;
        self
    }

    /// Bounds of buffers.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Claims the guest, runs it, and protects it: initial synchronisation, then epochs. Returns as
    /// soon as the guest runs.
    ///
    /// # Errors
    /// If the arbiter refuses or cannot be asked, or the guest cannot be run.
    pub fn protect(self) -> Result<Protection<M>, RuntimeError> {
        let arbiter = self
            .arbiter
            .ok_or_else(|| RuntimeError::Setting("a primary needs an arbiter".into()))?;
        let mut machine = self.machine;
        let (generation, metrics, claimant) = match self.promoted {
            Some(promoted) => promoted,
            None => {
                let claimant = super::claimant(&self.node);
                let disks = machine.disks();
                // Before anything is claimed: who fails here must not be who held the guest last.
                disks.check_whole()?;
                if disks.has_replicated() && !self.start_over {
                    check_newest(arbiter.as_ref(), &self.node)?;
                }
                let claim = if self.start_over {
                    Claim::StartOver
                } else {
                    Claim::Start
                };
                let generation = match arbiter.claim(claim, &claimant)? {
                    Verdict::Granted(generation) => generation,
                    Verdict::Refused { current, holder } => {
                        return Err(RuntimeError::Owned {
                            holder,
                            generation: current,
                        });
                    }
                };
                disks.own()?;
                machine.run()?;
                (
                    generation,
                    Metrics::new(Role::Primary, &self.vm, &self.node),
                    claimant,
                )
            }
        };
        let (requests, requested) = mpsc::channel(REQUESTS_MAX);
        // The core has one capture under way at a time: a handful of commands is all that can wait.
        let (commands, commanded) = std::sync::mpsc::sync_channel(64);
        // Answers to commands: bounded by the commands.
        let (events, happened) = mpsc::unbounded_channel();
        let (gate, disks) = (machine.gate(), machine.disks());
        let driver = Driver::new(
            driver::Setup {
                vm: self.vm,
                node: self.node,
                backup: self.backup,
                heartbeat: self.heartbeat,
                policy: self.policy,
                limits: self.limits.clone(),
                generation,
                fingerprint: machine.fingerprint(),
                layout: machine.memory().layout().clone(),
                gate: Arc::clone(&gate),
                disks: disks.clone(),
            },
            Arbitration::new(Arc::clone(&arbiter), claimant),
            requested,
            commands.clone(),
            happened,
            metrics.clone(),
        )?;
        let capturer = Capturer::new(machine, arbiter, self.limits, events, metrics.clone());
        let capturer = spawn("capture", move || capturer.run(&commanded))?;
        let driver = spawn("driver", move || driver.run())?;
        Ok(Protection {
            handle: ProtectionHandle {
                requests,
                metrics,
                gate,
                disks,
            },
            driver,
            capturer,
            commands,
        })
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

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, RuntimeError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|source| RuntimeError::System {
            what: "start a thread",
            source,
        })
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
        let _ = self.commands.send(Command::Stop);
        drop(self.commands);
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
        let machine = self
            .capturer
            .join()
            .map_err(|_| RuntimeError::Panicked("capture"))?;
        drop(machine);
        ended?
    }
}

impl ProtectionHandle {
    /// How things stand.
    #[must_use]
    pub fn status(&self) -> Status {
        let status = self.metrics.status();
        Status {
            output: self.gate.counts(),
            disks: status.disks.with(&self.disks),
            ..status
        }
    }

    /// Asks for a checkpoint as soon as possible.
    pub fn checkpoint(&self) {
        // A full queue means that requests for checkpoints already wait.
        let _ = self.requests.try_send(Request::Checkpoint);
    }

    /// Asks for the guest to be started over in place ([`Machine::reset`]), protected as it is. Waits while
    /// the queue of requests is full; must not be called from within an asynchronous runtime.
    pub fn reset_guest(&self) {
        // No receiver: protection has ended, and the guest with it.
        let _ = self.requests.blocking_send(Request::ResetGuest);
    }

    /// The guest ended by itself. Once what it has said and written has left, by the rules by which it always does,
    /// tells the backup that there is nothing to take over, and ends. If nobody acknowledges it and the arbiter does
    /// not answer either, that takes as long as it takes: calling [`ProtectionHandle::stop`] twice cuts it short.
    /// Waits while the queue of requests is full; must not be called from within an asynchronous runtime.
    pub fn guest_stopped(&self) {
        // No receiver: protection has ended already.
        let _ = self.requests.blocking_send(Request::GuestStopped);
    }

    /// Ends as if the guest had ended by itself, which is better seen to first: what it says from now on may or may
    /// not leave. Asked for again, ends at once: what has not left is dropped. Waits while the queue of requests is
    /// full; must not be called from within an asynchronous runtime. Returns whether the request was taken: who has
    /// ended takes none.
    pub fn stop(&self) -> bool {
        self.requests.blocking_send(Request::Stop).is_ok()
    }
}
