//! The built-in guest on real KVM.

use std::time::{Duration, Instant};

use understudy_replication::ports::Machine as _;
use understudy_vmm::machine::{Kernel, Machine, MachineConfig};
use understudy_vmm::output::MemorySink;

#[test]
fn look() {
    let sink = MemorySink::default();
    let mut machine = Machine::build(MachineConfig {
        kernel: Some(Kernel::Bytes(understudy_guest_images::BUILTIN.to_vec())),
        cmdline: "workload=dirty dirty.pages=1000".into(),
        console: Some(Box::new(sink.clone())),
        ..Default::default()
    })
    .unwrap();
    let events = machine.events();
    machine.run().unwrap();
    let e = events.recv_timeout(Duration::from_secs(3));
    println!("{e:?}\n{}", String::from_utf8_lossy(&sink.contents()));
    let _ = Instant::now();
}
