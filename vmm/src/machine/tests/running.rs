//! What a machine does while it runs: boot, pause, resume, end.

use super::*;

#[test]
fn a_guest_boots_and_is_heard() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    for number in 1..=100 {
        assert_eq!(rig.next(), number);
    }
}

#[test]
fn a_paused_guest_stands_still_and_resumes_on_every_way_out() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(10);

    // Dropped.
    let paused = rig.machine.pause_guest().unwrap();
    rig.numbers.try_iter().for_each(drop);
    let quiet = rig.numbers.recv_timeout(Duration::from_millis(50));
    assert!(quiet.is_err(), "said {quiet:?} while paused");
    drop(paused);
    rig.next();

    // Early return.
    fn returns_early(machine: &mut Machine) -> Option<()> {
        let _paused = machine.pause_guest().unwrap();
        None
    }
    assert_eq!(returns_early(&mut rig.machine), None);
    rig.heard();
    rig.next();

    // An error in the middle of saving.
    lock(&rig.read_from).fail_save = true;
    fn fails(machine: &mut Machine) -> Result<(), understudy_replication::ports::MachineError> {
        machine.pause_guest()?.save(&mut Vec::new())
    }
    assert!(fails(&mut rig.machine).is_err());
    lock(&rig.read_from).fail_save = false;
    rig.heard();
    rig.next();

    // A panic, which must not spoil the devices for the vCPUs either.
    let machine = &mut rig.machine;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _paused = machine.pause_guest().unwrap();
        panic!("ordered by the test");
    }));
    assert!(panicked.is_err());
    rig.heard();
    rig.next();
    rig.next();
    rig.machine
        .pause_guest()
        .unwrap()
        .save_state(&mut Vec::new())
        .unwrap();
    rig.heard();
    rig.next();

    // Unless it is to stay stopped.
    let mut paused = rig.machine.pause_guest().unwrap();
    paused.stay();
    drop(paused);
    rig.heard();
    assert!(rig.numbers.recv_timeout(Duration::from_millis(50)).is_err());
    let error = rig.machine.start().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a machine that is stopped for good cannot be run"
    );
}

#[test]
fn the_guests_end_is_told() {
    for (code, end) in [
        (RESETTING, MachineEvent::GuestReset),
        (POWERING_OFF, MachineEvent::GuestPoweredOff),
    ] {
        let mut rig = rig(code);
        let events = events_of(&rig.machine);
        rig.machine.start().unwrap();
        assert_eq!(events.recv_timeout(DEADLINE).unwrap(), end);
    }

    let mut rig = rig_with(config(CRASHING), &["numbers"]);
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    let event = events.recv_timeout(DEADLINE).unwrap();
    assert!(
        matches!(
            event,
            MachineEvent::GuestCrashed { .. } | MachineEvent::MachineBroke { .. }
        ),
        "{event:?}"
    );
}

#[test]
fn a_guest_whose_power_switch_somebody_turned_stands_still_wherever_it_goes_on() {
    let mut rig = rig(COUNTING);
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    rig.await_number(10);
    rig.machine.power_switch().unwrap().turn();
    let off = MachineEvent::GuestPoweredOff;
    assert_eq!(events.recv_timeout(DEADLINE).unwrap(), off);
    let mut state = Vec::new();
    let mut paused = rig.machine.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    drop(paused);
    rig.heard();
    assert!(rig.numbers.recv_timeout(Duration::from_millis(50)).is_err());

    let mut next = standby();
    copy_memory(&rig.machine.memory, &next.machine.memory);
    let events = events_of(&next.machine);
    next.machine.load(&state).unwrap();
    next.machine.start().unwrap();
    assert_eq!(events.recv_timeout(DEADLINE).unwrap(), off);
    drop(next.machine.pause_guest().unwrap());
    next.heard();
    let said = next.numbers.recv_timeout(Duration::from_millis(50));
    assert!(said.is_err(), "{said:?}");
}

