//! What the vCPUs claim to be: CPUID as the guest gets it, and its description for the fingerprint.
//!
//! What must not be done here: hide features to make unlike hosts look alike. If they differ, the
//! fingerprints differ, and the handshake says on which leaf.

use kvm_bindings::CpuId;
use understudy_replication::Fingerprint;

use crate::kvm::{KvmError, System, VcpuHandle};

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_MORE_FEATURES: u32 = 0x7;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_XSAVE: u32 = 0xd;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_HYPERVISOR_TIMING: u32 = 0x4000_0010;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_OSXSAVE: u32 = 1 << 27;
const ECX_HYPERVISOR: u32 = 1 << 31;
const ECX_OSPKE: u32 = 1 << 4;
/// APIC numbers of 16 vCPUs take 4 bits.
const TOPOLOGY_SHIFT: u32 = 4;

/// The CPUID of vCPU `id` out of `vcpus`, from what KVM supports.
fn cpuid_for(supported: &CpuId, id: u8, vcpus: u8, deadline_timer: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let number = u32::from(id);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | (u32::from(vcpus) << 16) | (number << 24);
                entry.ecx |= ECX_HYPERVISOR;
                if deadline_timer {
                    entry.ecx |= ECX_TSC_DEADLINE;
                }
            }
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => {
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    // One thread a core, all cores in one package.
                    0 => (0, 1, 1 << 8),
                    1 => (TOPOLOGY_SHIFT, u32::from(vcpus), (2 << 8) | 1),
                    level => (0, 0, level),
                };
                entry.edx = number;
            }
            LEAF_AMD_TOPOLOGY => {
                entry.eax = number;
            }
            _ => {}
        }
    }
    cpuid
}

/// Gives a vCPU its CPUID. Once, before anything else is set: KVM checks the rest against it.
///
/// # Errors
/// If KVM refuses.
pub fn configure_cpuid(
    system: &System,
    supported: &CpuId,
    handle: &VcpuHandle,
    vcpus: u8,
) -> Result<(), KvmError> {
    let deadline_timer = system.has(kvm_ioctls::Cap::TscDeadlineTimer);
    let cpuid = cpuid_for(supported, handle.id(), vcpus, deadline_timer);
    handle
        .lock()
        .set_cpuid2(&cpuid)
        .map_err(KvmError::call(format!(
            "set CPUID of vCPU {} (KVM_SET_CPUID2)",
            handle.id()
        )))
}

/// Adds the CPUID of vCPU 0 of a guest with `vcpus` vCPUs to a fingerprint, as `cpu.LEAF.SUB.REG`. Left
/// out is what changes by itself (it mirrors registers that are part of the state) or describes where in
/// the host something is.
pub fn describe_cpuid(system: &System, supported: &CpuId, vcpus: u8, into: &mut Fingerprint) {
    let deadline_timer = system.has(kvm_ioctls::Cap::TscDeadlineTimer);
    let cpuid = cpuid_for(supported, 0, vcpus, deadline_timer);
    for entry in cpuid.as_slice() {
        let (mut eax, mut ebx, mut ecx, mut edx) = (entry.eax, entry.ebx, entry.ecx, entry.edx);
        match entry.function {
            LEAF_FEATURES => {
                ebx &= 0x00ff_ffff;
                ecx &= !ECX_OSXSAVE;
            }
            // Which caches are shared by how many of the host's threads.
            LEAF_CACHES => eax &= 0x0000_3fff,
            LEAF_AMD_CACHES => eax &= 0x0000_3fff,
            LEAF_MORE_FEATURES if entry.index == 0 => ecx &= !ECX_OSPKE,
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => edx = 0,
            // Size of what is switched on at the moment.
            LEAF_XSAVE if entry.index < 2 => ebx = 0,
            LEAF_AMD_TOPOLOGY => (eax, ebx, ecx) = (0, 0, 0),
            LEAF_HYPERVISOR_TIMING => continue,
            _ => {}
        }
        for (name, value) in [
            ("eax", &mut eax),
            ("ebx", &mut ebx),
            ("ecx", &mut ecx),
            ("edx", &mut edx),
        ] {
            into.set(
                format!("cpu.{:#x}.{}.{name}", entry.function, entry.index),
                format_args!("{value:#x}"),
            );
        }
    }
    into.set("cpu.vendor", vendor(&cpuid));
}

fn vendor(cpuid: &CpuId) -> String {
    let Some(leaf) = cpuid.as_slice().iter().find(|entry| entry.function == 0) else {
        return "unknown".into();
    };
    [leaf.ebx, leaf.edx, leaf.ecx]
        .iter()
        .flat_map(|register| register.to_le_bytes())
        .filter(u8::is_ascii_graphic)
        .map(char::from)
        .collect()
}
