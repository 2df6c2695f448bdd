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
use super::arbitration::node_of;
use super::capture::{CaptureJob, Capturer};
use super::ended::Ended;
use super::error::RuntimeError;
use super::metrics::EndTold;
use super::reign::{Promoted, Reign, Unprotected};
use super::settings::Settings;
use super::side::{SideBuilder, SideHandle, required};
use super::status::Side;
use super::stopped_on_drop::StoppedOnDrop;
use super::threads::spawn;
use crate::arbiter::{Arbiter, Claim, Verdict};
use crate::ids::Generation;
use crate::ports::Machine;

/// When protection is to end at once: how long a thread is waited for that may wait for storage.
const LEAVE_BEHIND: Duration = Duration::from_secs(2);
/// How often that thread is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Jobs of the capture thread wait in a queue of this length. The core has one capture under way at a
/// time, so a handful is all that can wait.
const JOBS_MAX: usize = 64;

/// Entry to the primary side; see [`Primary::attach`].
#[derive(Debug)]
pub struct Primary;

/// Collects what a primary needs.
pub type PrimaryBuilder<M> = SideBuilder<PrimaryPart<M>>;

/// What only a primary has to know.
pub struct PrimaryPart<M: Machine> {
    machine: StoppedOnDrop<M>,
    backup: Option<Endpoint>,
    /// Under what it runs, if it was given a generation already.
    reign: Option<Reign>,
    runs: bool,
    start_over: bool,
}

/// Where the machine to be protected comes from.
#[non_exhaustive]
pub enum Origin<M: Machine> {
    /// It has never run: [`PrimaryBuilder::protect`] runs it.
    Fresh(M),
    /// It runs, and no arbiter has been asked for it so far.
    Running(M),
    /// It has just taken over. Names, arbiter, policy and limits are those of the standby unless set anew.
    Promoted(Promoted<M>),
    /// It was protected before. The same holds.
    Unprotected(Unprotected<M>),
}

/// Why a guest is not protected, and its machine as it was.
pub struct NotProtected<M: Machine> {
    /// Why.
    pub error: RuntimeError,
    machine: Option<StoppedOnDrop<M>>,
}

/// A guest that runs, protected whenever there is a backup.
pub struct Protection<M: Machine> {
    handle: ProtectionHandle,
    driver: JoinHandle<Result<Finish, RuntimeError>>,
    capturer: JoinHandle<Option<M>>,
    jobs: std::sync::mpsc::SyncSender<CaptureJob>,
    reign: Reign,
}

/// Looks at a [`Protection`] and makes requests, from any thread.
pub type ProtectionHandle = SideHandle<Request>;

/// How the driver's work ended.
pub(super) enum Finish {
    Ended(Ended),
    /// The guest goes on under this generation, without this runtime.
    Unprotected(Generation),
}

/// What a [`ProtectionHandle`] asks for.
#[derive(Debug)]
pub enum Request {
    /// See [`ProtectionHandle::checkpoint`].
    Checkpoint,
    /// See [`ProtectionHandle::reset_guest`].
    ResetGuest,
    /// See [`ProtectionHandle::set_backup`].
    SetBackup(Option<Endpoint>),
    /// See [`Protection::unprotect`].
    Unprotect,
    /// See [`ProtectionHandle::guest_stopped`].
    GuestStopped,
    /// See [`ProtectionHandle::stop`].
    Stop,
}

