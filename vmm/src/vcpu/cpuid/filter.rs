//! The part of a host's CPUID that is offered to guests: an allow-list.
//!
//! A feature is offered if it has a name and can travel: its state is saved, and it is the same on
//! every host of a model. Left out are counters and other hardware whose state is not saved here,
//! what firmware and microcode turn on and off, and where something is in the host. What must not
//! be done here: look at anything but CPUID.

use super::leaf::{
    LEAF_ADDRESSES, LEAF_AMD_CACHES, LEAF_AMD_FEATURES, LEAF_AMD_TOPOLOGY, LEAF_BASE, LEAF_CACHES,
    LEAF_EXTENDED, LEAF_FEATURES, LEAF_HYPERVISOR, LEAF_TOPOLOGY, LEAF_XSAVE,
};
use super::names::{Register, word};
use super::{Leaves, xstate};

/// Features that are never offered, and why.
const HIDDEN: [(&str, &str); 12] = [
    (
        "virtualisation: its state is not saved",
        "vmx svm skinit smx",
    ),
    (
        "counters and tracing: their state is not saved, and they differ with microcode",
        "dts dtes64 ds_cpl pdcm intel_pt arch_lbr cqm rdt_a ibs lwp perfctr_core perfctr_nb perfctr_llc irperf rdpru \
         brs arch_perfmon_ext mba ptsc",
    ),
    (
        "keys that never leave the chip",
        "sgx sgx_lc sgx_keys key_locker tme pconfig",
    ),
    (
        "transactions: microcode switches them off",
        "hle rtm rtm_always_abort tsx_force_abort tsxldtrk",
    ),
    (
        "registers beyond the 4 KiB that are saved",
        "amx_bf16 amx_tile amx_int8 amx_fp16 amx_complex xfd",
    ),
    (
        "the shadow stack's pointer is not saved",
        "shstk ibt cet_sss",
    ),
    (
        "events in forms that are not saved",
        "fred lkgs uintr user_msr uiret_uif nmi_source msrlist enqcmd pks",
    ),
    (
        "no longer, or not yet, in processors",
        "mpx pn ia64 pcommit avx10 apx_f",
    ),
    (
        "power, heat and location in the host",
        "monitor mwaitx est tm tm2 acpi pbe dca cid sdbg xtpr extapic wdt nodeid_msr osvw hybrid_cpu cppc hreset \
         amd_ppin mcommit monitor_mitg_no",
    ),
    ("set for each vCPU, see `guest`", "ht cmp_legacy"),
    (
        "mirrors of control registers, which KVM keeps",
        "osxsave ospke",
    ),
    (
        "needs help from the VMM",
        "kvm_hc_map_gpa_range kvm_migration_control kvm_msi_ext_dest_id",
    ),
];

/// Bits of leaf 1, EDX that AMD repeats in leaf 0x80000001.
const REPEATED: u32 = 0x0183_f3ff;

/// Filters `leaves`. Filtering the result again changes nothing.
pub(super) fn filter(leaves: &Leaves) -> Leaves {
    let mut kept: Leaves = leaves
        .iter()
        .filter(|((function, index), _)| is_offered(*function, *index))
        .map(|(place, registers)| (*place, bits(*place, *registers)))
        .collect();
    xstate::filter(&mut kept);
    repeat_for_amd(&mut kept);
    limits(&mut kept);
    kept
}

/// Returns whether sub-leaves matter for a leaf.
pub(super) fn has_indices(function: u32) -> bool {
    matches!(
        function,
        LEAF_CACHES | 0x7 | LEAF_TOPOLOGY | LEAF_XSAVE | LEAF_AMD_CACHES
    )
}

fn is_offered(function: u32, index: u32) -> bool {
    match function {
        0x7 => index <= 2,
        LEAF_CACHES | LEAF_AMD_CACHES => index < 16,
        LEAF_XSAVE => index < 64,
        0..=2 | 0x6 | LEAF_HYPERVISOR | 0x4000_0001 => index == 0,
        LEAF_EXTENDED..=0x8000_0008 | LEAF_AMD_TOPOLOGY | 0x8000_0021 => index == 0,
        _ => false,
    }
}

