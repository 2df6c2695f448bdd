//! What this host's KVM can do, in plain words and one line each, for `vmm check` and error texts.
//!
//! What must not be done here: change anything. Probing only asks.

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_SREGS2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_PMU_CAP_DISABLE,
};
use kvm_ioctls::{Cap, Kvm};

/// Something that KVM can or cannot do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// The kernel's name for it.
    pub name: &'static str,
    /// Whether this host has it.
    pub have: bool,
    /// Whether a machine needs it.
    pub required: bool,
    /// What it is for.
    pub meaning: &'static str,
    /// What to do, or what happens instead, if it is missing.
    pub advice: &'static str,
}

/// What this host's KVM can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    list: Vec<Capability>,
    /// Flags for enabling manual dirty log protection; 0 if it is missing.
    pub(crate) manual_dirty_log_flags: u64,
}

/// What every machine needs: the kernel's name, the capability, what it is for.
const REQUIRED: [(&str, Cap, &str); 15] = [
    (
        "KVM_CAP_USER_MEMORY",
        Cap::UserMemory,
        "guest RAM is ordinary memory of this process",
    ),
    (
        "KVM_CAP_IRQCHIP",
        Cap::Irqchip,
        "interrupt controllers in the kernel",
    ),
    (
        "KVM_CAP_PIT2",
        Cap::Pit2,
        "the PC's timer chip in the kernel",
    ),
    (
        "KVM_CAP_PIT_STATE2",
        Cap::PitState2,
        "saving that timer chip",
    ),
    (
        "KVM_CAP_IRQFD",
        Cap::Irqfd,
        "devices raise interrupts without stopping a vCPU",
    ),
    (
        "KVM_CAP_IOEVENTFD",
        Cap::Ioeventfd,
        "guests kick devices without stopping a vCPU",
    ),
    (
        "KVM_CAP_IMMEDIATE_EXIT",
        Cap::ImmediateExit,
        "stopping vCPUs at once, without a race",
    ),
    (
        "KVM_CAP_ADJUST_CLOCK",
        Cap::AdjustClock,
        "the guest's clock continues after a failover",
    ),
    (
        "KVM_CAP_VCPU_EVENTS",
        Cap::VcpuEvents,
        "saving interrupts on their way into a vCPU",
    ),
    (
        "KVM_CAP_MP_STATE",
        Cap::MpState,
        "saving whether a vCPU runs, sleeps or waits",
    ),
    ("KVM_CAP_XSAVE", Cap::Xsave, "saving vector registers"),
    (
        "KVM_CAP_XCRS",
        Cap::Xcrs,
        "saving which vector registers are in use",
    ),
    (
        "KVM_CAP_DEBUGREGS",
        Cap::Debugregs,
        "saving debug registers",
    ),
    (
        "KVM_CAP_EXT_CPUID",
        Cap::ExtCpuid,
        "choosing which CPU features a guest sees",
    ),
    (
        "KVM_CAP_SYNC_MMU",
        Cap::SyncMmu,
        "guest RAM may be dropped and refilled by the host",
    ),
];

const NEWER_KERNEL: &str = "use a newer kernel (5.4 or later has it) with CONFIG_KVM";

impl Capabilities {
    /// Asks KVM.
    pub(crate) fn probe(kvm: &Kvm) -> Self {
        let mut list = Vec::new();
        for (name, capability, meaning) in REQUIRED {
            list.push(Capability {
                name,
                have: kvm.check_extension(capability),
                required: true,
                meaning,
                advice: NEWER_KERNEL,
            });
        }
        let manual = kvm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
        let manual_dirty_log_flags = u64::try_from(manual).unwrap_or(0)
            & u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        for (name, have, meaning, advice) in optional(kvm, manual_dirty_log_flags) {
            list.push(Capability {
                name,
                have,
                required: false,
                meaning,
                advice,
            });
        }
        Self {
            list,
            manual_dirty_log_flags,
        }
    }

    /// All capabilities, the required ones first.
    #[must_use]
    pub fn list(&self) -> &[Capability] {
        &self.list
    }

    /// Whether KVM has the capability with this kernel name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.list
            .iter()
            .any(|capability| capability.name == name && capability.have)
    }
}

/// What improves a machine: the kernel's name, whether KVM has it, what it is for, and what happens
/// without it.
fn optional(
    kvm: &Kvm,
    manual_dirty_log_flags: u64,
) -> [(&'static str, bool, &'static str, &'static str); 9] {
    [
        (
            "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
            manual_dirty_log_flags & u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0,
            "dirty pages are read and re-armed in two small steps: short pauses",
            "the plain dirty log is used instead; pauses of large guests get longer",
        ),
        (
            "KVM_DIRTY_LOG_INITIALLY_SET",
            manual_dirty_log_flags & u64::from(KVM_DIRTY_LOG_INITIALLY_SET) != 0,
            "protection starts without stopping the guest for all of its memory at once",
            "the guest stalls briefly once, when protection starts",
        ),
        (
            "KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
            kvm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into()) > 0,
            "dirty pages as a list instead of a bitmap",
            "nothing is lost: the bitmap is used anyway",
        ),
        (
            "KVM_CAP_KVMCLOCK_CTRL",
            kvm.check_extension(Cap::KvmclockCtrl),
            "the guest's watchdogs are told that time stood still",
            "a guest's soft-lockup watchdog may complain after a failover",
        ),
        (
            "KVM_CAP_TSC_DEADLINE_TIMER",
            kvm.check_extension(Cap::TscDeadlineTimer),
            "the guest's cheapest timer",
            "the guest uses another timer",
        ),
        (
            "KVM_CAP_GET_TSC_KHZ",
            kvm.check_extension(Cap::GetTscKhz),
            "knowing how fast the guest's time-stamp counter runs",
            "hosts with different time-stamp counter speeds are not told apart",
        ),
        (
            "KVM_CAP_TSC_CONTROL",
            kvm.check_extension(Cap::TscControl),
            "guests keep their time-stamp counter's speed on a host with a different one",
            "both hosts need time-stamp counters of the same speed",
        ),
        (
            "KVM_CAP_PMU_CAPABILITY",
            kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) as u32 & KVM_PMU_CAP_DISABLE
                != 0,
            "guests cannot use performance counters, which cannot move with them",
            "a guest that uses counters it was not offered loses their counts at a failover",
        ),
        (
            "KVM_CAP_SREGS2",
            kvm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0,
            "saving the page directory pointers of 32-bit PAE guests exactly",
            "they are read again from the guest's memory, as processors do",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use crate::kvm::System;

    #[test]
    fn every_line_says_what_it_means_and_what_to_do() {
        let system = System::open().expect("these tests need a usable /dev/kvm");
        let list = system.capabilities().list();
        assert!(list.iter().any(|line| line.required));
        assert!(list.iter().any(|line| !line.required));
        for line in list {
            assert!(
                !line.meaning.is_empty() && !line.advice.is_empty(),
                "{line:?}"
            );
            assert_eq!(system.capabilities().has(line.name), line.have);
        }
    }
}
