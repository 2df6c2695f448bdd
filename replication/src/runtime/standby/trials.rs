//! The standby's machine, and the thread that tries states on it, so that the driver's heartbeats do
//! not wait for that. While a state is tried, the thread has the machine.
//!
//! Must not be done here: deciding when a state is tried, or what follows.

use bytes::Bytes;
use tokio::sync::oneshot::{Receiver, channel};

use crate::causes::causes;
use crate::ports::Machine;
use crate::runtime::error::RuntimeError;
use crate::runtime::stopped_on_drop::StoppedOnDrop;
use crate::runtime::threads::spawn;

/// A state and the ticket of its trial.
type Job = (u64, Bytes);

/// A machine that comes back from a trial.
struct Tried<M: Machine> {
    machine: StoppedOnDrop<M>,
    ticket: u64,
    outcome: Result<(), String>,
}

enum Place<M: Machine> {
    Here(StoppedOnDrop<M>),
    Away(Receiver<Tried<M>>),
    /// The thread panicked, and the machine is stopped.
    Lost,
}

/// The machine.
pub(super) struct Trials<M: Machine> {
    place: Place<M>,
    /// To be tried next. An older one means nothing any more.
    next: Option<Job>,
}

impl<M: Machine> Trials<M> {
    pub(super) fn of(machine: StoppedOnDrop<M>) -> Self {
        Self {
            place: Place::Here(machine),
            next: None,
        }
    }

    /// Tries this state as soon as the machine is free.
    pub(super) fn begin(&mut self, ticket: u64, state: Bytes) -> Result<(), RuntimeError> {
        self.next = Some((ticket, state));
        self.go_on()
    }

    fn go_on(&mut self) -> Result<(), RuntimeError> {
        if !matches!(self.place, Place::Here(_)) {
            return Ok(());
        }
        let Some((ticket, state)) = self.next.take() else {
            return Ok(());
        };
        let (sender, done) = channel();
        let place = std::mem::replace(&mut self.place, Place::Away(done));
        let Place::Here(mut machine) = place else {
            return Ok(());
        };
        spawn("trial", move || {
            let tried = machine.try_restore(&state);
            let outcome = tried.map_err(|error| causes(&error));
            // Without a driver, the machine is stopped.
            let _ = sender.send(Tried {
                machine,
                ticket,
                outcome,
            });
        })?;
        Ok(())
    }

    /// Waits for the end of a trial. Cancel safe.
    pub(super) async fn done(&mut self) -> Result<(u64, Result<(), String>), RuntimeError> {
        let Place::Away(done) = &mut self.place else {
            return std::future::pending().await;
        };
        let done = done.await;
        self.place = Place::Lost;
        let done = done.map_err(|_| RuntimeError::Panicked("trial"))?;
        self.place = Place::Here(done.machine);
        self.go_on()?;
        Ok((done.ticket, done.outcome))
    }

    /// The machine, once no state is tried on it any more. Not in an asynchronous runtime.
    pub(super) fn into_machine(self) -> Result<StoppedOnDrop<M>, RuntimeError> {
        match self.place {
            Place::Here(machine) => Ok(machine),
            Place::Away(done) => {
                let done = done.blocking_recv();
                let done = done.map_err(|_| RuntimeError::Panicked("trial"))?;
                Ok(done.machine)
            }
            Place::Lost => Err(RuntimeError::Panicked("trial")),
        }
    }
}
