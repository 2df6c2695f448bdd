//! vCPUs: one thread each, stopped and resumed together, their whole state saved and restored.
//!
//! `thread` runs them, `ending` says why one stopped and whose doing that is, `state` is what they are made of, `msr` a large part of it, `cpuid` the CPU
//! they claim to be, `time` how their clocks continue elsewhere, `fault_cost` what tracking costs them, and
//! `trial` tests how the host's KVM really behaves. What must not be done here: know devices (there are two buses), or decide
//! when to pause.

mod cpuid;
mod ending;
pub(crate) mod exact;
mod fault_cost;
mod msr;
mod slice;
mod state;
mod thread;
mod time;
mod trial;

use std::io;

use crate::kvm::KvmError;

pub use cpuid::{CpuError, CpuModel, CpuTemplate, Feature, Register, TemplateError};
pub use ending::Ending;
pub use fault_cost::fault_cost;
pub use msr::{Msr, MsrList};
pub use state::VcpuState;
pub use thread::{Buses, OnEnd, VcpuThread};
pub use time::{Counter, CounterMove, GuestClock, guest_counter, use_host_counter};

/// What can go wrong with a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused.
    #[error("vCPU {vcpu}")]
    Kvm {
        /// Which.
        vcpu: u8,
        /// Why.
        #[source]
        source: KvmError,
    },
    /// The thread cannot be started.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Spawn {
        /// Which.
        vcpu: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The signal that stops vCPUs cannot be set up or sent.
    #[error("cannot signal the thread of vCPU {vcpu}")]
    Signal {
        /// Which.
        vcpu: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The vCPU does not leave the guest.
    #[error("vCPU {vcpu} did not stop within {waited_ms} ms")]
    Stuck {
        /// Which.
        vcpu: u8,
        /// How long the caller waited.
        waited_ms: u128,
    },
    /// The vCPU has ended, and the guest with it.
    #[error("vCPU {vcpu} has ended and cannot continue")]
    Ended {
        /// Which.
        vcpu: u8,
    },
    /// KVM read or wrote fewer MSRs than requested.
    #[error("vCPU {vcpu}: MSR {index:#x} cannot be {verb}")]
    Msr {
        /// Which.
        vcpu: u8,
        /// The first MSR that failed.
        index: u32,
        /// Whether it was read or written.
        verb: &'static str,
    },
    /// A saved state has too many MSRs.
    #[error("vCPU {vcpu}: the state has {count} MSRs, the limit is {limit}")]
    TooManyMsrs {
        /// Which.
        vcpu: u8,
        /// How many.
        count: usize,
        /// The maximum.
        limit: usize,
    },
    /// A saved state is another vCPU's.
    #[error("the state of vCPU {found} was given to vCPU {vcpu}")]
    WrongVcpu {
        /// The vCPU that got the state.
        vcpu: u8,
        /// The vCPU whose state it is.
        found: u8,
    },
}

impl VcpuError {
    fn kvm(vcpu: u8) -> impl Fn(KvmError) -> Self {
        move |source| Self::Kvm { vcpu, source }
    }
}
