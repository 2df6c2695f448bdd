//! Leaf 0xd: which vector registers exist, and where each lies in the area that XSAVE writes.
//!
//! The state of vector registers travels in that form, so both hosts must place components alike:
//! components are compared with size and offset. Only components whose places make sense are
//! offered; without a component, all features that need it are dropped. What must not be done here:
//! supervisor state, which no guest is offered.

use std::sync::OnceLock;

use kvm_bindings::CpuId;

use super::leaf::{LEAF_FEATURES, LEAF_XSAVE};
use super::{Leaves, names};
use crate::kvm::{KvmError, System};
use crate::vcpu::trial::Trial;

/// The x87 and SSE registers and the header; other components begin after them.
const LEGACY_BYTES: u32 = 576;
/// What the kernel saves in one piece.
const AREA_BYTES_MAX: u32 = 4096;
/// x87 and SSE, which have no sub-leaf.
const LEGACY: u32 = 0b11;
/// Leaf 1, ECX.
const ECX_XSAVE: u32 = 1 << 26;

/// A component: its number, its name, and the name prefixes of features that need it.
struct Component {
    number: u32,
    name: &'static str,
    used_by: &'static [&'static str],
}

const AVX: &[&str] = &[
    "avx",
    "fma",
    "f16c",
    "xop",
    "vaes",
    "vpclmulqdq",
    "sha512",
    "sm3",
    "sm4",
];
const AVX512: &[&str] = &["avx512"];

/// What is offered. AVX comes first, as AVX-512 needs it.
const COMPONENTS: [Component; 5] = [
    component(2, "AVX registers", AVX),
    component(5, "AVX-512 mask registers", AVX512),
    component(6, "AVX-512 upper halves", AVX512),
    component(7, "AVX-512 more registers", AVX512),
    component(9, "protection keys", &["pku"]),
];

const fn component(number: u32, name: &'static str, used_by: &'static [&'static str]) -> Component {
    Component {
        number,
        name,
        used_by,
    }
}

/// Makes leaf 0xd and the features that need it agree.
pub(super) fn filter(leaves: &mut Leaves) {
    let has = |leaves: &Leaves, begin: &str| {
        names::all().any(|feature| {
            feature.name.starts_with(begin)
                && feature.function != LEAF_XSAVE
                && super::has(leaves, feature)
        })
    };
    let offered = leaves.get(&(LEAF_XSAVE, 0)).map_or(0, |leaf| leaf[0]);
    let xsave = leaves
        .get(&(LEAF_FEATURES, 0))
        .is_some_and(|leaf| leaf[2] & ECX_XSAVE != 0);
    if !xsave || offered & LEGACY != LEGACY {
        return hide(leaves);
    }
    let mut mask = LEGACY;
    let mut end = LEGACY_BYTES;
    for component in &COMPONENTS {
        let bit = 1 << component.number;
        let place = place(leaves, component.number);
        // Keep it only if some feature uses it.
        let used = component.used_by.iter().any(|begin| has(leaves, begin));
        let fits = offered & bit != 0 && used && place.is_some();
        match place {
            Some((offset, bytes)) if fits => {
                mask |= bit;
                end = end.max(offset + bytes);
            }
            _ => forget(leaves, component.used_by),
        }
    }
    // All three parts of AVX-512, or none of them.
    if mask & 0b1110_0000 != 0b1110_0000 {
        forget(leaves, AVX512);
        mask &= !0b1110_0000;
        let ends = COMPONENTS.iter().filter(|c| mask & 1 << c.number != 0);
        let ends = ends.filter_map(|c| place(leaves, c.number));
        end = ends
            .map(|(offset, bytes)| offset + bytes)
            .fold(LEGACY_BYTES, u32::max);
    }
    leaves.retain(|(function, index), _| {
        *function != LEAF_XSAVE || *index < 2 || (*index < 32 && mask & 1 << *index != 0)
    });
    if let Some(leaf) = leaves.get_mut(&(LEAF_XSAVE, 0)) {
        // EBX is the size of what is currently enabled: KVM maintains it.
        *leaf = [mask, LEGACY_BYTES, end, 0];
    }
    if let Some(leaf) = leaves.get_mut(&(LEAF_XSAVE, 1)) {
        *leaf = [leaf[0], if leaf[0] == 0 { 0 } else { LEGACY_BYTES }, 0, 0];
    }
    for (place, leaf) in leaves.iter_mut() {
        if place.0 == LEAF_XSAVE && place.1 >= 2 {
            // Bit 1 of ECX: aligned in the compacted form.
            leaf[2] &= 0b10;
            leaf[3] = 0;
        }
    }
}

/// Hides everything that XSAVE saves. Guests then save x87 and SSE registers with FXSAVE.
pub(super) fn hide(leaves: &mut Leaves) {
    leaves.retain(|(function, _), _| *function != LEAF_XSAVE);
    forget(leaves, &["xsave"]);
    for component in &COMPONENTS {
        forget(leaves, component.used_by);
    }
}

/// Offset and size of a component, if they make sense.
fn place(leaves: &Leaves, number: u32) -> Option<(u32, u32)> {
    let [bytes, offset, ecx, _] = *leaves.get(&(LEAF_XSAVE, number))?;
    let end = offset.checked_add(bytes)?;
    let is_user_state = ecx & 1 == 0;
    (is_user_state && bytes > 0 && offset >= LEGACY_BYTES && end <= AREA_BYTES_MAX)
        .then_some((offset, bytes))
}

/// Clears features whose names have one of these prefixes.
fn forget(leaves: &mut Leaves, beginnings: &[&str]) {
    for feature in names::all() {
        let is_meant = beginnings
            .iter()
            .any(|begin| feature.name.starts_with(begin));
        // The leaf's own features say which instructions of the family exist.
        if is_meant && feature.function != LEAF_XSAVE {
            super::clear(leaves, feature);
        }
    }
}

/// The components that a guest may use, in words that differ if their places differ.
pub(super) fn describe(leaves: &Leaves) -> impl Iterator<Item = String> + '_ {
    let mask = leaves.get(&(LEAF_XSAVE, 0)).map_or(0, |leaf| leaf[0]);
    COMPONENTS
        .iter()
        .filter(move |component| mask & 1 << component.number != 0)
        .filter_map(|component| {
            let (offset, bytes) = place(leaves, component.number)?;
            Some(format!(
                "room for {} ({bytes} bytes at offset {offset}; leaf 0xd.{})",
                component.name, component.number
            ))
        })
}