fn bits(place: (u32, u32), mut registers: [u32; 4]) -> [u32; 4] {
    let (function, index) = place;
    // Feature registers: keep what has a name and is not hidden.
    for (register, value) in Register::ALL.into_iter().zip(&mut registers) {
        if let Some(word) = word(function, index, register) {
            let offered = word.features().filter(|feature| !is_hidden(feature.name));
            *value &= offered.fold(0, |mask, feature| mask | 1 << feature.bit);
        }
    }
    let [eax, ebx, ecx, edx] = &mut registers;
    match function {
        // The vCPU's number, and how many vCPUs there are.
        LEAF_FEATURES => *ebx &= 0x0000_ff00,
        0x6 | 0x8000_0007 => {
            if function == 0x6 {
                (*ebx, *ecx, *edx) = (0, 0, 0);
            } else {
                (*eax, *ebx, *ecx) = (0, 0, 0);
            }
        }
        0x7 if index == 0 => *eax = (*eax).min(2),
        0x7 => {
            // Keep only what has names: registers of other sub-leaves are features too.
            *ebx = 0;
            *ecx = 0;
            if index == 2 {
                *eax = 0;
            }
        }
        // How many of the host's threads share a cache, and how many cores a package has.
        LEAF_CACHES | LEAF_AMD_CACHES => *eax &= 0x3fff,
        0x4000_0001 => (*ebx, *ecx, *edx) = (0, 0, 0),
        LEAF_AMD_FEATURES => *ebx = 0,
        // Address widths stay; thread counts go.
        LEAF_ADDRESSES => {
            *eax &= 0xffff;
            *ecx = 0;
            *edx = 0;
        }
        LEAF_AMD_TOPOLOGY => (*eax, *ebx, *ecx, *edx) = (0, 0, 0, 0),
        // How much room a microcode patch takes.
        0x8000_0021 => (*ebx, *edx) = (0, 0),
        _ => {}
    }
    registers
}

fn is_hidden(name: &str) -> bool {
    HIDDEN
        .iter()
        .any(|(_, names)| names.split_ascii_whitespace().any(|hidden| hidden == name))
}

fn repeat_for_amd(leaves: &mut Leaves) {
    let is_amd = super::vendor(leaves) != "GenuineIntel";
    let first = leaves.get(&(LEAF_FEATURES, 0)).map_or(0, |leaf| leaf[3]);
    if let (true, Some(leaf)) = (is_amd, leaves.get_mut(&(LEAF_AMD_FEATURES, 0))) {
        leaf[3] |= first & REPEATED;
    }
}

/// The highest leaf of each range, as the range's first leaf reports it. The topology leaf always
/// exists.
fn limits(leaves: &mut Leaves) {
    for (first, last, at_least) in [
        (LEAF_BASE, 0xffff, LEAF_TOPOLOGY),
        (LEAF_HYPERVISOR, 0x4000_ffff, LEAF_HYPERVISOR),
        (LEAF_EXTENDED, 0x8000_ffff, LEAF_EXTENDED),
    ] {
        let highest = leaves
            .range((first, 0)..=(last, u32::MAX))
            .next_back()
            .map_or(at_least, |((function, _), _)| (*function).max(at_least));
        if let Some(leaf) = leaves.get_mut(&(first, 0)) {
            leaf[0] = highest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::names;
    use super::*;

    #[test]
    fn hidden_names_are_names() {
        for (why, hidden) in HIDDEN {
            for name in hidden.split_ascii_whitespace() {
                assert!(
                    names::all().any(|feature| feature.name == name),
                    "{name} ({why})"
                );
            }
        }
    }

    #[test]
    fn names_are_unique_and_fit_their_registers() {
        let all: Vec<_> = names::all().collect();
        let unique: std::collections::BTreeSet<_> = all.iter().map(|f| f.name).collect();
        assert_eq!(unique.len(), all.len());
        assert!(all.iter().all(|feature| feature.bit < 32));
    }
}
