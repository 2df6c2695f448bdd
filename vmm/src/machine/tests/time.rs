//! What a guest that moved is told of the time.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{Msrs, kvm_clock_data, kvm_msr_entry};

use super::*;

/// Where the guest is told at which wall clock time its kvmclock was 0.
const WALL_CLOCK: u64 = 0x10_2000;
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// Longer than the test can take, and than a guest's clock has run in it.
const HOURS_NS: u64 = 5 * 3_600_000_000_000;
const HOUR_NS: u64 = 3_600_000_000_000;

/// How far the wall clock by what the guest is told is off this host's.
fn wall_clock_error_ns(machine: &Machine) -> u64 {
    let word = |at: u64| -> u32 {
        let ram = machine.memory.ram();
        ram.read_obj(GuestAddress(WALL_CLOCK + at)).unwrap()
    };
    let began_ns = u64::from(word(4)) * 1_000_000_000 + u64::from(word(8));
    let told_ns = began_ns + machine.vm.get_clock().unwrap().clock;
    let is = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    told_ns.abs_diff(is.as_nanos() as u64)
}

#[test]
fn a_guest_that_moved_is_told_the_wall_clock_time_of_its_new_host() {
    let mut first = rig(COUNTING);
    // The clock of a guest that has run for long, unlike that of the VM that waits for it.
    let clock = kvm_clock_data {
        clock: HOURS_NS,
        ..Default::default()
    };
    first.machine.vm.set_clock(&clock).unwrap();
    let wall_clock = kvm_msr_entry {
        index: MSR_KVM_WALL_CLOCK_NEW,
        data: WALL_CLOCK,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[wall_clock]).unwrap();
    let written = first.machine.vcpus[0].handle().lock().set_msrs(&msrs);
    assert_eq!(written.unwrap(), 1);
    assert!(wall_clock_error_ns(&first.machine) < HOUR_NS);
    first.machine.start().unwrap();
    first.await_number(3);
    let mut paused = first.machine.pause_guest().unwrap();
    let mut state = Vec::new();
    paused.save_state(&mut state).unwrap();
    paused.stay();
    drop(paused);
    let mut second = standby();
    copy_memory(&first.machine.memory, &second.machine.memory);
    second.machine.load(&state).unwrap();
    assert!(second.machine.vm.get_clock().unwrap().clock >= HOURS_NS);
    assert!(wall_clock_error_ns(&second.machine) < HOUR_NS);
}