/// `mov eax, 3; xor ecx, ecx; xor edx, edx; xsetbv; out 0x80, al`
const TRIAL_CODE: [u8; 14] = [
    0xb8, 3, 0, 0, 0, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xd1, 0xe6, 0x80,
];
const CR4_OSXSAVE: u64 = 1 << 18;

/// Whether KVM notices when a guest enables vector registers. Some processors (QEMU 7.2 emulates
/// one) do not report it. KVM then believes that the guest uses only x87: it reports wrong sizes,
/// and loses the other registers when it saves the guest. Tried once, and kept for the life of the
/// process.
pub(super) fn is_noticed(system: &System, supported: &CpuId) -> Result<bool, KvmError> {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(answer) = ANSWER.get() {
        return Ok(*answer);
    }
    let answer = try_out(system, supported)?;
    Ok(*ANSWER.get_or_init(|| answer))
}

fn try_out(system: &System, supported: &CpuId) -> Result<bool, KvmError> {
    let has_xsave = supported
        .as_slice()
        .iter()
        .any(|entry| entry.function == LEAF_FEATURES && entry.ecx & ECX_XSAVE != 0);
    if !has_xsave {
        return Ok(true);
    }
    let trial = Trial::new(system, &TRIAL_CODE)?;
    trial
        .handle
        .lock()
        .set_cpuid2(supported)
        .map_err(KvmError::call("set CPUID of a trial vCPU"))?;
    if !trial.run_kernel(CR4_OSXSAVE)? {
        // If even this cannot run, that shows when the guest runs.
        tracing::debug!("the trial of XSETBV did not finish");
        return Ok(true);
    }
    let xcrs = trial
        .handle
        .lock()
        .get_xcrs()
        .map_err(KvmError::call("read XCR0 of a trial vCPU"))?;
    let noticed = xcrs.xcrs[0].value == u64::from(LEGACY);
    if !noticed {
        tracing::warn!(
            "this processor does not tell KVM when a guest switches vector registers on; guests are not offered \
             XSAVE and what needs it"
        );
    }
    Ok(noticed)
}
