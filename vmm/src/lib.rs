//! A small rust-vmm based VMM whose guests survive the loss of their host.

pub mod boot;
pub mod config;
pub mod control;
pub mod devices;
pub mod dirty;
pub mod kvm;
pub mod lab;
pub mod machine;
pub mod memory;
pub mod output;
pub mod vcpu;
