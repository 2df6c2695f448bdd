//! The pause guard (R7): while it exists, nothing runs and nothing writes guest memory. However it
//! goes away, the guest then continues.
//!
//! What must not be done here: write guest memory.

use std::sync::MutexGuard;

use tracing::trace_span;
use understudy_replication::PageSet;

use super::hang::Calls;
use super::past::Past;
use super::state::{self, Source, StateError};
use super::{Machine, MachineFault, Phase};
use crate::devices::{Device, lock};
use crate::dirty::{DirtyError, DirtyTracker};
use crate::kvm::VcpuHandle;
use crate::vcpu::{CpuModel, GuestClock, MsrList, VcpuThread};

/// A machine that stands still.
pub struct Paused<'a> {
    /// Emptied first when the guest resumes.
    devices: Vec<MutexGuard<'a, dyn Device + 'static>>,
    attached: &'a [super::attach::Attached],
    /// Released after the devices: while it is held, the event thread cannot meet a device that a panic
    /// of the holder has poisoned.
    _events: parking_lot::MutexGuard<'a, ()>,
    vcpus: Resume<'a>,
    tracker: &'a mut DirtyTracker,
    vm: &'a kvm_ioctls::VmFd,
    cpu: &'a CpuModel,
    msrs: &'a MsrList,
    clock: GuestClock,
    past: &'a Past,
    phase: &'a mut Phase,
    calls: &'a Calls,
    /// Whether all vCPUs are idle, by the state that was saved.
    is_idle: bool,
}

/// Lets the vCPUs continue when dropped. It is dropped after all the fields it must follow.
struct Resume<'a> {
    vcpus: &'a [VcpuThread],
    stay: bool,
}

impl Drop for Resume<'_> {
    fn drop(&mut self) {
        if !self.stay {
            self.vcpus.iter().for_each(VcpuThread::resume);
        }
    }
}

impl<'a> Paused<'a> {
    pub(super) fn new(machine: &'a mut Machine) -> Result<Self, MachineFault> {
        let Machine {
            vcpus,
            event_loop,
            devices: attached,
            tracker,
            vm,
            cpu,
            msrs,
            clock,
            events: machine_events,
            phase,
            watch,
            ..
        } = machine;
        let calls = &*watch.calls;
        let _call = calls.begin();
        // From here on every way out resumes the guest, errors included.
        let vcpus = Resume { vcpus, stay: false };
        let step = trace_span!(target: "understudy::pause", "stop_vcpus").entered();
        // Ask all before waiting for any, so that they leave the guest in parallel.
        for vcpu in vcpus.vcpus {
            vcpu.request_park()?;
        }
        for vcpu in vcpus.vcpus {
            vcpu.wait_parked()?;
        }
        drop(step);
        let _step = trace_span!(target: "understudy::pause", "lock_devices").entered();
        // vCPUs first, then devices: a vCPU may hold a device while it finishes an access, and
        // needs nothing else to stop. If a device is busy, we wait for it, so that it completes
        // what it has in flight.
        let events = event_loop.hold();
        if machine_events.is_broken() {
            return Err(MachineFault::Broken);
        }
        let devices = attached
            .iter()
            .map(|attached| lock(&attached.device))
            .collect();
        Ok(Self {
            devices,
            attached,
            _events: events,
            vcpus,
            tracker,
            vm,
            cpu,
            msrs,
            clock: *clock,
            past: &machine_events.past,
            phase,
            calls,
            is_idle: false,
        })
    }

    /// Adds the pages dirtied since the last harvest to `into` and forgets them.
    ///
    /// # Errors
    /// As [`DirtyTracker::harvest`].
    pub fn harvest_pages(&mut self, into: &mut PageSet) -> Result<(), DirtyError> {
        let _call = self.calls.begin();
        self.tracker.harvest(into)
    }

    /// Appends the whole state to `into`.
    ///
    /// # Errors
    /// If some of it cannot be read.
    pub fn save_state(&mut self, into: &mut Vec<u8>) -> Result<(), StateError> {
        let _call = self.calls.begin();
        let devices = self.devices.iter().map(|device| device.save());
        let vcpus = self.vcpus.vcpus.iter().map(|vcpu| &**vcpu.handle());
        let source = Source {
            vm: self.vm,
            cpu: self.cpu,
            msrs: self.msrs,
            clock: self.clock,
            past: self.past,
        };
        self.is_idle = state::save(devices, vcpus, &source, into)?;
        Ok(())
    }

    /// Puts devices, interrupt controllers, timer and vCPUs back to their state before the machine
    /// first ran, in this order: interrupts that a device still wanted to raise are then forgotten
    /// downstream too.
    pub(super) fn reset(&mut self, initial: &state::Initial) -> Result<(), StateError> {
        self.devices.iter_mut().for_each(|device| device.reset());
        let vcpus = self.vcpus.vcpus.iter().map(|vcpu| &**vcpu.handle());
        initial.restore(self.vm, vcpus, self.clock)
    }

    /// Leaves the guest stopped for good, because a change to it was left half done.
    pub(super) fn give_up(&mut self) {
        self.vcpus.stay = true;
        *self.phase = Phase::Broken;
    }

    /// Leaves the guest stopped when the guard is dropped.
    pub fn stay(&mut self) {
        self.vcpus.stay = true;
        *self.phase = Phase::Stopped;
    }

    /// Whether all vCPUs waited for an interrupt, or were never started, when the state was saved. To ask KVM anew
    /// would take as long as to read all of a vCPU's registers.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// The vCPUs, all parked.
    pub fn vcpu_handles(&self) -> impl Iterator<Item = &VcpuHandle> {
        self.vcpus.vcpus.iter().map(|vcpu| &**vcpu.handle())
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.devices.clear();
        // If this is a panic unwinding, releasing the locks has marked the devices as poisoned.
        // They are not damaged: only their state was saved, which does not change it. The event
        // thread is still held off and the vCPUs are still parked, so nobody has seen the mark.
        if std::thread::panicking() {
            for attached in self.attached {
                attached.device.clear_poison();
            }
        }
        // The fields are dropped now: first the event thread gets its turn, then the vCPUs
        // continue.
    }
}

impl From<StateError> for understudy_replication::ports::MachineError {
    fn from(error: StateError) -> Self {
        Self::caused("cannot save the machine's state", error)
    }
}

impl From<MachineFault> for understudy_replication::ports::MachineError {
    fn from(fault: MachineFault) -> Self {
        // The fault's own text names only the part of the machine.
        Self::new(fault.with_causes())
    }
}
