//! What the two sides have in common: settings and their builder, the handle, the threads and timers.
//!
//! Must not be done here: anything that only one side has, and any decision.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::events::Events;
use super::metrics::Metrics;
use super::status::Status;
use super::{HeartbeatPath, Limits, RuntimeError};
use crate::arbiter::Arbiter;
use crate::core::policy::Policy;
use crate::disk::DiskSet;
use crate::output::OutputGate;
use crate::ports::Machine;

/// Requests wait in a queue of this length.
const REQUESTS_MAX: usize = 64;

/// Which side this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Runs the guest.
    Primary,
    /// Keeps the second copy.
    Standby,
}

/// What both sides need to know.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) vm: String,
    pub(super) node: String,
    pub(super) heartbeat: Option<HeartbeatPath>,
    pub(super) policy: Policy,
    pub(super) limits: Limits,
}

/// Collects what a side needs. `P` is what only this side has:
/// see [`PrimaryBuilder`](super::PrimaryBuilder) and [`StandbyBuilder`](super::StandbyBuilder).
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
                heartbeat: None,
                policy: Policy::default(),
                limits: Limits::default(),
            },
            arbiter: None,
            part,
        }
    }

    /// Name of the virtual machine: equal on both sides. Default `vm`.
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

    /// A separate path for heartbeats.
    #[must_use]
    pub fn heartbeat(mut self, path: HeartbeatPath) -> Self {
        self.settings.heartbeat = Some(path);
        self
    }

    /// Who decides who may run alone. Required.
    #[must_use]
    pub fn arbiter(mut self, arbiter: Arc<dyn Arbiter>) -> Self {
        self.arbiter = Some(arbiter);
        self
    }

    /// When epochs end and when a silent peer is lost.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Bounds of buffers.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }
}

/// What a side cannot do without.
pub(super) fn required<T>(side: Side, what: &str, setting: Option<T>) -> Result<T, RuntimeError> {
    setting.ok_or_else(|| {
        let side = match side {
            Side::Primary => "primary",
            Side::Standby => "standby",
        };
        RuntimeError::Setting(format!("a {side} needs {what}"))
    })
}

/// Looks at a side at work and makes requests, from any thread:
/// see [`ProtectionHandle`](super::ProtectionHandle) and [`StandbyHandle`](super::StandbyHandle).
pub struct SideHandle<R> {
    requests: mpsc::Sender<R>,
    metrics: Metrics,
    gate: OutputGate,
    disks: DiskSet,
}

impl<R> Clone for SideHandle<R> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            metrics: self.metrics.clone(),
            gate: self.gate.clone(),
            disks: self.disks.clone(),
        }
    }
}

impl<R> SideHandle<R> {
    /// A handle, and where its requests arrive.
    pub(super) fn new(machine: &impl Machine, metrics: Metrics) -> (Self, mpsc::Receiver<R>) {
        let (requests, requested) = mpsc::channel(REQUESTS_MAX);
        let handle = Self {
            requests,
            metrics,
            gate: machine.gate(),
            disks: machine.disks(),
        };
        (handle, requested)
    }

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

    /// What happens to this side from now on, through its promotion and until it ends. Never blocks the
    /// side: a listener that is too slow is told how much it has missed.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.metrics.subscribe()
    }

    /// Makes a request, waiting while the queue is full. Returns whether it was taken: a side that has
    /// ended takes none.
    pub(super) fn ask(&self, request: R) -> bool {
        self.requests.blocking_send(request).is_ok()
    }

    /// Makes a request if the queue has room.
    pub(super) fn ask_at_once(&self, request: R) -> bool {
        self.requests.try_send(request).is_ok()
    }
}

/// A machine that is stopped when its owner is gone, whatever the reason, unless it is handed on.
pub(super) struct StoppedOnDrop<M: Machine>(Option<M>);

impl<M: Machine> StoppedOnDrop<M> {
    pub(super) fn new(machine: M) -> Self {
        Self(Some(machine))
    }

    /// The machine, for another owner.
    pub(super) fn hand_on(mut self) -> M {
        self.0.take().expect("only this takes it, and only once")
    }
}

impl<M: Machine> Deref for StoppedOnDrop<M> {
    type Target = M;

    fn deref(&self) -> &M {
        self.0.as_ref().expect("only `hand_on` takes it")
    }
}

impl<M: Machine> DerefMut for StoppedOnDrop<M> {
    fn deref_mut(&mut self) -> &mut M {
        self.0.as_mut().expect("only `hand_on` takes it")
    }
}

impl<M: Machine> Drop for StoppedOnDrop<M> {
    fn drop(&mut self) {
        let Some(machine) = &mut self.0 else { return };
        // A second panic while one unwinds would end the process, and with it whatever else it does.
        if catch_unwind(AssertUnwindSafe(|| machine.stop())).is_err() {
            tracing::error!("the machine panicked while it was stopped");
        }
    }
}

/// Starts one of a side's threads.
pub(super) fn spawn<T: Send + 'static>(
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

/// Ticks when a heartbeat is due. A side that was stalled does not send those it missed.
pub(super) fn beat(interval: Duration) -> Interval {
    let mut beat = tokio::time::interval(interval);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// Waits for a moment; for ever if there is none. Cancel safe.
pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
