//! Turns a model into the CPUID of one vCPU: adds its number, and its place among the others.
//!
//! The guest's topology is always the same: one package, cores with one thread each, first and
//! second level caches per core, and the other caches shared by all. What must not be done here:
//! features.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::filter::has_indices;
use super::leaf::{
    LEAF_ADDRESSES, LEAF_AMD_CACHES, LEAF_AMD_FEATURES, LEAF_AMD_TOPOLOGY, LEAF_CACHES,
    LEAF_FEATURES, LEAF_TOPOLOGY,
};
use super::{Leaves, vendor};

/// APIC numbers of 16 vCPUs take 4 bits.
const TOPOLOGY_SHIFT: u32 = 4;
/// Leaf 1, EDX: there is more than one logical processor.
const EDX_HT: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: and these are cores.
const ECX_CMP_LEGACY: u32 = 1 << 1;
const CACHE_LEVEL_SHIFT: u32 = 5;

/// The CPUID of vCPU `id` of `vcpus`.
pub(super) fn cpuid(leaves: &Leaves, id: u8, vcpus: u8) -> CpuId {
    let (number, count) = (u32::from(id), u32::from(vcpus));
    let mut leaves = leaves.clone();
    // One thread per core, all cores in one package.
    leaves.insert((LEAF_TOPOLOGY, 0), [0, 1, 1 << 8, number]);
    let cores = [TOPOLOGY_SHIFT, count, (2 << 8) | 1, number];
    leaves.insert((LEAF_TOPOLOGY, 1), cores);
    let is_intel = vendor(&leaves) == "GenuineIntel";
    for ((function, _), [eax, ebx, ecx, edx]) in &mut leaves {
        match *function {
            LEAF_FEATURES => {
                *ebx |= (count << 16) | (number << 24);
                if count > 1 {
                    *edx |= EDX_HT;
                }
            }
            LEAF_CACHES | LEAF_AMD_CACHES => {
                let level = *eax >> CACHE_LEVEL_SHIFT & 0b111;
                if level > 2 {
                    *eax |= (count - 1) << 14;
                }
                if *function == LEAF_CACHES && level > 0 {
                    *eax |= (count - 1) << 26;
                }
            }
            LEAF_AMD_FEATURES if !is_intel && count > 1 => *ecx |= ECX_CMP_LEGACY,
            LEAF_ADDRESSES if !is_intel => *ecx |= (TOPOLOGY_SHIFT << 12) | (count - 1),
            LEAF_AMD_TOPOLOGY => (*eax, *ebx) = (number, number),
            _ => {}
        }
    }
    let entries: Vec<kvm_cpuid_entry2> = leaves
        .into_iter()
        .map(
            |((function, index), [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function,
                index,
                flags: match has_indices(function) {
                    true => KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    false => 0,
                },
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            },
        )
        .collect();
    CpuId::from_entries(&entries).expect("a model has no more leaves than KVM takes")
}
