//! A small rust-vmm based VMM whose guests survive the loss of their host.
//!
//! The rooms, by the steps of the data's way (`docs/ARCHITECTURE.md`): [`memory`] is ①, [`dirty`] ②, pausing
//! and saving for ③ in [`machine`], [`output`] ⑨; ④ to ⑧ are in `understudy-replication`. [`kvm`] makes KVM's
//! ioctls, [`vcpu`], [`boot`] and [`devices`] are what a machine is made of. [`node`], [`config`], [`control`] and
//! [`host`] are what the `vmm` binary uses. `local_cluster` (a cargo feature) is for its demo, the tests and the benchmarks.

pub mod boot;
pub mod config;
pub mod control;
pub mod devices;
pub mod dirty;
pub mod host;
pub mod kvm;
#[cfg(feature = "local-cluster")]
pub mod local_cluster;
pub mod machine;
pub mod memory;
pub mod node;
pub mod output;
pub mod vcpu;
