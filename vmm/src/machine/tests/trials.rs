//! States that are loaded on trial.

use understudy_replication::ports::{Machine as MachinePort, MachineError};

use super::*;

/// One that no KVM has.
const MSR_NOBODYS: u32 = 0x4b56_4dff;
const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
const WALL_CLOCK_AT: u64 = 0x5000;

/// The state of a guest that has said the number; its memory is `from`.
fn saved(from: &mut Rig, number: u32) -> Vec<u8> {
    from.await_number(number);
    let mut state = Vec::new();
    from.machine
        .pause_guest()
        .unwrap()
        .save_state(&mut state)
        .unwrap();
    state
}

fn with_msr(state: &[u8], index: u32, data: u64) -> Vec<u8> {
    let mut state = MachineState::decode(state).unwrap();
    state.set_msr(index, data);
    let mut bytes = Vec::new();
    state.encode(&mut bytes).unwrap();
    bytes
}

/// What a guest would find of timers and interrupts.
fn kvm_part(machine: &Machine) -> String {
    let fd = machine.vcpus[0].handle().lock();
    format!("{:?} {:?}", fd.get_lapic().unwrap().regs, fd.get_regs())
}

#[test]
fn a_machine_on_which_states_were_tried_is_as_it_was_and_takes_over_exactly() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    let mut second = standby();
    let before = kvm_part(&second.machine);
    for number in [10, 30] {
        let state = saved(&mut first, number);
        second.machine.try_load(&state).unwrap();
        assert_eq!(kvm_part(&second.machine), before);
    }
    assert!(lock(&second.read_from).count == 0, "the device is as made");
    let mut paused = first.machine.pause_guest().unwrap();
    let mut state = Vec::new();
    paused.save_state(&mut state).unwrap();
    paused.stay();
    drop(paused);
    second.machine.try_load(&state).unwrap();
    let memory = first.machine.memory.ram();
    let counted: u32 = memory.read_obj(GuestAddress(0x10_1000)).unwrap();
    let last = first.heard().last().copied().unwrap_or(counted);
    copy_memory(&first.machine.memory, &second.machine.memory);
    second.machine.load(&state).unwrap();
    second.machine.start().unwrap();
    assert_eq!(second.next(), last + 1);
    let error = second.machine.try_load(&state).unwrap_err();
    let said = "a machine that is running cannot be restored";
    assert_eq!(error.to_string(), said);
}

#[test]
fn what_this_host_refuses_is_named_and_costs_the_machine_nothing() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    let state = saved(&mut first, 10);
    let mut second = standby();
    let mut refused = |state: &[u8]| {
        let error = second.machine.try_load(state).unwrap_err();
        error.with_causes()
    };
    let said = refused(&with_msr(&state, MSR_NOBODYS, 1));
    assert!(said.contains("MSR 0x4b564dff cannot be written"), "{said}");
    let said = refused(&state[..state.len() / 2]);
    assert!(said.contains("malformed"), "{said}");
    let mut other = rig_with(config(COUNTING), &["other"]);
    let said = other.machine.try_load(&state).unwrap_err().with_causes();
    assert!(said.contains("device numbers"), "{said}");
    second.machine.try_load(&state).unwrap();
    second.machine.load(&state).unwrap();
}

#[test]
fn a_machine_whose_trial_could_not_be_undone_is_of_no_use_and_one_that_is_refused_a_state_is() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    let state = saved(&mut first, 10);
    let mut second = standby();
    let refused = with_msr(&state, MSR_NOBODYS, 1);
    let error = MachinePort::try_restore(&mut second.machine, &refused).unwrap_err();
    assert!(matches!(error, MachineError::Failed { .. }), "{error}");
    second.machine.phase = Phase::Broken;
    let error = MachinePort::try_restore(&mut second.machine, &state).unwrap_err();
    assert!(matches!(error, MachineError::Unusable(_)), "{error}");
}

/// KVM writes the wall clock to memory as soon as its register is written.
#[test]
fn a_trial_leaves_memory_alone() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    let state = with_msr(&saved(&mut first, 10), MSR_WALL_CLOCK, WALL_CLOCK_AT);
    let mut second = standby();
    let memory = second.machine.memory.ram().clone();
    let content = || {
        let mut bytes = [0_u8; 16];
        memory
            .read_slice(&mut bytes, GuestAddress(WALL_CLOCK_AT))
            .unwrap();
        bytes
    };
    second.machine.try_load(&state).unwrap();
    assert_eq!(content(), [0; 16]);
    second.machine.load(&state).unwrap();
    assert_ne!(
        content(),
        [0; 16],
        "this KVM has no wall clock: the test shows nothing"
    );
}
