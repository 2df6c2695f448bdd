//! Loading a state on trial: a standby finds out what of it this host refuses before it counts as one.
//!
//! What the state is loaded into is the very machine that would take over. Afterwards it is as it was: devices reset
//! themselves, and KVM's part gets back the state it had before it first ran, so that no timer of the guest runs. Left out
//! is what has effects that cannot be undone: the clocks, and registers by which KVM writes to memory. Devices have not been
//! started, so they say nothing.
//!
//! What must not be done here: running anything, or touching guest memory.

use super::{Machine, MachineFault, MachineState, Phase, StateError};
use crate::devices::lock;

impl Machine {
    /// Loads a saved state into a machine that has never run, and undoes that.
    ///
    /// # Errors
    /// If it is malformed, another machine's, or if this host refuses something of it.
    pub fn try_load(&mut self, bytes: &[u8]) -> Result<(), MachineFault> {
        if self.phase != Phase::Built {
            return Err(self.phase.cannot("be restored"));
        }
        let state = MachineState::decode(bytes)?;
        let tried = state.restore_on_trial(self);
        self.phase = Phase::Broken;
        self.undo_trial()?;
        self.phase = Phase::Built;
        Ok(tried?)
    }

    /// Whether a trial could not be undone: the machine is of no use then.
    pub(super) fn is_restored_in_part(&self) -> bool {
        self.phase == Phase::Broken
    }

    fn undo_trial(&self) -> Result<(), StateError> {
        for attached in &self.devices {
            lock(&attached.device).reset();
        }
        let vcpus = self.vcpus.iter().map(|vcpu| &**vcpu.handle());
        self.initial.restore(&self.vm, vcpus, self.clock)
    }
}
