//! What the two sides have in common: the builder and the handle.
//!
//! Must not be done here: anything that only one side has, and any decision.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::error::RuntimeError;
use super::events::Events;
use super::metrics::Metrics;
use super::settings::{HeartbeatPath, Limits, Settings, ThreadSetup};
use super::status::{Side, Status};
use crate::arbiter::Arbiter;
use crate::core::policy::Policy;
use crate::output::OutputGate;
use crate::ports::{Disks, Machine};

/// Length of the queue of requests.
const REQUESTS_MAX: usize = 64;

/// Collects what a side needs. `P` holds the settings that only this side has: see
/// [`PrimaryBuilder`](super::PrimaryBuilder) and [`StandbyBuilder`](super::StandbyBuilder).
pub struct SideBuilder<P> {
    pub(super) settings: Settings,
    pub(super) arbiter: Option<Arc<dyn Arbiter>>,
    pub(super) part: P,
}

impl<P> SideBuilder<P> {
    pub(super) fn new(node: &str, part: P) -> Self {
        Self {
            settings: Settings {
                vm: "vm".into(),
                node: node.into(),
                host: None,
                heartbeat: None,
                policy: Policy::default(),
                limits: Limits::default(),
                driver_setup: None,
            },
            arbiter: None,
            part,
        }
    }

    /// Name of the virtual machine, the same on both sides. Default `vm`.
    #[must_use]
    pub fn vm(mut self, name: impl Into<String>) -> Self {
        self.settings.vm = name.into();
        self
    }

    /// This side's name, for people and the arbiter. Default `primary` or `standby`.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.settings.node = name.into();
        self
    }

    /// What tells this host from all others, whatever they are called: a word without blanks, made
    /// once and kept with the disks. Without it, hosts are told apart by [`SideBuilder::node`].
    #[must_use]
    pub fn host(mut self, identity: impl Into<String>) -> Self {
        self.settings.host = Some(identity.into());
        self
    }

    /// A separate path for heartbeats.
    #[must_use]
    pub fn heartbeat(mut self, path: HeartbeatPath) -> Self {
        self.settings.heartbeat = Some(path);
        self
    }

    /// Decides which side may run alone. Required.
    #[must_use]
    pub fn arbiter(mut self, arbiter: Arc<dyn Arbiter>) -> Self {
        self.arbiter = Some(arbiter);
        self
    }

    /// When epochs end and when a silent peer counts as lost.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Called on the thread that sends heartbeats and acknowledgements before it begins, for example
    /// to raise its priority. Threads that this one starts inherit it; they ask the arbiter. On a
    /// standby, the promotion is done there, too.
    #[must_use]
    pub fn driver_setup(mut self, setup: ThreadSetup) -> Self {
        self.settings.driver_setup = Some(setup);
        self
    }

    /// Limits of buffers.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }
}

/// Returns a setting that a side needs, or an error that names it.
pub(super) fn required<T>(side: Side, what: &str, setting: Option<T>) -> Result<T, RuntimeError> {
    setting.ok_or_else(|| {
        let side = match side {
            Side::Primary => "primary",
            Side::Standby => "standby",
        };
        RuntimeError::Setting(format!("a {side} needs {what}"))
    })
}

/// Reads the status of a working side and makes requests, from any thread: see
/// [`ProtectionHandle`](super::ProtectionHandle) and [`StandbyHandle`](super::StandbyHandle).
pub struct SideHandle<R, N = ()> {
    requests: mpsc::Sender<R>,
    /// What a side is told of which only the newest counts.
    pub(super) newest: N,
    metrics: Metrics,
    gate: OutputGate,
    disks: Arc<dyn Disks>,
}

impl<R, N: Clone> Clone for SideHandle<R, N> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            newest: self.newest.clone(),
            metrics: self.metrics.clone(),
            gate: self.gate.clone(),
            disks: Arc::clone(&self.disks),
        }
    }
}

impl<R, N> SideHandle<R, N> {
    /// A handle, and where its requests arrive.
    pub(super) fn new(
        machine: &impl Machine,
        metrics: Metrics,
        newest: N,
    ) -> (Self, mpsc::Receiver<R>) {
        metrics.begin();
        let (requests, requested) = mpsc::channel(REQUESTS_MAX);
        let handle = Self {
            requests,
            newest,
            metrics,
            gate: machine.gate(),
            disks: machine.disks(),
        };
        (handle, requested)
    }

    /// The side's present status.
    #[must_use]
    pub fn status(&self) -> Status {
        let status = self.metrics.status();
        Status {
            output: self.gate.counts(),
            disks: status.disks.with(&*self.disks),
            ..status
        }
    }

    /// The present state, then what happens to this side, through its promotion and until it ends.
    /// Never blocks the side: a listener that is too slow is told how much it has missed.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.metrics.subscribe()
    }

    /// Makes a request. Waits while the queue is full. Returns whether the request was taken; it is
    /// not once the side has ended.
    pub(super) fn ask(&self, request: R) -> bool {
        self.requests.blocking_send(request).is_ok()
    }

    /// Makes a request if the queue has room.
    pub(super) fn ask_at_once(&self, request: R) -> bool {
        self.requests.try_send(request).is_ok()
    }
}
