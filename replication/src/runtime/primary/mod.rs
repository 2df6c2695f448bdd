//! Runs and protects a guest: the public interface of the primary side. [`driver`] has the loop.

mod answers;
mod claim;
mod driver;
mod leaving;
mod output_signal;
mod requests;
mod retry;
mod shared_disks;
mod told;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use understudy_transport::Endpoint;

use self::claim::{Start, claim_guest};
use self::driver::Driver;
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
use crate::arbiter::Arbiter;
use crate::ids::Generation;
use crate::ports::Machine;

/// How long to wait for the capture thread, which may wait for storage or the machine, when protection is
/// to end at once, or the guest is another side's.
const LEAVE_BEHIND: Duration = Duration::from_secs(2);
/// How often that thread is checked.
const LOOK: Duration = Duration::from_millis(10);
/// Length of the capture thread's job queue. The core has one capture in progress at a time, so
/// only a handful of jobs can wait.
const JOBS_MAX: usize = 64;

/// Entry to the primary side; see [`Primary::attach`].
#[derive(Debug)]
pub struct Primary;

/// Collects what a primary needs.
pub type PrimaryBuilder<M> = SideBuilder<PrimaryPart<M>>;

/// The settings that only a primary has.
pub struct PrimaryPart<M: Machine> {
    machine: StoppedOnDrop<M>,
    backup: Option<Endpoint>,
    /// What it runs under, if it already has a generation.
    reign: Option<Reign>,
    runs: bool,
    start: Start,
}

/// Where the machine to be protected comes from.
#[non_exhaustive]
pub enum Origin<M: Machine> {
    /// It has never run: [`PrimaryBuilder::protect`] starts it.
    Fresh(M),
    /// It runs, and no arbiter has been asked for it yet.
    Running(M),
    /// It has just taken over. Names, arbiter, policy and limits are those of the standby unless
    /// set again.
    Promoted(Promoted<M>),
    /// It was protected before. It keeps its settings in the same way.
    Unprotected(Unprotected<M>),
}

/// Why a guest is not protected, and its unchanged machine.
pub struct NotProtected<M: Machine> {
    /// Why.
    pub error: RuntimeError,
    machine: Option<StoppedOnDrop<M>>,
}

/// A running guest, protected whenever there is a backup.
pub struct Protection<M: Machine> {
    handle: ProtectionHandle,
    driver: JoinHandle<Result<Finish, RuntimeError>>,
    capturer: JoinHandle<Option<M>>,
    jobs: std::sync::mpsc::SyncSender<CaptureJob>,
    reign: Reign,
}

/// Reads the status of a [`Protection`] and makes requests, from any thread.
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
    /// See [`ProtectionHandle::hand_over`].
    HandOver(String),
    /// See [`ProtectionHandle::machine_broke`].
    MachineBroke(String),
    /// See [`ProtectionHandle::guest_stopped`].
    GuestStopped,
    /// See [`ProtectionHandle::stop`].
    Stop,
}

impl Primary {
    /// Begins to configure a primary for a machine of any origin.
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
                start: Start::Normal,
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
    /// Where a standby listens. Without this, the guest runs unprotected.
    #[must_use]
    pub fn backup(mut self, endpoint: Endpoint) -> Self {
        self.part.backup = Some(endpoint);
        self
    }

    /// Starts the guest from nothing even if a standby may have a copy of it. That copy is given
    /// up.
    #[must_use]
    pub fn start_over(mut self) -> Self {
        self.part.start = Start::Over;
        self
    }

    /// Starts the guest although the arbiter notes that a standby may have a copy of it: that one
    /// was asked while the generation `known` was in force, and has none. See
    /// [`Outcome::Starts`](super::Outcome::Starts).
    #[must_use]
    pub fn restart(mut self, known: Generation) -> Self {
        self.part.start = Start::Restart { known };
        self
    }

    /// Claims the guest unless this side already holds it, runs it unless it is running, and
    /// protects it: initial synchronisation, then epochs. Returns as soon as the guest runs. If the
    /// arbiter's record says that others may have something newer of a guest that runs nowhere, the
    /// backup is asked first; see [`start`](crate::core::start).
    ///
    /// # Errors
    /// If the arbiter refuses or cannot be asked, or the guest cannot be run. The machine is then
    /// stopped; [`PrimaryBuilder::try_protect`] gives it back instead.
    pub fn protect(self) -> Result<Protection<M>, RuntimeError> {
        self.try_protect().map_err(|refused| refused.error)
    }

    /// Claims the guest as [`PrimaryBuilder::protect`] does and runs it, but does not protect it. As
    /// long as the returned value exists, nobody else is granted the guest.
    ///
    /// # Errors
    /// If the arbiter refuses or cannot be asked, or the guest cannot be run.
    pub fn run_alone(self) -> Result<Unprotected<M>, RuntimeError> {
        let (settings, mut part) = (self.settings, self.part);
        let arbiter = required(Side::Primary, "an arbiter", self.arbiter)?;
        let reign = Box::new(part.claim(settings, arbiter)?);
        Ok(Unprotected {
            machine: part.machine.hand_on(),
            reign,
        })
    }

    /// Like [`PrimaryBuilder::protect`], but gives back a machine that cannot be protected,
    /// unchanged: a running one keeps running.
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
    /// The machine; `None` if it had to be stopped because the host could not start a thread for
    /// it.
    pub fn into_machine(self) -> Option<M> {
        self.machine.map(StoppedOnDrop::hand_on)
    }
}

