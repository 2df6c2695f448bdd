//! The `vmm` binary end to end, on real KVM: what its users see when things go right and wrong.
//!
//! Tests that start guests take turns, as they would slow one another down. All wait for events; the
//! deadlines are only there to end a test that has failed. Without a usable `/dev/kvm` they fail.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod arbiter;
mod broken;
mod commands;
mod console;
mod demo;
mod disks;
mod endurance;
mod handover;
mod host;
mod owners;
mod peers;
mod reboot;
mod standby_loss;
mod streams;
mod support;
mod tracing;
mod unprotected;
mod usage;
