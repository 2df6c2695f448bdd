//! Resetting a machine in place: a guest that asked for a reset gets what a PC does then.
//!
//! As on a PC, memory keeps its contents, except for what booting writes. All of those writes go
//! through `vm-memory`, so a protected guest's restart is tracked like any other write (R3).
//! Earlier output waits at the gate as before (R1). A checkpoint comes before all of this or after
//! it.
//!
//! What must not be done here: decide whether there should be a reset, or how often.

use std::sync::Arc;

use super::pause::Paused;
use super::{ConfigError, Machine, MachineEvent, MachineFault, Phase, enter_kernel};
use crate::boot::{self, Payload};

impl Machine {
    /// Whether there is anything to boot after a reset. A standby boots what its own configuration
    /// names.
    #[must_use]
    pub fn can_be_reset(&self) -> bool {
        self.payload.is_some()
    }

    /// Resets a running machine: devices, interrupt controllers and vCPUs start over, kernel and
    /// initramfs are loaded again, and the guest runs from there, even if it stood still because it
    /// had asked for this.
    ///
    /// # Errors
    /// If it does not run or has nothing to boot; it is then left as it was. Also if it cannot be
    /// paused or put back; the machine is then of no further use, and its listeners are told.
    pub fn reset_guest(&mut self) -> Result<(), MachineFault> {
        if self.phase != Phase::Running {
            return Err(self.phase.cannot("be reset"));
        }
        let Some(payload) = self.payload.clone() else {
            return Err(ConfigError::NothingToReboot.into());
        };
        let done = self.reset_and_boot(&payload);
        if let Err(fault) = &done {
            let what = fault.with_causes();
            self.events.tell(&MachineEvent::ResetFailed { what });
        }
        done
    }

    fn reset_and_boot(&mut self, payload: &Payload) -> Result<(), MachineFault> {
        let hardware = self.hardware();
        let (initial, events) = (Arc::clone(&self.initial), Arc::clone(&self.events));
        let (ram, cmdline) = (self.memory.ram().clone(), self.cmdline.clone());
        let mut paused = Paused::new(self)?;
        let done = paused
            .reset(&initial)
            .map_err(MachineFault::from)
            .and_then(|()| Ok(boot::load(&ram, payload, &cmdline, &hardware)?))
            .and_then(|entry| {
                let first = paused.vcpu_handles().next();
                first.map_or(Ok(()), |first| enter_kernel(first, entry))
            });
        match &done {
            // Before the vCPUs look, which they do when the guard is dropped.
            Ok(()) => events.unhalt(),
            Err(_) => paused.give_up(),
        }
        done
    }
}
