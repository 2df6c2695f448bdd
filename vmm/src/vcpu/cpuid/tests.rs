//! Models of made-up hosts, and of this one.

use super::template::{CpuTemplate, TemplateError};
use super::*;
use crate::kvm::System;

fn text(bytes: &[u8; 12]) -> [u32; 3] {
    [0, 4, 8].map(|at| {
        let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        u32::from_le_bytes(four)
    })
}

/// A host with every plausible bit set, and vector register components as processors have them.
fn large_host() -> Leaves {
    let [ebx, edx, ecx] = text(b"GenuineIntel");
    let mut leaves: Leaves = [
        0x1,
        0x2,
        0x5,
        0x6,
        0xa,
        0x12,
        0x14,
        0x4000_0001,
        0x4000_0010,
    ]
    .into_iter()
    .chain(0x8000_0001..=0x8000_0008)
    .chain([0x8000_000a, 0x8000_001e, 0x8000_001f, 0x8000_0021])
    .map(|function| ((function, 0), [u32::MAX; 4]))
    .collect();
    leaves.insert((0, 0), [0x1f, ebx, ecx, edx]);
    leaves.insert((0x4000_0000, 0), [0x4000_0010, 1, 2, 3]);
    leaves.insert((0x8000_0000, 0), [0x8000_0021, 0, 0, 0]);
    for index in 0..3 {
        leaves.insert((0x7, index), [u32::MAX; 4]);
        leaves.insert((0xb, index), [u32::MAX; 4]);
    }
    // First and third level.
    leaves.insert((0x4, 0), [0xfc00_4121, 1, 2, 3]);
    leaves.insert((0x4, 1), [0xfc1f_c163, 4, 5, 6]);
    leaves.insert((0xd, 0), [0x602ff, 576, 11008, 0]);
    leaves.insert((0xd, 1), [0x1f, 11008, 0x1900, 0]);
    for (component, bytes, offset, flags) in [
        (2, 256, 576, 0),
        (3, 64, 960, 0),
        (4, 64, 1024, 0),
        (5, 64, 1088, 0),
        (6, 512, 1152, 0),
        (7, 1024, 1664, 0),
        (8, 128, 0, 1),
        (9, 8, 2688, 0),
        (17, 64, 2752, 2),
        (18, 8192, 2816, 6),
    ] {
        leaves.insert((0xd, component), [bytes, offset, flags, 0]);
    }
    leaves
}

fn model(leaves: &Leaves) -> CpuModel {
    CpuModel {
        leaves: filter::filter(leaves),
    }
}

fn set_feature(leaves: &mut Leaves, name: &str, to: bool) {
    let feature = names::all().find(|feature| feature.name == name).unwrap();
    clear(leaves, feature);
    if to {
        *register_mut(leaves, feature).unwrap() |= 1 << feature.bit;
    }
}

