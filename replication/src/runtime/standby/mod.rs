//! Keeps a second copy of a guest and takes over: the public interface of the standby side.
//! [`driver`] has the loop.

mod answers;
mod disks;
mod driver;
mod ending;
mod health;
mod promotion;
mod strangers;
mod trials;

use std::thread::JoinHandle;

use understudy_transport::Endpoint;

use self::driver::Driver;
use self::health::HealthTeller;
use super::error::RuntimeError;
use super::metrics::EndTold;
use super::reign::{Promoted, Reign, check_history};
use super::side::{SideBuilder, SideHandle, required};
use super::status::Side;
use super::stopped_on_drop::StoppedOnDrop;
use super::threads::spawn;
use crate::core::message::Trouble;
use crate::core::start::Starts;
use crate::ids::Generation;
use crate::ports::Machine;

/// Entry to the standby side; see [`Standby::builder`].
#[derive(Debug)]
pub struct Standby;

/// Collects what a standby needs.
pub type StandbyBuilder<M> = SideBuilder<StandbyPart<M>>;

/// The settings that only a standby has.
pub struct StandbyPart<M: Machine> {
    machine: StoppedOnDrop<M>,
    listen: Option<Endpoint>,
    starts: Starts,
    other: Option<Endpoint>,
    gives_up_disks: bool,
}

/// A standby at work.
pub struct StandbyRun<M: Machine> {
    handle: StandbyHandle,
    endpoint: Endpoint,
    driver: JoinHandle<Result<Outcome<M>, RuntimeError>>,
}

/// Reads the status of a standby and makes requests, from any thread.
pub type StandbyHandle = SideHandle<Request, HealthTeller>;

/// How a standby's work ended.
// A process has only one of these, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[non_exhaustive]
pub enum Outcome<M: Machine> {
    /// It now owns the guest, which runs.
    Promoted(Promoted<M>),
    /// It was asked to stop. A connected primary was told so.
    Stopped,
    /// It has no copy, and is to start the guest, which nobody runs and nobody has a copy of. Hand
    /// the generation to [`PrimaryBuilder::restart`](super::PrimaryBuilder::restart). Only if
    /// [`StandbyBuilder::starts`] says so.
    Starts {
        /// The generation in force when the other side was asked.
        known: Generation,
    },
}

/// What a [`StandbyHandle`] asks for.
#[derive(Debug)]
pub enum Request {
    /// See [`StandbyHandle::promote`].
    Promote,
    /// See [`StandbyHandle::stop`].
    Stop,
}

impl Standby {
    /// Begins to configure a standby that keeps the copy in `machine`, which has not run yet.
    pub fn builder<M: Machine>(machine: M) -> StandbyBuilder<M> {
        let part = StandbyPart {
            machine: StoppedOnDrop::new(machine),
            listen: None,
            starts: Starts::Never,
            other: None,
            gives_up_disks: false,
        };
        SideBuilder::new("standby", part)
    }
}

impl<M: Machine> StandbyBuilder<M> {
    /// Where to wait for the primary. Required.
    #[must_use]
    pub fn listen(mut self, endpoint: Endpoint) -> Self {
        self.part.listen = Some(endpoint);
        self
    }

    /// Whether this side starts the guest from its disks when it has no copy and nobody else runs
    /// it, after it has asked the side that listens at `other`.
    #[must_use]
    pub fn starts(mut self, starts: Starts, other: Option<Endpoint>) -> Self {
        (self.part.starts, self.part.other) = (starts, other);
        self
    }

    /// What the disks hold is given up, also if it is of a guest of another arbiter.
    #[must_use]
    pub fn gives_up_disks(mut self) -> Self {
        self.part.gives_up_disks = true;
        self
    }

    /// Listens and starts to work. Returns as soon as a primary can connect.
    ///
    /// # Errors
    /// If the endpoint or the heartbeat address cannot be bound, the arbiter cannot be asked or is not
    /// the one that the disks know, or a setting is missing.
    pub fn start(self) -> Result<StandbyRun<M>, RuntimeError> {
        let arbiter = required(Side::Standby, "an arbiter", self.arbiter)?;
        let what = "an endpoint to listen on";
        let listen = required(Side::Standby, what, self.part.listen)?;
        let known = arbiter.record()?;
        if !self.part.gives_up_disks {
            check_history(&*self.part.machine.disks(), &known)?;
        }
        let reign = Reign::new(Side::Standby, self.settings, arbiter, known);
        let (health, health_news) = health::channel();
        let (handle, requested) =
            SideHandle::new(&*self.part.machine, reign.metrics.clone(), health);
        let (ready, listening) = std::sync::mpsc::sync_channel(1);
        let end = EndTold::new(reign.metrics.clone());
        let setup = driver::Setup {
            reign,
            listen,
            starts: self.part.starts,
            other: self.part.other,
        };
        let driver = Driver::new(setup, self.part.machine, requested, health_news)?;
        let driver = spawn("driver", move || {
            driver.setup.reign.settings.set_driver_up();
            let outcome = driver.run(&ready);
            if matches!(outcome, Ok(Outcome::Promoted(_))) {
                end.goes_on();
            }
            outcome
        })?;
        match listening.recv() {
            Ok(endpoint) => Ok(StandbyRun {
                handle,
                endpoint,
                driver,
            }),
            // The driver ended before it listened. Its error says why.
            Err(_) => match driver.join() {
                Ok(Err(error)) => Err(error),
                _ => Err(RuntimeError::Panicked("driver")),
            },
        }
    }
}

impl<M: Machine> StandbyRun<M> {
    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> StandbyHandle {
        self.handle.clone()
    }

    /// Where it listens, with the actual port if the configured one was 0.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits until this side is promoted or stopped on request.
    ///
    /// # Errors
    /// If the standby cannot go on.
    pub fn await_promotion(self) -> Result<Outcome<M>, RuntimeError> {
        self.driver
            .join()
            .map_err(|_| RuntimeError::Panicked("driver"))?
    }
}

impl StandbyHandle {
    /// Asks for promotion now, although the primary lives. The arbiter decides. Returns whether the
    /// request was taken.
    pub fn promote(&self) -> bool {
        self.ask_at_once(Request::Promote)
    }

    /// Says all that fails on this host of what the guest would need here; what is not named works.
    /// The primary is told, see [`EventKind::BackupHealth`], now and in each later session. Of more
    /// than [`TROUBLES_MAX`](crate::core::message::TROUBLES_MAX), the last one stands for the rest
    /// ([`Trouble::is_further`]). Never waits: what comes before this side has looked
    /// at the last one takes its place. Returns whether it was taken; it is not once the standby has
    /// ended.
    ///
    /// [`EventKind::BackupHealth`]: super::EventKind::BackupHealth
    pub fn report_health(&self, troubles: Vec<Trouble>) -> bool {
        self.newest.tell(Trouble::bounded(troubles))
    }

    /// Ends the standby. Waits while the queue of requests is full. Must not be called from within
    /// an asynchronous runtime. Returns whether the request was taken; it is not once the standby
    /// has ended, for example by its promotion.
    pub fn stop(&self) -> bool {
        self.ask(Request::Stop)
    }
}
