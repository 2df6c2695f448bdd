//! The standby's machine, and the thread that tries states on it, so that the driver's heartbeats do
//! not wait for that. While a state is tried, the thread has the machine: whoever wants it then waits
//! for a moment only, because a trial may hang in the host's kernel for ever, and what it has begun
//! there cannot be taken back.
//!
//! Must not be done here: deciding when a state is tried, or what follows.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::causes::causes;
use crate::ports::{Machine, MachineError};
use crate::runtime::error::RuntimeError;
use crate::runtime::stopped_on_drop::StoppedOnDrop;
use crate::runtime::threads::spawn;

/// How long a role that ends waits for a trial.
const PATIENCE: Duration = Duration::from_secs(1);

/// A machine on its way to a trial.
struct Job<M: Machine> {
    machine: StoppedOnDrop<M>,
    ticket: u64,
    state: Bytes,
}

/// A machine that comes back from a trial.
struct Tried<M: Machine> {
    machine: StoppedOnDrop<M>,
    ticket: u64,
    outcome: Result<(), MachineError>,
}

/// The machine.
pub(super) struct Trials<M: Machine> {
    /// `None` while a state is tried on it.
    machine: Option<StoppedOnDrop<M>>,
    jobs: mpsc::Sender<Job<M>>,
    done: mpsc::Receiver<Tried<M>>,
}

impl<M: Machine> Trials<M> {
    pub(super) fn start(machine: StoppedOnDrop<M>) -> Result<Self, RuntimeError> {
        let (jobs, mut ordered) = mpsc::channel::<Job<M>>(1);
        let (sender, done) = mpsc::channel(1);
        spawn("trial", move || {
            while let Some(job) = ordered.blocking_recv() {
                let Job {
                    mut machine,
                    ticket,
                    state,
                } = job;
                let outcome = machine.try_restore(&state);
                // Without a driver, the machine is stopped.
                let _ = sender.blocking_send(Tried {
                    machine,
                    ticket,
                    outcome,
                });
            }
        })?;
        Ok(Self {
            machine: Some(machine),
            jobs,
            done,
        })
    }

    /// Tries this state. The core does not ask for another trial before this one is over.
    pub(super) fn begin(&mut self, ticket: u64, state: Bytes) {
        if let Some(machine) = self.machine.take() {
            let job = Job {
                machine,
                ticket,
                state,
            };
            // A thread that has panicked is noticed in `done`.
            let _ = self.jobs.try_send(job);
        }
    }

    /// Waits for the end of a trial: its ticket, and why the state cannot be loaded. Cancel safe.
    ///
    /// # Errors
    /// If the machine is lost, or of no use any more.
    pub(super) async fn done(&mut self) -> Result<(u64, Result<(), String>), RuntimeError> {
        if self.machine.is_some() {
            return std::future::pending().await;
        }
        let done = self.done.recv().await;
        let done = done.ok_or(RuntimeError::Panicked("trial"))?;
        self.machine = Some(done.machine);
        match done.outcome {
            Err(error @ MachineError::Unusable(_)) => Err(error.into()),
            outcome => Ok((done.ticket, outcome.map_err(|error| causes(&error)))),
        }
    }

    /// Waits for the end of a trial for a moment, at the end of a role.
    pub(super) async fn settle(&mut self) {
        // That it came back is all that matters now.
        let _ = tokio::time::timeout(PATIENCE, async {
            if self.machine.is_none() {
                let _ = self.done().await;
            }
        })
        .await;
    }

    /// The machine.
    ///
    /// # Errors
    /// If a trial has it. It is left behind then, and stopped should it ever come back.
    pub(super) fn take_machine(&mut self) -> Result<StoppedOnDrop<M>, RuntimeError> {
        self.machine.take().ok_or(RuntimeError::TrialHangs)
    }
}
