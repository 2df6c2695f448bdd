//! CPU templates: what hosts of different models have in common, so that one can stand in for
//! another.
//!
//! The levels are those of the x86-64 psABI. A template says what a host must have, and what else
//! is offered if the host has it: what kernels expect of any 64-bit processor, KVM's own features,
//! and the controls against side channels, which no guest should miss. What must not be done here:
//! know hosts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{CpuModel, clear, filter, has, names, processor};

/// Which features a guest is offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// Everything the host has.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// What every 64-bit processor has.
    #[serde(rename = "x86-64")]
    V1,
    /// Processors since about 2009: SSE4.2, POPCNT, CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// Processors since about 2015: AVX2, BMI, FMA.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// Servers since about 2017: AVX-512.
    #[serde(rename = "x86-64-v4")]
    V4,
}

/// Why a host cannot provide a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It lacks features.
    #[error("CPU template {template}: {}", processor::blame(lacking))]
    Lacks {
        /// The template.
        template: CpuTemplate,
        /// The features.
        lacking: Vec<String>,
    },
    /// There is no template with this name.
    #[error("there is no CPU template {name:?}; there are {}", CpuTemplate::ALL.map(CpuTemplate::name).join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
}

/// What each psABI level adds to the one before it.
const LEVELS: [&str; 4] = [
    "cmov cx8 fpu fxsr mmx syscall sse sse2 lm nx pae msr tsc apic pge",
    "cx16 lahf_lm popcnt sse3 sse4_1 sse4_2 ssse3",
    "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "avx512f avx512bw avx512cd avx512dq avx512vl",
];

/// Offered in every template, if the host has it.
const ALWAYS: &str = "vme de pse mce sep mtrr mca pat pse36 clflush x2apic tsc_deadline_timer hypervisor arat \
     tsc_adjust invariant_tsc rdtscp cr8_legacy fxsr_opt \
     kvm_clocksource kvm_nop_io_delay kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt \
     kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int \
     kvm_clocksource_stable \
     spec_ctrl intel_stibp flush_l1d arch_capabilities spec_ctrl_ssbd md_clear srbds_ctrl intel_psfd ipred_ctrl \
     rrsba_ctrl bhi_ctrl amd_ibpb amd_ibrs amd_stibp amd_ibrs_always_on amd_stibp_always_on amd_ibrs_preferred \
     amd_ibrs_same_mode amd_ssbd virt_ssbd amd_psfd amd_ibpb_ret verw_clear lfence_rdtsc null_sel_clr_base sbpb \
     ibpb_brtype";

/// How XSAVE saves; comes with XSAVE.
const XSAVE: &str = "xsaveopt xsavec xgetbv1";

impl CpuTemplate {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Host, Self::V1, Self::V2, Self::V3, Self::V4];

    /// The template's name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V1 => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// Every feature name that templates use.
    #[cfg(test)]
    pub(super) fn all_names() -> impl Iterator<Item = &'static str> {
        let words = LEVELS.into_iter().chain([ALWAYS, XSAVE]);
        words.flat_map(str::split_ascii_whitespace)
    }

    /// The features a guest is offered on `host`.
    ///
    /// # Errors
    /// If the host lacks features of the template; the error names each.
    pub fn cut(self, host: &CpuModel) -> Result<CpuModel, TemplateError> {
        let levels = match self {
            Self::Host => return Ok(host.clone()),
            Self::V1 => 1,
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V4 => 4,
        };
        let must = |name: &str| LEVELS[..levels].iter().any(|names| is_in(name, names));
        let lacking: Vec<String> = names::all()
            .filter(|feature| must(feature.name) && !has(&host.leaves, *feature))
            .map(|feature| feature.to_string())
            .collect();
        if !lacking.is_empty() {
            return Err(TemplateError::Lacks {
                template: self,
                lacking,
            });
        }
        let mut leaves = host.leaves.clone();
        for feature in names::all() {
            let name = feature.name;
            let may = is_in(name, ALWAYS) || must("xsave") && is_in(name, XSAVE);
            if !must(name) && !may {
                clear(&mut leaves, feature);
            }
        }
        Ok(CpuModel {
            leaves: filter::filter(&leaves),
        })
    }
}

fn is_in(name: &str, names: &str) -> bool {
    names.split_ascii_whitespace().any(|one| one == name)
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|template| template.name() == text)
            .ok_or_else(|| TemplateError::Unknown { name: text.into() })
    }
}
