//! o
/// v
pub const VCPUS_MAX: u8 = 4;