impl<M: Machine> PrimaryPart<M> {
    /// Makes sure that the machine may run and does.
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
        let backup = self.backup.as_ref();
        let reign = claim_guest(&*self.machine, arbiter, self.start, backup, settings)?;
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
    let (handle, requested) = SideHandle::new(&*machine, reign.metrics.clone(), ());
    let driver = Driver::new(
        driver::Setup {
            reign: reign.clone(),
            backup,
            fingerprint: machine.fingerprint(),
            layout: machine.memory().layout().clone(),
            gate: machine.gate(),
            disks: machine.disks().primary(),
            speed: machine.speed(),
        },
        requested,
        jobs.clone(),
        happened,
    )?;
    let capturer = Capturer::new(machine, &reign, events);
    let capturer = spawn("capture", move || capturer.run(&to_do))?;
    let end = EndTold::new(reign.metrics.clone());
    let settings = reign.settings.clone();
    let driver = spawn("driver", move || {
        let _end = end;
        settings.set_driver_up();
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

impl<M: Machine> Protection<M> {
    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> ProtectionHandle {
        self.handle.clone()
    }

    /// Waits until protection ends. The guest is then stopped.
    ///
    /// # Errors
    /// If the runtime failed. The guest is stopped then, too.
    pub fn wait(self) -> Result<Ended, RuntimeError> {
        match self.finish()? {
            (Finish::Ended(ended), _) => Ok(ended),
            (Finish::Unprotected(_), _) => unreachable!("only `unprotect` asks for that"),
        }
    }

    /// Ends protection and gives the machine back, running. The guest goes on alone, with this side
    /// as the arbiter's holder. The backup is told, gives its copy up and waits for another
    /// primary. Waits for the arbiter's grant, because without it the backup might take over.
    /// Meanwhile the output of a guest that was protected is still released epoch by epoch. Must
    /// not be called from within an asynchronous runtime.
    ///
    /// # Errors
    /// If the runtime failed, or protection ended in another way meanwhile. The guest is then
    /// stopped.
    pub fn unprotect(self) -> Result<Unprotected<M>, RuntimeError> {
        // If the request is not taken, protection has ended; the code below finds out how.
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
        // Even after a panic of the driver: a guest that nobody watches must not send output.
        let _ = self.jobs.send(CaptureJob::Stop);
        drop(self.jobs);
        let is_here = |ended: &Ended| *ended == Ended::GuestStopped;
        if matches!(&finish, Ok(Ok(Finish::Ended(ended))) if !is_here(ended)) {
            // Storage or a machine that hangs may be why. What that thread still does is of no use to anybody.
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

    /// Protects the guest with another backup from now on, or with none. Once the arbiter has
    /// granted the guest to this side alone, the old backup is told and gives its copy up. Waits
    /// while the queue of requests is full. Must not be called from within an asynchronous runtime.
    /// Returns whether the request was taken; it is not once protection has ended.
    pub fn set_backup(&self, backup: Option<Endpoint>) -> bool {
        self.ask(Request::SetBackup(backup))
    }

    /// Hands the guest over to the backup, for this reason. The epoch ends, then the backup asks the
    /// arbiter for the guest. Once that is granted, protection ends as
    /// [`Ended::HandedOver`]. If it cannot be, [`EventKind::NotHandedOver`] says why, and the guest
    /// goes on here. Waits while the queue of requests is full. Must not be called from within an
    /// asynchronous runtime. Returns whether the request was taken; it is not once protection has
    /// ended.
    ///
    /// [`EventKind::NotHandedOver`]: super::EventKind::NotHandedOver
    pub fn hand_over(&self, why: impl Into<String>) -> bool {
        self.ask(Request::HandOver(why.into()))
    }

    /// Reports that something of this host failed, so that the machine can neither go on nor be
    /// captured any more. Nothing of it is captured from now on. If the backup has a whole copy, the
    /// guest goes on there from the last epoch, and protection ends as [`Ended::HandedOver`] or
    /// [`Ended::LeftToBackup`]. Without one, [`EventKind::NotHandedOver`] comes, and the caller is to
    /// call [`ProtectionHandle::guest_stopped`]. Waits while the queue of requests is full. Must not
    /// be called from within an asynchronous runtime.
    ///
    /// [`EventKind::NotHandedOver`]: super::EventKind::NotHandedOver
    pub fn machine_broke(&self, why: impl Into<String>) {
        // Fails only if protection has ended already.
        let _ = self.ask(Request::MachineBroke(why.into()));
    }

    /// Asks for a reset of the guest in place ([`Machine::reset`]); protection goes on. Waits while
    /// the queue of requests is full. Must not be called from within an asynchronous runtime.
    pub fn reset_guest(&self) {
        // Fails only if protection has ended, and the guest with it.
        let _ = self.ask(Request::ResetGuest);
    }

    /// Reports that the guest ended by itself. Its last output and writes still leave by the usual
    /// rules. Then the backup is told that there is nothing to take over, and protection ends. This
    /// has no deadline while neither the backup nor the arbiter answers; calling
    /// [`ProtectionHandle::stop`] twice cuts it short. Waits while the queue of requests is full.
    /// Must not be called from within an asynchronous runtime.
    pub fn guest_stopped(&self) {
        // Fails only if protection has ended already.
        let _ = self.ask(Request::GuestStopped);
    }

    /// Ends protection as if the guest had ended by itself. Stop the guest first: what it sends
    /// from now on may not leave. A second call ends at once and drops what has not left. Waits
    /// while the queue of requests is full. Must not be called from within an asynchronous runtime.
    /// Returns whether the request was taken; it is not once protection has ended.
    pub fn stop(&self) -> bool {
        self.ask(Request::Stop)
    }
}
