//! The CPU that vCPUs claim to be: the CPUID that a guest gets, and what another host must have of
//! it.
//!
//! [`CpuModel`] is a guest's CPUID without what differs between its vCPUs. A guest that boots gets
//! its host's model, `filter`ed and perhaps reduced to a [`template`](CpuTemplate). It is part of
//! the machine's state: the guest keeps it wherever it goes, and a host that lacks one of its
//! features cannot take over. What must not be done here: offer what the host lacks, to make
//! different hosts look alike.

mod filter;
mod guest;
mod leaf;
mod names;
mod processor;
mod template;
#[cfg(test)]
mod tests;
mod xstate;

use std::collections::BTreeMap;

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};
use understudy_replication::Fingerprint;

use crate::kvm::{KvmError, System, VcpuHandle};

pub use names::{Feature, Register};
pub use template::{CpuTemplate, TemplateError};

use leaf::{LEAF_ADDRESSES, LEAF_BASE, LEAF_FEATURES};

/// Maps leaf and sub-leaf to EAX, EBX, ECX and EDX.
type Leaves = BTreeMap<(u32, u32), [u32; 4]>;

/// The most leaves a model can have; processors have about 40.
const LEAVES_MAX: usize = 128;
/// The part of a fingerprint that lists features.
const PART: &str = "CPU (as its KVM offers it)";
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;

/// Why a guest cannot continue with the CPU it knows.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The host's CPU, or its KVM, lacks features.
    #[error("{}", processor::blame(.0))]
    Lacks(Vec<String>),
    /// The host's CPU has a different vendor.
    #[error("the guest's CPU is by {guest}, this host's is by {host}")]
    Vendor {
        /// The vendor of the guest's CPU.
        guest: String,
        /// The vendor of the host's CPU.
        host: String,
    },
    /// The state has something that this program never offers.
    #[error(
        "the guest's CPUID has leaves or features that this program does not know ({leaves} leaves)"
    )]
    Unknown {
        /// How many leaves it has.
        leaves: usize,
    },
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// The CPU that a guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    leaves: Leaves,
}

impl CpuModel {
    /// Everything that this host can offer.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn of_host(system: &System) -> Result<Self, KvmError> {
        let supported = system.supported_cpuid()?;
        let has_deadline_timer = system.has(kvm_ioctls::Cap::TscDeadlineTimer);
        let mut leaves = leaves_of(&supported, has_deadline_timer);
        if !xstate::is_noticed(system, &supported)? {
            xstate::hide(&mut leaves);
        }
        Ok(Self {
            leaves: filter::filter(&leaves),
        })
    }

    /// Gives this CPUID to a vCPU that has never run. This comes before setting anything else, as
    /// KVM checks the rest against it. Until the vCPU runs, another CPUID can replace it.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn give_to(&self, handle: &VcpuHandle, vcpus: u8) -> Result<(), KvmError> {
        let cpuid = guest::cpuid(&self.leaves, handle.id(), vcpus);
        handle
            .lock()
            .set_cpuid2(&cpuid)
            .map_err(KvmError::call(format!(
                "set CPUID of vCPU {} (KVM_SET_CPUID2)",
                handle.id()
            )))
    }

    /// The features that a guest can find and use, in words.
    pub fn features(&self) -> impl Iterator<Item = String> + '_ {
        let named = names::all().filter(|feature| has(&self.leaves, *feature));
        let addresses = self.address_bits();
        named
            .map(|feature| feature.to_string())
            .chain(xstate::describe(&self.leaves))
            .chain([addresses_of(addresses)])
    }

    /// Offers a feature no more.
    pub fn hide(&mut self, name: &str) {
        names::all()
            .filter(|feature| feature.name == name)
            .for_each(|feature| clear(&mut self.leaves, feature));
        self.leaves = filter::filter(&self.leaves);
    }

    /// Whether a feature is offered.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        names::all().any(|feature| feature.name == name && has(&self.leaves, feature))
    }

    /// Adds what another host must have for this guest, and what this host (`host`) has for others.
    pub fn describe(&self, host: &Self, into: &mut Fingerprint) {
        into.set("cpu.vendor", vendor(&self.leaves));
        into.need_nothing(PART);
        self.features().for_each(|what| into.need(PART, what));
        host.abilities().for_each(|what| into.have(PART, what));
    }

    /// Checks that `host` can run a guest with this model, which came from another host.
    ///
    /// # Errors
    /// If the host lacks some of it, or if it is not a model that [`CpuModel::of_host`] produces.
    pub fn check(&self, host: &Self) -> Result<(), CpuError> {
        let leaves = self.leaves.len();
        if leaves > LEAVES_MAX || filter::filter(&self.leaves) != self.leaves {
            return Err(CpuError::Unknown { leaves });
        }
        let (guest, host_vendor) = (vendor(&self.leaves), vendor(&host.leaves));
        if guest != host_vendor {
            return Err(CpuError::Vendor {
                guest,
                host: host_vendor,
            });
        }
        let has: std::collections::BTreeSet<String> = host.abilities().collect();
        let lacking: Vec<String> = self.features().filter(|what| !has.contains(what)).collect();
        if lacking.is_empty() {
            Ok(())
        } else {
            Err(CpuError::Lacks(lacking))
        }
    }

    /// What a guest's [`CpuModel::features`] may be here; where it is a number, smaller ones as
    /// well.
    fn abilities(&self) -> impl Iterator<Item = String> + '_ {
        let fewer = (0..self.address_bits()).map(addresses_of);
        self.features().chain(fewer)
    }

    fn address_bits(&self) -> u32 {
        let leaf = self.leaves.get(&(LEAF_ADDRESSES, 0));
        leaf.map_or(36, |leaf| leaf[0] & 0xff)
    }
}

fn addresses_of(bits: u32) -> String {
    format!("physical addresses of {bits} bits (leaf {LEAF_ADDRESSES:#x}, EAX)")
}

fn leaves_of(supported: &CpuId, has_deadline_timer: bool) -> Leaves {
    let mut leaves = Leaves::new();
    for entry in supported.as_slice() {
        let index = match filter::has_indices(entry.function) {
            true => entry.index,
            false => 0,
        };
        let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        leaves.insert((entry.function, index), registers);
    }
    if let Some([_, _, ecx, _]) = leaves.get_mut(&(LEAF_FEATURES, 0)) {
        *ecx |= ECX_HYPERVISOR;
        if has_deadline_timer {
            *ecx |= ECX_TSC_DEADLINE;
        }
    }
    leaves
}

fn register_mut(leaves: &mut Leaves, feature: Feature) -> Option<&mut u32> {
    let leaf = leaves.get_mut(&(feature.function, feature.index))?;
    leaf.get_mut(feature.register as usize)
}

fn has(leaves: &Leaves, feature: Feature) -> bool {
    leaves
        .get(&(feature.function, feature.index))
        .is_some_and(|leaf| leaf[feature.register as usize] & 1 << feature.bit != 0)
}

fn clear(leaves: &mut Leaves, feature: Feature) {
    if let Some(register) = register_mut(leaves, feature) {
        *register &= !(1 << feature.bit);
    }
}

/// The vendor of the processor.
fn vendor(leaves: &Leaves) -> String {
    let Some([_, ebx, ecx, edx]) = leaves.get(&(LEAF_BASE, 0)) else {
        return "unknown".into();
    };
    [ebx, edx, ecx]
        .iter()
        .flat_map(|register| register.to_le_bytes())
        .filter(u8::is_ascii_graphic)
        .map(char::from)
        .collect()
}
