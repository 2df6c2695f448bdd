//! A reset in place: the guest starts again where it is, and a copy of it stays exact.

use super::*;

/// Says 0x101000's number, adds 1 to it (in the image's own memory, beyond its bytes: zero at boot), spoils its
/// own first instruction, dirties a page the boot does not write, and asks for a reset.
const REBOOTING: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0xb8, 0x07, 0x00, 0x00, 0x00, // mov eax, 7
    0xef, // out dx, eax
    0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
    0xff, 0x07, // inc dword [rdi]
    0x8b, 0x07, // mov eax, [rdi]
    0xef, // out dx, eax
    0xbf, 0x00, 0x00, 0x10, 0x00, // mov edi, 0x100000
    0xc6, 0x07, 0xf4, // mov byte [rdi], 0xf4 (hlt)
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xeb, 0xfe, // jmp here
];

fn await_reset(events: &Receiver<MachineEvent>) {
    let event = events.recv_timeout(DEADLINE).unwrap();
    assert_eq!(event, MachineEvent::GuestReset);
}

#[test]
fn a_guest_begins_anew_and_memory_that_the_boot_does_not_write_is_kept() {
    let mut rig = rig(REBOOTING);
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    for run in 1..=5 {
        await_reset(&events);
        assert_eq!([rig.next(), rig.next()], [7, run]);
        // It stands still until somebody acts, and can be looked at.
        let mut paused = rig.machine.pause_guest().unwrap();
        paused.save_state(&mut Vec::new()).unwrap();
        drop(paused);
        assert!(rig.heard().is_empty());
        lock(&rig.read_from).count = 9;
        rig.machine.reset_guest().unwrap();
        assert_eq!(lock(&rig.read_from).count, 0, "devices are reset too");
    }
}

/// R3: what the reset itself writes is dirty, whoever wrote it.
#[test]
fn a_copy_made_of_dirty_pages_is_exact_across_resets() {
    let mut rig = rig(REBOOTING);
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    await_reset(&events);
    let memory = rig.machine.memory.clone();
    let copy = Memory::allocate(16, Default::default()).unwrap();
    rig.machine.track().unwrap();
    copy_memory(&memory, &copy);
    for run in 0..3 {
        // What the boot writes is another guest's by now: only the reset can bring it back.
        for address in [0x7000u64, 0x2_0000, 0xe_0000, 0x10_0000] {
            let page = PageIndex(address / 4096);
            memory.pages().write_page(page, &[run; PAGE_BYTES]).unwrap();
            copy.pages().write_page(page, &[run; PAGE_BYTES]).unwrap();
        }
        rig.machine.reset_guest().unwrap();
        await_reset(&events);
        let mut dirty = PageSet::empty(copy.layout());
        let mut paused = rig.machine.pause_guest().unwrap();
        paused.harvest_pages(&mut dirty).unwrap();
        let (mut ours, mut theirs): (Page, Page) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        for index in dirty.iter() {
            memory.pages().read_page(index, &mut ours).unwrap();
            copy.pages().write_page(index, &ours).unwrap();
        }
        for index in PageSet::full(copy.layout()).iter() {
            memory.pages().read_page(index, &mut ours).unwrap();
            copy.pages().read_page(index, &mut theirs).unwrap();
            assert!(ours == theirs, "run {run}: {index} differs");
        }
        drop(paused);
    }
}

/// A host may die between the guest's request and the reset: the request is in the state.
#[test]
fn a_copy_of_a_guest_that_waits_for_its_reset_gets_it() {
    let mut first = rig(REBOOTING);
    let events = events_of(&first.machine);
    first.machine.start().unwrap();
    await_reset(&events);
    let mut state = Vec::new();
    let mut paused = first.machine.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    paused.stay();
    drop(paused);
    let mut second = rig(REBOOTING);
    copy_memory(&first.machine.memory, &second.machine.memory);
    second.machine.load(&state).unwrap();
    let events = events_of(&second.machine);
    second.machine.start().unwrap();
    await_reset(&events);
    assert!(second.heard().is_empty(), "it stands still");
    second.machine.reset_guest().unwrap();
    assert_eq!([second.next(), second.next()], [7, 2]);
}

#[test]
fn a_crash_that_resets_a_pc_resets_this_machine() {
    let mut rig = rig(CRASHING);
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    for _ in 0..3 {
        let event = events.recv_timeout(DEADLINE).unwrap();
        assert!(
            matches!(event, MachineEvent::GuestCrashed { .. }),
            "{event:?}"
        );
        rig.machine.reset_guest().unwrap();
    }
}

#[test]
fn several_vcpus_are_reset_together() {
    let config = MachineConfig {
        vcpus: 4,
        ..config(REBOOTING)
    };
    let mut rig = rig_with(config, &["numbers"]);
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    for run in 1..=3 {
        await_reset(&events);
        assert_eq!([rig.next(), rig.next()], [7, run]);
        rig.machine.reset_guest().unwrap();
    }
}

#[test]
fn a_standby_without_a_kernel_says_that_it_cannot_reboot_the_guest() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    first.await_number(3);
    let mut state = Vec::new();
    let mut paused = first.machine.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    paused.stay();
    drop(paused);
    let mut second = standby();
    assert!(!second.machine.can_be_reset());
    let error = second.machine.reset_guest().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a machine that has never run cannot be reset"
    );
    copy_memory(&first.machine.memory, &second.machine.memory);
    second.machine.load(&state).unwrap();
    second.machine.start().unwrap();
    let error = second.machine.reset_guest().unwrap_err();
    assert!(error.with_causes().contains("no kernel image"), "{error}");
    // It continues as if nobody had asked.
    second.heard();
    second.next();
}