#[test]
fn a_machine_is_only_run_paused_and_restored_when_it_can_be() {
    let mut fresh = standby();
    let error = fresh.machine.start().unwrap_err();
    assert!(matches!(error, MachineFault::Config(ConfigError::NoKernel)));
    let Err(error) = fresh.machine.pause_guest().map(drop) else {
        panic!("paused what never ran");
    };
    assert_eq!(
        error.to_string(),
        "a machine that has never run cannot be paused"
    );
    let mut running = rig(COUNTING);
    running.machine.start().unwrap();
    let error = running.machine.load(&[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a machine that is running cannot be restored"
    );
    running.machine.shut_down();
    running.machine.shut_down();
}

/// A bug in a device must not go unnoticed, and must not keep the machine from being stopped.
#[test]
fn a_vcpu_whose_device_panics_is_told_and_the_machine_still_stops() {
    let mut rig = rig(READING_PORTS);
    lock(&rig.read_from).in_read = Some(Box::new(|| panic!("ordered by the test")));
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    let event = events.recv_timeout(DEADLINE).unwrap();
    assert!(
        matches!(&event, MachineEvent::MachineBroke { what } if what.contains("vCPU 0")),
        "{event:?}"
    );
    let Err(error) = rig.machine.pause_guest().map(drop) else {
        panic!("paused a machine that has broken");
    };
    assert!(error.to_string().contains("vCPUs"), "{error}");
    rig.machine.shut_down();
}

/// Whether the machine tells that it has broken by `what`, and can then neither be captured nor started over.
fn is_broken(rig: &mut Rig, events: &Receiver<MachineEvent>, what: &str) {
    let event = events.recv_timeout(DEADLINE).unwrap();
    assert!(
        matches!(&event, MachineEvent::MachineBroke { what: said } if said.contains(what)),
        "{event:?}"
    );
    for _ in 0..2 {
        let Err(error) = rig.machine.pause_guest().map(drop) else {
            panic!("paused a machine that has broken");
        };
        let said = error.with_causes();
        assert!(
            said.contains("has broken") || said.contains("has ended"),
            "{said}"
        );
    }
    assert!(rig.machine.reset_guest().is_err());
    rig.machine.shut_down();
}

/// x87 registers are not among what KVM emulates, and there is no memory at this address.
const LOADING_FROM_NOWHERE: &[u8] = &[
    0xbf, 0x00, 0x00, 0x00, 0xe0, // mov edi, 0xe0000000
    0xdb, 0x2f, // fld tbyte [rdi]
    0xeb, 0xfe, // jmp here
];

const DOING_NOTHING: &[u8] = &[0xeb, 0xfe];

#[test]
fn what_kvm_cannot_do_breaks_the_machine_and_is_not_the_guests_end() {
    let mut rig = rig(LOADING_FROM_NOWHERE);
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    is_broken(&mut rig, &events, "vCPU 0 cannot go on");
}

#[test]
fn a_device_that_panics_on_the_event_thread_breaks_the_machine() {
    // The guest never comes near the device, so no vCPU meets what is left of it.
    let mut rig = rig(DOING_NOTHING);
    lock(&rig.read_from).panics_at_events = true;
    let events = events_of(&rig.machine);
    rig.machine.start().unwrap();
    lock(&rig.read_from).event.write(1).unwrap();
    is_broken(&mut rig, &events, "numbers panicked");
}

/// What stops the guest for its owner to act on stops it, and what does not, does not.
#[test]
fn panics_and_watchdogs_are_told_and_do_what_they_are_configured_to() {
    // A panic; code 15: a watchdog's time of 0 s.
    let (panicking, starved) = (telling(0x505, 1), telling(0x443, 15));
    let panicked = MachineEvent::GuestPanicked {
        crash_kernel: false,
    };
    for (code, watchdog, on_panic, event, halts) in [
        (&panicking, None, OnPanic::Report, &panicked, false),
        (&panicking, None, OnPanic::Exit, &panicked, true),
        (&panicking, None, OnPanic::Restart, &panicked, true),
        (
            &starved,
            Some(OnWatchdog::None),
            OnPanic::Exit,
            &MachineEvent::WatchdogFired,
            false,
        ),
        (
            &starved,
            Some(OnWatchdog::Reset),
            OnPanic::Exit,
            &MachineEvent::WatchdogFired,
            true,
        ),
        (
            &starved,
            Some(OnWatchdog::Poweroff),
            OnPanic::Exit,
            &MachineEvent::WatchdogFired,
            true,
        ),
    ] {
        let config = MachineConfig {
            watchdog,
            on_panic,
            ..config(code)
        };
        let mut rig = rig_with(config, &["numbers"]);
        let events = events_of(&rig.machine);
        rig.machine.start().unwrap();
        assert_eq!(events.recv_timeout(DEADLINE).unwrap(), *event);
        assert_eq!(rig.machine.events.is_halted(), halts, "{event:?}");
        if halts {
            rig.machine.reset_guest().unwrap();
            assert_eq!(events.recv_timeout(DEADLINE).unwrap(), *event, "once a run");
        }
    }
    // Without a watchdog nothing is at its port.
    let mut rig = rig(&starved);
    rig.machine.start().unwrap();
    drop(rig.machine.pause_guest().unwrap());
    assert!(!rig.machine.events.is_halted());
}

#[test]
fn a_guest_whose_vcpus_have_all_halted_or_never_started_is_idle() {
    const HALTING: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd]; // cli; again: hlt; jmp again
    for (code, idles) in [(HALTING, true), (COUNTING, false)] {
        let config = MachineConfig {
            vcpus: 2,
            ..config(code)
        };
        let mut rig = rig_with(config, &["numbers"]);
        rig.machine.start().unwrap();
        if !idles {
            rig.await_number(3);
        }
        let started = Instant::now();
        loop {
            let mut paused = rig.machine.pause_guest().unwrap();
            assert!(!paused.is_idle(), "nothing is known yet");
            paused.save_state(&mut Vec::new()).unwrap();
            if paused.is_idle() == idles {
                break;
            }
            assert!(idles, "it counts");
            assert!(started.elapsed() < DEADLINE, "it does not halt");
        }
    }
}