impl Primary {
    /// Starts to describe a primary for a machine, wherever it comes from.
    pub fn attach<M: Machine>(origin: Origin<M>) -> PrimaryBuilder<M> {
        let (machine, reign, runs) = match origin {
            Origin::Fresh(machine) => (machine, None, false),
            Origin::Running(machine) => (machine, None, true),
            Origin::Promoted(Promoted { machine, reign, .. })
            | Origin::Unprotected(Unprotected { machine, reign }) => (machine, Some(*reign), true),
        };
        let kept = reign
            .as_ref()
            .map(|reign| (reign.settings.clone(), Arc::clone(&reign.arbiter)));
        let mut builder = SideBuilder::new(
            "primary",
            PrimaryPart {
                machine: StoppedOnDrop::new(machine),
                backup: None,
                reign,
                runs,
                start_over: false,
            },
        );
        if let Some((settings, arbiter)) = kept {
            builder.settings = settings;
            builder.arbiter = Some(arbiter);
        }
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

    /// Claims the guest unless it is held already, runs it unless it runs, and protects it: initial
    /// synchronisation, then epochs. Returns as soon as the guest runs.
    ///
    /// # Errors
    /// If the arbiter refuses or cannot be asked, or the guest cannot be run. The machine is stopped then;
    /// [`PrimaryBuilder::try_protect`] gives it back instead.
    pub fn protect(self) -> Result<Protection<M>, RuntimeError> {
        self.try_protect().map_err(|refused| refused.error)
    }

    /// As [`PrimaryBuilder::protect`], but a machine that cannot be protected is given back as it was: one
    /// that runs goes on.
    ///
    /// # Errors
    /// As [`PrimaryBuilder::protect`].
    pub fn try_protect(self) -> Result<Protection<M>, NotProtected<M>> {
        let (settings, mut part) = (self.settings, self.part);
        let claimed = required(Side::Primary, "an arbiter", self.arbiter)
            .and_then(|arbiter| part.claim(settings, arbiter));
        match claimed {
            Ok(reign) => start(part.backup, part.machine, reign).map_err(|error| {
                let machine = None;
                NotProtected { error, machine }
            }),
            Err(error) => {
                let machine = Some(part.machine);
                Err(NotProtected { error, machine })
            }
        }
    }
}

impl<M: Machine> NotProtected<M> {
    /// The machine; `None` if it had to be stopped, as the host could not start a thread for it.
    pub fn into_machine(self) -> Option<M> {
        self.machine.map(StoppedOnDrop::hand_on)
    }
}

impl<M: Machine> PrimaryPart<M> {
    /// Makes sure that the machine runs, and may.
    fn claim(
        &mut self,
        settings: Settings,
        arbiter: Arc<dyn Arbiter>,
    ) -> Result<Reign, RuntimeError> {
        if let Some(reign) = self.reign.take() {
            return Ok(Reign {
                settings,
                arbiter,
                ..reign
            });
        }
        let claim = if self.start_over {
            Claim::StartOver
        } else {
            Claim::Start
        };
        let reign = claim_guest(&*self.machine, arbiter, claim, settings)?;
        if !self.runs {
            self.machine.run()?;
        }
        Ok(reign)
    }
}

/// Starts the threads.
fn start<M: Machine>(
    backup: Option<Endpoint>,
    machine: StoppedOnDrop<M>,
    reign: Reign,
) -> Result<Protection<M>, RuntimeError> {
    let (jobs, to_do) = std::sync::mpsc::sync_channel(JOBS_MAX);
    // Bounded by the jobs.
    let (events, happened) = mpsc::unbounded_channel();
    let (handle, requested) = SideHandle::new(&*machine, reign.metrics.clone());
    let driver = Driver::new(
        driver::Setup {
            reign: reign.clone(),
            backup,
            fingerprint: machine.fingerprint(),
            layout: machine.memory().layout().clone(),
            gate: machine.gate(),
            disks: machine.disks().primary(),
        },
        requested,
        jobs.clone(),
        happened,
    )?;
    let capturer = Capturer::new(machine, &reign, events);
    let capturer = spawn("capture", move || capturer.run(&to_do))?;
    let end = EndTold::new(reign.metrics.clone());
    let driver = spawn("driver", move || {
        let _end = end;
        driver.run()
    })?;
    Ok(Protection {
        handle,
        driver,
        capturer,
        jobs,
        reign,
    })
}

/// Asks the arbiter for the guest.
fn claim_guest(
    machine: &impl Machine,
    arbiter: Arc<dyn Arbiter>,
    claim: Claim,
    settings: Settings,
) -> Result<Reign, RuntimeError> {
    let disks = machine.disks();
    // Before anything is claimed: who fails here must not be who held the guest last.
    disks.check_whole()?;
    if disks.has_replicated() && claim == Claim::Start {
        check_newest(arbiter.as_ref(), &settings.node)?;
    }
    let reign = Reign::new(Side::Primary, settings, arbiter, Generation(0));
    match reign.arbiter.claim(claim, &reign.claimant)? {
        Verdict::Granted(generation) => {
            disks.claim_images()?;
            Ok(Reign {
                generation,
                ..reign
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
    if generation.0 == 0 || node_of(&holder) == node {
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
        match self.finish()? {
            (Finish::Ended(ended), _) => Ok(ended),
            (Finish::Unprotected(_), _) => unreachable!("only `unprotect` asks for that"),
        }
    }

    /// Ends protection and gives the machine back, running. The guest goes on alone as the arbiter's
    /// holder; the backup is told, gives its copy up and waits for another primary. Waits for the
    /// arbiter's grant, as without it the backup might take over; for as long as that takes, output of
    /// a guest that was protected is still released epoch by epoch. Must not be called from within an
    /// asynchronous runtime.
    ///
    /// # Errors
    /// If the runtime failed, or protection ended otherwise meanwhile; the guest is stopped then.
    pub fn unprotect(self) -> Result<Unprotected<M>, RuntimeError> {
        // Not taken: protection has ended, and how is found below.
        let _ = self.handle.ask(Request::Unprotect);
        let reign = self.reign.clone();
        match self.finish()? {
            (Finish::Unprotected(generation), Some(machine)) => Ok(Unprotected {
                machine,
                reign: Box::new(Reign {
                    generation,
                    ..reign
                }),
            }),
            (Finish::Unprotected(_), None) => Err(RuntimeError::Panicked("capture")),
            (Finish::Ended(ended), _) => Err(RuntimeError::Ended(ended)),
        }
    }

    /// Waits for both threads.
    fn finish(self) -> Result<(Finish, Option<M>), RuntimeError> {
        let finish = self
            .driver
            .join()
            .map_err(|_| RuntimeError::Panicked("driver"));
        // Also after a panic of the driver: a guest that nobody watches must not speak.
        let _ = self.jobs.send(CaptureJob::Stop);
        drop(self.jobs);
        if matches!(finish, Ok(Ok(Finish::Ended(Ended::Abandoned)))) {
            // Storage that hangs was a reason to be impatient.
            let deadline = Instant::now() + LEAVE_BEHIND;
            while !self.capturer.is_finished() {
                if Instant::now() >= deadline {
                    return Ok((finish??, None));
                }
                std::thread::sleep(LOOK);
            }
        }
        let machine = self
            .capturer
            .join()
            .map_err(|_| RuntimeError::Panicked("capture"))?;
        Ok((finish??, machine))
    }
}

impl ProtectionHandle {
    /// Asks for a checkpoint as soon as possible.
    pub fn checkpoint(&self) {
        // A full queue means that requests for checkpoints already wait.
        let _ = self.ask_at_once(Request::Checkpoint);
    }

    /// Protects the guest with another backup from now on, or with none. The one before is told and gives
    /// its copy up, once the arbiter has granted the guest to this side alone. Waits while the queue of
    /// requests is full; must not be called from within an asynchronous runtime. Returns whether the
    /// request was taken: protection that has ended takes none.
    pub fn set_backup(&self, backup: Option<Endpoint>) -> bool {
        self.ask(Request::SetBackup(backup))
    }

    /// Asks for the guest to be started over in place ([`Machine::reset`]), protected as it is. Waits while
    /// the queue of requests is full; must not be called from within an asynchronous runtime.
    pub fn reset_guest(&self) {
        // No receiver: protection has ended, and the guest with it.
        let _ = self.ask(Request::ResetGuest);
    }

    /// The guest ended by itself. What it said and wrote last still leaves by the usual rules. Then
    /// the backup is told that there is nothing to take over, and protection ends. This has no
    /// deadline while neither the backup nor the arbiter answers: calling
    /// [`ProtectionHandle::stop`] twice cuts it short. Waits while the queue of requests is full;
    /// must not be called from within an asynchronous runtime.
    pub fn guest_stopped(&self) {
        // No receiver: protection has ended already.
        let _ = self.ask(Request::GuestStopped);
    }

    /// Ends as if the guest had ended by itself. Stop the guest first: what it says from now on may
    /// not leave. A second call ends at once and drops what has not left. Waits while the queue of
    /// requests is full; must not be called from within an asynchronous runtime. Returns whether
    /// the request was taken: protection that has ended takes none.
    pub fn stop(&self) -> bool {
        self.ask(Request::Stop)
    }
}
