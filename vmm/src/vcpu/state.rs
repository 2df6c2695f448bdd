//! The whole state of a vCPU, and the order in which it is saved and restored.
//!
//! What must not be done here: run or stop the vCPU. The caller has already stopped it.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

use super::msr::{MSR_KVM_SYSTEM_TIME, MSR_KVM_WALL_CLOCK, MSR_TSC, Msr, MsrList};
use super::time::{Counter, CounterMove, GuestClock};
use super::{VcpuError, exact, msr};
use crate::kvm::{KvmError, VcpuHandle, counter_offset, get_xsave, set_xsave};

/// All state of a vCPU except its CPUID, which the machine's state holds once for all vCPUs.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Which vCPU.
    pub id: u8,
    #[serde(with = "exact")]
    mp_state: kvm_mp_state,
    #[serde(with = "exact")]
    regs: kvm_regs,
    #[serde(with = "exact")]
    sregs: kvm_sregs,
    #[serde(with = "exact")]
    xsave: kvm_xsave,
    #[serde(with = "exact")]
    xcrs: kvm_xcrs,
    #[serde(with = "exact")]
    debugregs: kvm_debugregs,
    #[serde(with = "exact")]
    lapic: kvm_lapic_state,
    msrs: Vec<Msr>,
    /// How far the time-stamp counter is ahead of the host's, if KVM tells.
    counter_offset: Option<u64>,
    #[serde(with = "exact")]
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of a stopped vCPU, whose guest reads this `counter`.
    ///
    /// # Errors
    /// If KVM refuses some of it.
    pub fn save(handle: &VcpuHandle, list: &MsrList, counter: Counter) -> Result<Self, VcpuError> {
        let vcpu = handle.id();
        let fd = handle.lock();
        let call = |what: &'static str| {
            move |error| VcpuError::kvm(vcpu)(KvmError::call(format!("read {what}"))(error))
        };
        // First: reading it makes KVM process pending INITs and SIPIs, which changes registers.
        let mp_state = fd.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?;
        // Before the registers: reading it makes KVM deliver what a pending exception does to CR2 and
        // DR6, and moves a pending NMI or SMI on.
        let events = fd.get_vcpu_events().map_err(call("KVM_GET_VCPU_EVENTS"))?;
        let regs = fd.get_regs().map_err(call("KVM_GET_REGS"))?;
        let sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
        let xsave = get_xsave(&fd).map_err(VcpuError::kvm(vcpu))?;
        let xcrs = fd.get_xcrs().map_err(call("KVM_GET_XCRS"))?;
        let debugregs = fd.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?;
        // LAPIC and MSRs close together: the timer's remaining count and the counter must match.
        let lapic = fd.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
        let msrs = msr::read(vcpu, &fd, list)?;
        Ok(Self {
            id: vcpu,
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debugregs,
            lapic,
            msrs,
            // Restored with the vCPU's own counter only.
            counter_offset: match counter {
                Counter::Own => counter_offset(&fd),
                Counter::Host => None,
            },
            events,
        })
    }

    /// Whether the vCPU waits for an interrupt, or was never started.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        [
            KVM_MP_STATE_HALTED,
            KVM_MP_STATE_UNINITIALIZED,
            KVM_MP_STATE_INIT_RECEIVED,
        ]
        .contains(&self.mp_state.mp_state)
    }

    /// How far all vCPUs' counter offsets move so that this vCPU's counter goes on, after matching
    /// its speed; see [`CounterMove`].
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn counter_move(
        &self,
        handle: &VcpuHandle,
        clock: GuestClock,
    ) -> Result<Option<CounterMove>, VcpuError> {
        let fd = handle.lock();
        let moves = || {
            clock.counter.match_speed(&fd, clock.speed_khz)?;
            let saved = self.msr(MSR_TSC);
            clock.counter.moves(&fd, saved, self.counter_offset)
        };
        moves().map_err(VcpuError::kvm(handle.id()))
    }

    /// The state without the time-stamp counter, so that restoring it does not set the counter
    /// back.
    #[must_use]
    pub fn without_counter(mut self) -> Self {
        self.msrs.retain(|msr| msr.index != MSR_TSC);
        self
    }

    /// The state without what a trial must not write: the time-stamp counter, by which KVM judges the next one that is
    /// written, and registers by which KVM writes to the guest's memory at once, or soon.
    #[must_use]
    pub fn for_trial(mut self) -> Self {
        let writes = [MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME].concat();
        self.msrs.retain(|msr| !writes.contains(&msr.index));
        self.counter_offset = None;
        self.without_counter()
    }

    /// Changes the value of an MSR, which may be one that was not saved.
    #[cfg(test)]
    pub fn set_msr(&mut self, index: u32, data: u64) {
        self.msrs.retain(|msr| msr.index != index);
        self.msrs.push(Msr { index, data });
    }

    /// Writes the state into a stopped vCPU whose CPUID is set. Without `moves`, the time-stamp counter
    /// is restored by its MSR, if it was saved.
    ///
    /// # Errors
    /// If the state is another vCPU's, or KVM refuses some of it; the vCPU must not be run then.
    pub fn restore(
        &self,
        handle: &VcpuHandle,
        clock: GuestClock,
        moves: Option<CounterMove>,
    ) -> Result<(), VcpuError> {
        let vcpu = handle.id();
        if self.id != vcpu {
            return Err(VcpuError::WrongVcpu {
                vcpu,
                found: self.id,
            });
        }
        let fd = handle.lock();
        let call = |what: &'static str| {
            move |error| VcpuError::kvm(vcpu)(KvmError::call(format!("write {what}"))(error))
        };
        clock
            .counter
            .match_speed(&fd, clock.speed_khz)
            .map_err(VcpuError::kvm(vcpu))?;
        // Before the registers: it decides whether KVM treats the vCPU as waiting for its SIPI,
        // which would reset the registers.
        fd.set_mp_state(self.mp_state)
            .map_err(call("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(call("KVM_SET_REGS"))?;
        // Before the LAPIC, whose mode and address it holds (APIC base), and before the MSRs, some
        // of which are checked against EFER and CR4.
        fd.set_sregs(&self.sregs).map_err(call("KVM_SET_SREGS"))?;
        // XCR0 before the vector registers: they may use only what it enables.
        fd.set_xcrs(&self.xcrs).map_err(call("KVM_SET_XCRS"))?;
        set_xsave(&fd, &self.xsave).map_err(VcpuError::kvm(vcpu))?;
        fd.set_debug_regs(&self.debugregs)
            .map_err(call("KVM_SET_DEBUGREGS"))?;
        // The counter before the LAPIC and the deadline, whose timers are armed relative to it. The
        // LAPIC before the deadline, which KVM ignores unless the LAPIC's timer is in deadline
        // mode.
        let (mut first, last) = clock.counter.split(&self.msrs);
        if let (Some(moves), Some(offset)) = (moves, self.counter_offset) {
            first.retain(|msr| msr.index != MSR_TSC);
            moves.apply(&fd, offset).map_err(VcpuError::kvm(vcpu))?;
        }
        msr::write(vcpu, &fd, first)?;
        fd.set_lapic(&self.lapic).map_err(call("KVM_SET_LAPIC"))?;
        msr::write(vcpu, &fd, last)?;
        // Last: writing general or system registers drops pending exceptions and interrupts.
        fd.set_vcpu_events(&self.events)
            .map_err(call("KVM_SET_VCPU_EVENTS"))
    }

    /// Has KVM tell the guest once more at which wall clock time its kvmclock was 0. KVM did so when the MSRs were
    /// restored, by a kvmclock that was not the guest's yet. It is one for all vCPUs.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn renew_wall_clock(&self, handle: &VcpuHandle) -> Result<(), VcpuError> {
        let is_it = |msr: &&Msr| MSR_KVM_WALL_CLOCK.contains(&msr.index) && msr.data != 0;
        let msrs: Vec<Msr> = self.msrs.iter().filter(is_it).copied().collect();
        if msrs.is_empty() {
            return Ok(());
        }
        msr::write(handle.id(), &handle.lock(), msrs)
    }

    /// The MSRs that were saved.
    pub fn msr_indices(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.msrs.iter().map(|msr| msr.index)
    }

    /// The value of an MSR, if it was saved.
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs
            .iter()
            .find(|msr| msr.index == index)
            .map(|msr| msr.data)
    }
}
