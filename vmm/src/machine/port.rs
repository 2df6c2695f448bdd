//! The machine as replication sees it. This file only forwards calls.

use std::sync::Arc;

use understudy_replication::open_pages::Looked;
use understudy_replication::output::OutputGate;
use understudy_replication::ports::{
    Disks, GuestSpeed, Machine as MachinePort, MachineError, PageMemory, PausedMachine,
};
use understudy_replication::{Fingerprint, PageSet};

use super::{Machine, MachineFault, Paused};

impl MachinePort for Machine {
    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    fn memory(&self) -> Arc<dyn PageMemory> {
        self.memory.pages().clone()
    }

    fn gate(&self) -> OutputGate {
        self.gate.clone()
    }

    fn disks(&self) -> Arc<dyn Disks> {
        Arc::new(self.disks.clone())
    }

    fn speed(&self) -> Option<Arc<dyn GuestSpeed>> {
        Some(self.throttle.speed())
    }

    fn start_tracking(&mut self) -> Result<(), MachineError> {
        Ok(self.track()?)
    }

    fn stop_tracking(&mut self) -> Result<(), MachineError> {
        Ok(self.untrack()?)
    }

    fn harvest_running(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let harvested = self.tracker.harvest_and_protect(into);
        Ok(harvested.map_err(MachineFault::from)?)
    }

    fn looked(&mut self, looked: Looked<'_>) -> u64 {
        self.tracker.looked(looked);
        self.tracker.open().len()
    }

    fn pause(&mut self) -> Result<Box<dyn PausedMachine + '_>, MachineError> {
        Ok(Box::new(self.pause_guest()?))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        Ok(self.load(state)?)
    }

    fn try_restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        let tried = self.try_load(state);
        tried.map_err(|fault| match self.is_restored_in_part() {
            true => MachineError::Unusable(fault.with_causes()),
            false => fault.into(),
        })
    }

    fn announce(&mut self) {
        self.announce_address();
    }

    fn run(&mut self) -> Result<(), MachineError> {
        Ok(self.start()?)
    }

    fn reset(&mut self) -> Result<(), MachineError> {
        Ok(self.reset_guest()?)
    }

    fn stop(&mut self) {
        self.shut_down();
    }
}

impl PausedMachine for Paused<'_> {
    fn harvest(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        Ok(self.harvest_pages(into).map_err(MachineFault::from)?)
    }

    fn is_idle(&self) -> bool {
        Paused::is_idle(self)
    }

    fn save(&mut self, into: &mut Vec<u8>) -> Result<(), MachineError> {
        Ok(self.save_state(into)?)
    }
}
