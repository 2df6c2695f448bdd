//! The CPU that a guest sees moves with it, and hosts without such a CPU are refused.

use super::*;
use crate::vcpu::{CpuError, CpuTemplate};

/// A machine whose guest was offered less than the host has.
fn cut(kernel: Option<Kernel>) -> Rig {
    let config = MachineConfig {
        cpu_template: CpuTemplate::V1,
        kernel,
        ..config(COUNTING)
    };
    rig_with(config, &["numbers"])
}

/// Moves the guest of `from` to `to`.
fn go_on(from: &mut Rig, to: &mut Rig) -> Result<(), MachineFault> {
    let mut paused = from.machine.pause_guest().unwrap();
    let mut state = Vec::new();
    paused.save_state(&mut state).unwrap();
    paused.stay();
    drop(paused);
    copy_memory(&from.machine.memory, &to.machine.memory);
    to.machine.load(&state)?;
    to.machine.start()
}

#[test]
fn a_guest_keeps_its_cpu_from_host_to_host() {
    let mut first = cut(Some(Kernel::Bytes(elf(COUNTING))));
    first.machine.start().unwrap();
    first.await_number(3);
    let print = first.machine.fingerprint();
    let less = first.machine.cpu.clone();
    let mut second = standby();
    assert_ne!(
        second.machine.cpu, less,
        "this host has more than the template"
    );
    assert_eq!(print.differences(&second.machine.fingerprint()), []);
    go_on(&mut first, &mut second).unwrap();
    second.await_number(3);
    assert_eq!(second.machine.cpu, less);
    // What the guest finds, as KVM keeps it.
    let mut paused = second.machine.pause_guest().unwrap();
    paused.stay();
    drop(paused);
    let [here, there] = [&first, &second].map(|rig| {
        let fd = rig.machine.vcpus[0].handle().lock();
        fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap()
    });
    assert_eq!(here.as_slice(), there.as_slice());
    // A third host is asked for what the guest may use, not for what the second one has.
    assert_eq!(
        second
            .machine
            .fingerprint()
            .differences(&cut(None).machine.fingerprint()),
        []
    );
}

#[test]
fn a_host_that_lacks_a_feature_refuses_by_name() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    first.await_number(3);
    let mut less = standby();
    less.machine.host_cpu = cut(None).machine.cpu.clone();
    let error = go_on(&mut first, &mut less).unwrap_err();
    let MachineFault::State(StateError::Cpu(CpuError::Lacks(lacking))) = &error else {
        panic!("{error:?}");
    };
    assert!(lacking[0].contains("(leaf "), "{lacking:?}");
}
