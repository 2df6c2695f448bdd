//! The features that CPUID reports, one name per bit.
//!
//! Names are those of Linux's `/proc/cpuinfo` where it has one. Sources: Intel's Software
//! Developer's Manual, volume 2, CPUID; AMD's Architecture Programmer's Manual, volume 3, appendix
//! E; the kernel's Documentation/virt/kvm/x86/cpuid.rst. What must not be done here: decide what a
//! guest gets.

use std::fmt;

/// One of the four registers that CPUID fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    /// All of them, in the order of the kernel's structures.
    pub(super) const ALL: [Self; 4] = [Eax, Ebx, Ecx, Edx];
}

/// A register of a leaf whose bits are features.
pub(super) struct Word {
    pub(super) function: u32,
    pub(super) index: u32,
    pub(super) register: Register,
    /// Names from bit 0 on; `-` for a bit that is not a feature, or is not known here.
    names: &'static str,
}

impl Word {
    /// The features, with their bit numbers.
    pub(super) fn features(&self) -> impl Iterator<Item = Feature> + '_ {
        let names = self.names.split_ascii_whitespace().zip(0u8..);
        names
            .filter(|(name, _)| *name != "-")
            .map(|(name, bit)| Feature {
                name,
                function: self.function,
                index: self.index,
                register: self.register,
                bit,
            })
    }
}

/// A feature: a bit with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feature {
    /// The name.
    pub name: &'static str,
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
    /// Register.
    pub register: Register,
    /// Bit.
    pub bit: u8,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (leaf ", self.name)?;
        match self.function {
            0..10 => write!(f, "{}", self.function)?,
            _ => write!(f, "{:#x}", self.function)?,
        }
        if self.index > 0 {
            write!(f, ".{}", self.index)?;
        }
        let register = format!("{:?}", self.register).to_uppercase();
        write!(f, ", {register} bit {})", self.bit)
    }
}

/// Every feature that has a name.
pub(super) fn all() -> impl Iterator<Item = Feature> {
    WORDS.iter().flat_map(Word::features)
}

/// The names of `register` of a leaf, if its bits are features.
pub(super) fn word(function: u32, index: u32, register: Register) -> Option<&'static Word> {
    WORDS
        .iter()
        .find(|word| (word.function, word.index, word.register) == (function, index, register))
}

const fn word_of(function: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word {
        function,
        index,
        register,
        names,
    }
}

pub(super) const WORDS: [Word; 18] = [
    word_of(
        0x1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov \
         pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    word_of(
        0x1,
        0,
        Ecx,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm \
         - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand \
         hypervisor",
    ),
    word_of(
        0x7,
        0,
        Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx \
         rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf avx512er \
         avx512cd sha_ni avx512bw avx512vl",
    ),
    word_of(
        0x7,
        0,
        Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker bus_lock_detect cldemote - movdiri \
         movdir64b enqcmd sgx_lc pks",
    ),
    word_of(
        0x7,
        0,
        Edx,
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
         rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 \
         avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities \
         spec_ctrl_ssbd",
    ),
    word_of(
        0x7,
        1,
        Eax,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred \
         lkgs wrmsrns nmi_source amx_fp16 hreset avx_ifma - - lam msrlist",
    ),
    word_of(
        0x7,
        1,
        Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - utmr prefetchiti user_msr - \
         uiret_uif cet_sss avx10 - apx_f",
    ),
    word_of(
        0x7,
        2,
        Edx,
        "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no uc_lock_disable monitor_mitg_no",
    ),
    word_of(0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word_of(
        0x4000_0001,
        0,
        Eax,
        "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi \
         kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield \
         kvm_async_pf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - \
         kvm_clocksource_stable",
    ),
    word_of(0x4000_0001, 0, Edx, "kvm_hint_realtime"),
    // Bits that AMD repeats from leaf 1 have no name here: they follow that leaf.
    word_of(
        0x8000_0001,
        0,
        Edx,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext \
         3dnow",
    ),
    word_of(
        0x8000_0001,
        0,
        Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - \
         lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    word_of(0x8000_0007, 0, Edx, "- - - - - - - - invariant_tsc"),
    word_of(
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr invlpgb rdpru - mba - mcommit wbnoinvd - - amd_ibpb int_wbinvd amd_ibrs amd_stibp \
         amd_ibrs_always_on amd_stibp_always_on amd_ibrs_preferred amd_ibrs_same_mode efer_lmsle_no - - amd_ppin \
         amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no amd_ibpb_ret brs",
    ),
    word_of(
        0x8000_0021,
        0,
        Eax,
        "no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - - verw_clear null_sel_clr_base - autoibrs \
         no_smm_ctl_msr amd_fsrs amd_fsrc - prefetch_ctl_msr - - - - - - - - - - - - - sbpb ibpb_brtype srso_no \
         srso_user_kernel_no",
    ),
    word_of(0x8000_0021, 0, Ecx, "- tsa_sq_no tsa_l1_no"),
    word_of(0x6, 0, Eax, "- - arat"),
];
