//! Copies of a running machine: that they go on where it was, and have its memory.

use super::*;

#[test]
fn a_copy_goes_on_exactly_where_the_first_was_paused() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    let mut last = 0;
    // A chain of copies: each goes on for a while, and is paused at a moment nobody chose.
    for round in 0..20u32 {
        first.await_number(last + 10 + round);
        let mut second = standby();
        let mut paused = first.machine.pause_guest().unwrap();
        let mut state = Vec::new();
        paused.save_state(&mut state).unwrap();
        paused.stay();
        drop(paused);
        last = match first.heard().last() {
            Some(last) => *last,
            None => first
                .machine
                .memory
                .ram()
                .read_obj(GuestAddress(0x10_1000))
                .unwrap(),
        };
        copy_memory(&first.machine.memory, &second.machine.memory);
        second.machine.load(&state).unwrap();
        second.machine.start().unwrap();
        // The guest may have counted one further without having said it.
        assert_eq!(second.next(), last + 1, "round {round}");
        assert_eq!(second.next(), last + 2);
        last += 2;
        first = second;
    }
}

/// A vCPU called out in the middle of a read must take up what it read before its state is saved: else the
/// copy reads once more, and what was read first is lost.
#[test]
fn an_access_under_way_is_completed_before_the_pause() {
    for code in [READING_PORTS, READING_MMIO] {
        let build = |kernel| {
            let config = MachineConfig {
                kernel,
                ..config(code)
            };
            rig_at(config, code)
        };
        let mut first = build(Some(Kernel::Bytes(elf(code))));
        let (entered, in_read) = channel();
        let handle = first.machine.vcpus[0].handle().clone();
        let mut reads = 0;
        lock(&first.read_from).in_read = Some(Box::new(move || {
            reads += 1;
            if reads == 5 {
                entered.send(()).unwrap();
                let started = Instant::now();
                while !handle.exit().is_requested() {
                    assert!(started.elapsed() < DEADLINE, "nobody pauses");
                    std::thread::yield_now();
                }
            }
        }));
        first.machine.start().unwrap();
        in_read.recv_timeout(DEADLINE).unwrap();
        let mut state = Vec::new();
        let mut paused = first.machine.pause_guest().unwrap();
        paused.save_state(&mut state).unwrap();
        paused.stay();
        drop(paused);
        assert_eq!(first.heard(), [1, 2, 3, 4]);
        let mut second = build(None);
        copy_memory(&first.machine.memory, &second.machine.memory);
        second.machine.load(&state).unwrap();
        second.machine.start().unwrap();
        assert_eq!([second.next(), second.next(), second.next()], [5, 6, 7]);
    }
}

#[test]
fn the_guests_clock_goes_on_from_the_checkpoint() {
    const HOUR_NS: u64 = 3600 * 1_000_000_000;
    let mut first = rig(COUNTING);
    let hour = kvm_bindings::kvm_clock_data {
        clock: HOUR_NS,
        ..Default::default()
    };
    first.machine.vm.set_clock(&hour).unwrap();
    first.machine.start().unwrap();
    first.await_number(3);
    let mut state = Vec::new();
    let mut paused = first.machine.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    let mut second = standby();
    second.machine.load(&state).unwrap();
    let clock = second.machine.vm.get_clock().unwrap().clock;
    assert!((HOUR_NS..2 * HOUR_NS).contains(&clock), "{clock}");
}

/// Steps ② and ③ against the truth: what harvests tell to copy, epoch by epoch, makes the copy equal to
/// the guest's memory at each pause.
#[test]
fn copying_what_is_dirty_makes_an_exact_copy() {
    let mut rig = rig(DIRTYING);
    rig.machine.start().unwrap();
    let copy = Memory::allocate(16, Default::default()).unwrap();
    rig.machine.track().unwrap();
    copy_memory(&rig.machine.memory, &copy);
    let mut dirty_before = 0;
    for epoch in 0..30u64 {
        // Wait until the guest has done something in this epoch.
        let started = Instant::now();
        let mut dirty = PageSet::empty(copy.layout());
        while dirty.is_empty() {
            assert!(started.elapsed() < DEADLINE, "nothing gets dirty");
            rig.machine.harvest_running(&mut dirty).unwrap();
        }
        // A device writes, too.
        let ram = rig.machine.memory.ram().clone();
        ram.write_obj(epoch, GuestAddress(0x80_0000 + epoch * 4096))
            .unwrap();
        let mut page: Page = [0; PAGE_BYTES];
        let memory = rig.machine.memory.clone();
        let mut paused = rig.machine.pause_guest().unwrap();
        paused.harvest_pages(&mut dirty).unwrap();
        for index in dirty.iter() {
            memory.pages().read_page(index, &mut page).unwrap();
            copy.pages().write_page(index, &page).unwrap();
        }
        assert!(dirty.contains(PageIndex(0x800 + epoch)));
        let mut theirs: Page = [0; PAGE_BYTES];
        for index in PageSet::full(copy.layout()).iter() {
            memory.pages().read_page(index, &mut page).unwrap();
            copy.pages().read_page(index, &mut theirs).unwrap();
            assert!(page == theirs, "epoch {epoch}: {index} differs");
        }
        drop(paused);
        assert!(
            dirty.len() <= 256 + 1 + 8,
            "{} pages are dirty",
            dirty.len()
        );
        dirty_before += dirty.len();
    }
    assert!(dirty_before > 30);
    rig.machine.untrack().unwrap();
    let mut none = PageSet::empty(copy.layout());
    assert!(rig.machine.harvest_running(&mut none).is_err());
}

/// vCPUs that nobody has started yet wait in the kernel for their start signal, in states of their own.
#[test]
fn vcpus_that_wait_for_their_start_are_paused_and_copied_too() {
    let four = |kernel| {
        let config = MachineConfig {
            vcpus: 4,
            kernel,
            ..config(COUNTING)
        };
        rig_with(config, &["numbers"])
    };
    let mut first = four(Some(Kernel::Bytes(elf(COUNTING))));
    first.machine.start().unwrap();
    let mut last = 0;
    for _ in 0..3 {
        first.await_number(last + 10);
        let mut state = Vec::new();
        let mut paused = first.machine.pause_guest().unwrap();
        paused.save_state(&mut state).unwrap();
        paused.stay();
        drop(paused);
        // It may have said nothing more; then what has been heard is the last.
        last = first.heard().last().copied().unwrap_or(last + 10);
        let mut second = four(None);
        copy_memory(&first.machine.memory, &second.machine.memory);
        second.machine.load(&state).unwrap();
        second.machine.start().unwrap();
        assert_eq!(second.next(), last + 1);
        last += 1;
        first = second;
    }
}
