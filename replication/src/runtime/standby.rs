//! Keeps a second copy of a guest and takes over: the public face of the standby side. The loop
//! itself is in [`driver`].

mod disks;
mod driver;

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use understudy_transport::Endpoint;

use self::driver::Driver;
use super::metrics::Metrics;
use super::status::{Role, Status};
use super::{HeartbeatPath, Limits, RuntimeError};
use crate::arbiter::Arbiter;
use crate::core::policy::Policy;
use crate::disk::DiskSet;
use crate::ids::{EpochId, Generation};
use crate::ports::{Machine, OutputGate};

/// Requests of people wait in a queue of this length.
const REQUESTS_MAX: usize = 64;

/// Entry to the standby side; see [`Standby::builder`].
#[derive(Debug)]
pub struct Standby;

/// Collects what a standby needs.
pub struct StandbyBuilder<M: Machine> {
    machine: M,
    vm: String,
    node: String,
    listen: Option<Endpoint>,
    heartbeat: Option<HeartbeatPath>,
    arbiter: Option<Arc<dyn Arbiter>>,
    policy: Policy,
    limits: Limits,
}

/// A standby at work.
pub struct StandbyRun<M: Machine> {
    handle: StandbyHandle,
    endpoint: Endpoint,
    driver: JoinHandle<Result<Outcome<M>, RuntimeError>>,
}

/// Looks at a standby and makes requests, from any thread.
#[derive(Clone)]
pub struct StandbyHandle {
    requests: mpsc::Sender<Request>,
    metrics: Metrics,
    gate: Arc<dyn OutputGate>,
    disks: DiskSet,
}

/// How a standby's work ended.
pub enum Outcome<M: Machine> {
    /// It owns the guest now, which runs.
    Promoted(Promoted<M>),
    /// It was asked to stop; the primary was told so.
    Stopped,
}

/// A machine that has taken over. It runs; hand it to
/// [`Primary::promoted`](super::Primary::promoted) to have it protected again.
pub struct Promoted<M: Machine> {
    /// The machine, running.
    pub machine: M,
    /// The generation it runs under.
    pub generation: Generation,
    /// The epoch it continued from.
    pub epoch: EpochId,
    pub(super) metrics: Metrics,
    pub(super) claimant: String,
}

#[derive(Debug)]
pub(super) enum Request {
    Promote,
    Stop,
}

impl Standby {
    /// Starts to describe a standby that holds the copy in `machine`, which has not run yet.
    pub fn builder<M: Machine>(machine: M) -> StandbyBuilder<M> {
        StandbyBuilder {
            machine,
            vm: "vm".into(),
            node: "standby".into(),
            listen: None,
            heartbeat: None,
            arbiter: None,
            policy: Policy::default(),
            limits: Limits::default(),
        }
    }
}

impl<M: Machine> StandbyBuilder<M> {
    /// Name of the virtual machine: equal on both sides. Default `vm`.
    #[must_use]
    pub fn vm(mut self, name: impl Into<String>) -> Self {
        self.vm = name.into();
        self
    }

    /// This side's name, for people. Default `standby`.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.node = name.into();
        self
    }

    /// Where to wait for the primary. Required.
    #[must_use]
    pub fn listen(mut self, endpoint: Endpoint) -> Self {
        self.listen = Some(endpoint);
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

    /// When a silent primary is lost.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Bounds of buffers.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Listens and starts to work. Returns as soon as a primary can connect.
    ///
    /// # Errors
    /// If the endpoint cannot be listened on, or a setting is missing.
    pub fn start(self) -> Result<StandbyRun<M>, RuntimeError> {
        let missing = |what: &str| RuntimeError::Setting(format!("a standby needs {what}"));
        let arbiter = self.arbiter.ok_or_else(|| missing("an arbiter"))?;
        let listen = self
            .listen
            .ok_or_else(|| missing("an endpoint to listen on"))?;
        let (known, _) = arbiter.current()?;
        let (requests, requested) = mpsc::channel(REQUESTS_MAX);
        let metrics = Metrics::new(Role::Standby, &self.vm, &self.node);
        let (ready, listening) = std::sync::mpsc::sync_channel(1);
        let (gate, disks) = (self.machine.gate(), self.machine.disks());
        let driver = Driver::new(
            driver::Setup {
                claimant: super::claimant(&self.node),
                vm: self.vm,
                node: self.node,
                listen,
                heartbeat: self.heartbeat,
                arbiter,
                policy: self.policy,
                limits: self.limits,
                known,
            },
            self.machine,
            requested,
            metrics.clone(),
        )?;
        let driver = std::thread::Builder::new()
            .name("driver".into())
            .spawn(move || driver.run(&ready))
            .map_err(|source| RuntimeError::System {
                what: "start a thread",
                source,
            })?;
        let handle = StandbyHandle {
            requests,
            metrics,
            gate,
            disks,
        };
        match listening.recv() {
            Ok(endpoint) => Ok(StandbyRun {
                handle,
                endpoint,
                driver,
            }),
            // The driver ended before it listened: its error says why.
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

    /// Where it listens: the port chosen if the configured one was 0.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits until this side is promoted, or was asked to stop.
    ///
    /// # Errors
    /// If the standby cannot do its work any more.
    pub fn await_promotion(self) -> Result<Outcome<M>, RuntimeError> {
        self.driver
            .join()
            .map_err(|_| RuntimeError::Panicked("driver"))?
    }
}

impl StandbyHandle {
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

    /// Asks for promotion now, although the primary lives: the arbiter decides. Returns whether the
    /// request was taken.
    pub fn promote(&self) -> bool {
        self.requests.try_send(Request::Promote).is_ok()
    }

    /// Ends the standby. Waits while the queue of requests is full; must not be called from within an
    /// asynchronous runtime. Returns whether the request was taken: a standby that has ended, as by its
    /// promotion, takes none.
    pub fn stop(&self) -> bool {
        self.requests.blocking_send(Request::Stop).is_ok()
    }
}
