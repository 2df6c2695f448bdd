//! The owner of a machine: when it goes, whatever the reason, the machine is stopped.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::ports::Machine;

/// A machine that is stopped when this is dropped, unless it is handed on.
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
        // A second panic during unwinding would end the process and everything else in it.
        if catch_unwind(AssertUnwindSafe(|| machine.stop())).is_err() {
            tracing::error!("the machine panicked while it was stopped");
        }
    }
}
