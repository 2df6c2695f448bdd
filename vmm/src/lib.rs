//! A small rust-vmm based VMM whose guests survive the loss of their host.

pub mod devices;
pub mod memory;
pub mod output;
