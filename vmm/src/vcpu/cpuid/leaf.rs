//! The numbers of CPUID leaves. What must not be done here: say what of a leaf is offered.

pub(super) const LEAF_BASE: u32 = 0;
pub(super) const LEAF_FEATURES: u32 = 0x1;
pub(super) const LEAF_CACHES: u32 = 0x4;
pub(super) const LEAF_TOPOLOGY: u32 = 0xb;
pub(super) const LEAF_XSAVE: u32 = 0xd;
pub(super) const LEAF_HYPERVISOR: u32 = 0x4000_0000;
pub(super) const LEAF_EXTENDED: u32 = 0x8000_0000;
pub(super) const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
pub(super) const LEAF_ADDRESSES: u32 = 0x8000_0008;
pub(super) const LEAF_AMD_CACHES: u32 = 0x8000_001d;
pub(super) const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