fn refusal(primary: &CpuModel, standby: &CpuModel) -> Vec<String> {
    let mut prints = [Fingerprint::new(), Fingerprint::new()];
    for (print, model) in prints.iter_mut().zip([primary, standby]) {
        model.describe(model, print);
    }
    let differences = prints[0].differences(&prints[1]);
    differences.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_hidden_or_nameless_is_not_offered() {
    let host = model(&large_host());
    for name in [
        "vmx", "svm", "hle", "rtm", "sgx", "amx_tile", "intel_pt", "shstk", "mpx", "osxsave",
        "monitor",
    ] {
        assert!(!host.has(name), "{name}");
    }
    for name in [
        "avx512f",
        "pku",
        "spec_ctrl",
        "invariant_tsc",
        "arat",
        "kvm_clocksource",
    ] {
        assert!(host.has(name), "{name}");
    }
    for leaf in [0x5, 0xa, 0x12, 0x14, 0x4000_0010, 0x8000_000a, 0x8000_001f] {
        assert!(!host.leaves.contains_key(&(leaf, 0)), "{leaf:#x}");
    }
    assert_eq!(host.leaves[&(0, 0)][0], 0xd, "the highest leaf left");
    assert_eq!(host.leaves[&(0x8000_0000, 0)][0], 0x8000_0021);
    assert_eq!(filter::filter(&host.leaves), host.leaves);
}

#[test]
fn vector_registers_that_travel_are_offered_and_no_others() {
    let host = model(&large_host());
    assert_eq!(host.leaves[&(0xd, 0)], [0x2e7, 576, 2696, 0]);
    assert_eq!(host.leaves[&(0xd, 1)], [0xf, 576, 0, 0]);
    let components: Vec<u32> = host
        .leaves
        .keys()
        .filter(|key| key.0 == 0xd)
        .map(|key| key.1)
        .collect();
    assert_eq!(components, [0, 1, 2, 5, 6, 7, 9]);
}

#[test]
fn components_that_do_not_add_up_go_with_what_uses_them() {
    // Past the end of what is saved; before its beginning; of no size; missing.
    for place in [
        Some([64, 4090, 0, 0]),
        Some([64, 512, 0, 0]),
        Some([0, 1088, 0, 0]),
        None,
    ] {
        let mut leaves = large_host();
        leaves.remove(&(0xd, 5));
        if let Some(place) = place {
            leaves.insert((0xd, 5), place);
        }
        let host = model(&leaves);
        assert_eq!(host.leaves[&(0xd, 0)], [0x207, 576, 2696, 0], "{place:?}");
        assert!(!host.has("avx512f") && host.has("avx2") && host.has("pku"));
        leaves.remove(&(0xd, 2));
        let host = model(&leaves);
        assert!(!host.has("avx2") && !host.has("fma") && !host.has("avx512vl") && host.has("pku"));
        assert_eq!(filter::filter(&host.leaves), host.leaves);
    }
    let mut leaves = large_host();
    xstate::hide(&mut leaves);
    let host = model(&leaves);
    assert!(!host.has("xsave") && !host.has("avx") && !host.has("pku") && host.has("sse4_2"));
    assert!(!host.leaves.contains_key(&(0xd, 0)));
    assert_eq!(host.leaves[&(0, 0)][0], 0xb, "topology is always there");
    assert_eq!(filter::filter(&host.leaves), host.leaves);
}

#[test]
fn what_differs_between_hosts_of_a_model_does_not_matter() {
    let one = large_host();
    let mut other = large_host();
    // Numbers of APICs and threads, cache sharing, counters, room for microcode, transactions.
    other.get_mut(&(0x1, 0)).unwrap()[1] = 0x0a20_ff00;
    other.get_mut(&(0x4, 0)).unwrap()[0] = 0x3c00_c121;
    other.insert((0xb, 0), [7, 7, 7, 7]);
    other.insert((0xa, 0), [5, 0, 0, 0]);
    other.remove(&(0x4000_0010, 0));
    other.get_mut(&(0x8000_0021, 0)).unwrap()[1] = 0x100;
    other.get_mut(&(0x8000_0008, 0)).unwrap()[2] = 0x1007;
    for name in ["hle", "rtm", "pdcm", "osxsave"] {
        set_feature(&mut other, name, false);
    }
    assert_eq!(model(&one), model(&other));
}

#[test]
fn a_standby_may_have_more_and_what_it_lacks_is_named() {
    let large = model(&large_host());
    let mut leaves = large_host();
    set_feature(&mut leaves, "avx512f", false);
    set_feature(&mut leaves, "xsaves", false);
    leaves.get_mut(&(0x8000_0008, 0)).unwrap()[0] = 0x302e;
    let mut small = model(&leaves);
    assert_eq!(refusal(&small, &large), [""; 0]);
    assert_eq!(
        refusal(&large, &small),
        [
            "the standby's CPU (as its KVM offers it) lacks avx512f (leaf 7, EBX bit 16)",
            "the standby's CPU (as its KVM offers it) lacks physical addresses of 255 bits (leaf 0x80000008, EAX)",
            "the standby's CPU (as its KVM offers it) lacks xsaves (leaf 0xd.1, EAX bit 3)",
        ]
    );
    // Whether CPU or KVM is to blame depends on the host of this test.
    let error = large.check(&small).unwrap_err().to_string();
    assert!(error.contains("avx512f (leaf 7, EBX bit 16)"), "{error}");
    small.check(&large).unwrap();
    // A component at a different place in the saved area is lacking, too.
    let [bytes, _, ecx, edx] = small.leaves[&(0xd, 9)];
    small.leaves.insert((0xd, 9), [bytes, 832, ecx, edx]);
    let lacking = refusal(&small, &large);
    assert_eq!(
        lacking,
        [
            "the standby's CPU (as its KVM offers it) lacks room for protection keys (8 bytes at offset 832; leaf 0xd.9)"
        ]
    );
    let [ebx, edx, ecx] = text(b"AuthenticAMD");
    leaves.insert((0, 0), [0x10, ebx, ecx, edx]);
    let amd = model(&leaves);
    assert!(refusal(&large, &amd)[0].contains("primary has GenuineIntel, backup has AuthenticAMD"));
    assert!(matches!(amd.check(&large), Err(CpuError::Vendor { .. })));
}

#[test]
fn a_model_that_no_host_offers_is_refused() {
    let host = model(&large_host());
    for place in [(0xa, 0), (0x7, 5), (0x4000_0010, 0)] {
        let mut odd = host.clone();
        odd.leaves.insert(place, [1, 2, 3, 4]);
        assert!(
            matches!(odd.check(&host), Err(CpuError::Unknown { .. })),
            "{place:?}"
        );
    }
    let mut odd = host.clone();
    set_feature(&mut odd.leaves, "vmx", true);
    assert!(matches!(odd.check(&host), Err(CpuError::Unknown { .. })));
}

#[test]
fn templates_cut_unlike_hosts_alike() {
    let mut leaves = large_host();
    for name in ["avx512f", "aes", "rdseed", "xsaves", "pku"] {
        set_feature(&mut leaves, name, false);
    }
    let (large, small) = (model(&large_host()), model(&leaves));
    for template in [CpuTemplate::V1, CpuTemplate::V2, CpuTemplate::V3] {
        let [one, other] = [&large, &small].map(|host| template.cut(host).unwrap());
        assert_eq!(refusal(&one, &other), [""; 0], "{template}");
        assert_eq!(refusal(&other, &one), [""; 0], "{template}");
        assert!(!one.has("aes") && one.has("spec_ctrl"));
        assert_eq!(one.has("popcnt"), template != CpuTemplate::V1);
        assert_eq!(one.has("avx2"), template == CpuTemplate::V3);
        assert_eq!(
            one.leaves.contains_key(&(0xd, 0)),
            template == CpuTemplate::V3
        );
        assert_eq!(filter::filter(&one.leaves), one.leaves);
    }
    assert!(CpuTemplate::V4.cut(&large).unwrap().has("avx512vl"));
    let error = CpuTemplate::V4.cut(&small).unwrap_err().to_string();
    assert!(
        error.starts_with("CPU template x86-64-v4: this host's "),
        "{error}"
    );
    assert!(error.contains("avx512f (leaf 7, EBX bit 16)"), "{error}");
    assert_eq!(CpuTemplate::Host.cut(&small).unwrap(), small);
    for template in CpuTemplate::ALL {
        assert_eq!(template.name().parse::<CpuTemplate>().unwrap(), template);
    }
    let error = "x86-64-v5".parse::<CpuTemplate>().unwrap_err();
    assert!(matches!(error, TemplateError::Unknown { .. }));
    assert!(error.to_string().contains("x86-64-v4"), "{error}");
}

#[test]
fn templates_name_features() {
    for name in CpuTemplate::all_names() {
        assert!(names::all().any(|feature| feature.name == name), "{name}");
    }
}

#[test]
fn a_vcpu_finds_its_number_and_the_others() {
    let model = model(&large_host());
    let leaf = |cpuid: &CpuId, function, index| {
        let entry = cpuid
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index));
        entry
            .map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
            .unwrap()
    };
    let third = guest::cpuid(&model.leaves, 2, 4);
    assert_eq!(leaf(&third, 0x1, 0)[1], 0x0204_ff00);
    assert_ne!(leaf(&third, 0x1, 0)[3] & 1 << 28, 0, "there are others");
    assert_eq!(leaf(&third, 0xb, 0), [0, 1, 0x100, 2]);
    assert_eq!(leaf(&third, 0xb, 1), [4, 4, 0x201, 2]);
    assert_eq!(leaf(&third, 0x4, 0)[0], 0x0c00_0121, "its own");
    assert_eq!(leaf(&third, 0x4, 1)[0], 0x0c00_c163, "shared by all four");
    let only = guest::cpuid(&model.leaves, 0, 1);
    assert_eq!(leaf(&only, 0x1, 0)[3] & 1 << 28, 0);
    assert_eq!(leaf(&only, 0x4, 1)[0], 0x163);
}

#[test]
fn this_host_can_stand_in_for_itself() {
    let system = System::open().expect("these tests need a usable /dev/kvm");
    let host = CpuModel::of_host(&system).unwrap();
    assert_eq!(filter::filter(&host.leaves), host.leaves);
    host.check(&host).unwrap();
    assert_eq!(refusal(&host, &host), [""; 0]);
    for template in CpuTemplate::ALL {
        match template.cut(&host) {
            Ok(cut) => cut.check(&host).unwrap(),
            Err(error) => println!("{error}"),
        }
    }
}
