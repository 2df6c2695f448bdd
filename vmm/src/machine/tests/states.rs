//! Saved states that are damaged or another machine's, and fingerprints that tell machines apart.

use super::*;

fn saved_state() -> Vec<u8> {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(3);
    let mut state = Vec::new();
    rig.machine
        .pause_guest()
        .unwrap()
        .save_state(&mut state)
        .unwrap();
    state
}

#[test]
fn bad_states_are_refused_by_name() {
    let state = saved_state();
    let refuse = |bytes: &[u8], rig: &mut Rig| rig.machine.load(bytes).unwrap_err();

    let mut longer = state.clone();
    longer.push(0);
    assert!(matches!(
        refuse(&longer, &mut standby()),
        MachineFault::State(StateError::LeftOver { left_over: 1, .. })
    ));
    let mut newer = state.clone();
    newer[0] = 77;
    assert!(matches!(
        refuse(&newer, &mut standby()),
        MachineFault::State(StateError::Version { found: 77 })
    ));
    let two = MachineConfig {
        vcpus: 2,
        ..config(COUNTING)
    };
    assert!(matches!(
        refuse(&state, &mut rig_with(two, &["numbers"])),
        MachineFault::State(StateError::Vcpus { found: 1, here: 2 })
    ));
    let MachineFault::State(StateError::UnknownDevice { name }) =
        refuse(&state, &mut rig_with(config(COUNTING), &["other"]))
    else {
        panic!("restored into a machine with another device");
    };
    assert_eq!(name, "numbers");
    let MachineFault::State(StateError::MissingDevice { name }) = refuse(
        &state,
        &mut rig_with(config(COUNTING), &["numbers", "more"]),
    ) else {
        panic!("restored into a machine with one device more");
    };
    assert_eq!(name, "more");
    // After a failed restore the machine is of no use, and says so.
    let mut broken = standby();
    let mut wrong = MachineState::decode(&state).unwrap();
    wrong.set_vcpu_id(0, 9);
    let mut bytes = Vec::new();
    wrong.encode(&mut bytes).unwrap();
    assert!(broken.machine.load(&bytes).is_err());
    let error = broken.machine.start().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a machine that was restored only in part cannot be run"
    );
}

#[test]
fn damaged_states_never_panic() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    let state = saved_state();
    for cut in (0..state.len()).step_by(97) {
        assert!(MachineState::decode(&state[..cut]).is_err(), "cut at {cut}");
    }
    let mut random = StdRng::seed_from_u64(42);
    for _ in 0..150 {
        let mut damaged = state.clone();
        for _ in 0..random.random_range(1..20) {
            let at = random.random_range(0..damaged.len());
            damaged[at] = random.random();
        }
        // Most damage is in register contents, which KVM judges; some of it even makes a valid state.
        let result = standby().machine.load(&damaged);
        if let Err(error) = result {
            assert!(!error.to_string().is_empty());
        }
    }
    for _ in 0..200 {
        let noise: Vec<u8> = (0..random.random_range(0..6000))
            .map(|_| random.random())
            .collect();
        assert!(MachineState::decode(&noise).is_err());
    }
}

/// What a real VM makes of a damaged state that is well-formed: an error, or a guest that runs astray. Never a
/// panic of this program, and never a machine that cannot be stopped.
#[test]
fn damaged_states_that_can_be_loaded_run_and_end_without_a_panic() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    let mut source = rig(COUNTING);
    source.machine.start().unwrap();
    source.await_number(3);
    let mut state = Vec::new();
    let mut paused = source.machine.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    drop(paused);
    let mut random = StdRng::seed_from_u64(43);
    let mut ran = 0;
    for round in 0..200 {
        let mut damaged = state.clone();
        // The first one is not damaged.
        for _ in 0..round.min(4) {
            let at = random.random_range(0..damaged.len());
            damaged[at] ^= 1 << random.random_range(0..8);
        }
        let mut target = standby();
        copy_memory(&source.machine.memory, &target.machine.memory);
        let events = events_of(&target.machine);
        if target.machine.load(&damaged).is_err() || target.machine.start().is_err() {
            continue;
        }
        let spoke = target.numbers.recv_timeout(Duration::from_millis(20));
        assert!(round > 0 || spoke.is_ok(), "a good state does not run");
        ran += 1;
        // Whatever has become of it, it can be looked at, saved and stopped.
        if let Ok(mut paused) = target.machine.pause_guest() {
            let _ = paused.save_state(&mut Vec::new());
        }
        target.machine.shut_down();
        for event in events.try_iter() {
            let text = format!("{event:?}");
            assert!(
                !text.contains("its thread panicked"),
                "round {round}: {text}"
            );
        }
    }
    assert!(ran > 50, "only {ran} of the damaged states were run");
}

#[test]
fn fingerprints_name_what_differs() {
    let one = rig(COUNTING).machine.fingerprint();
    assert_eq!(one.differences(&standby().machine.fingerprint()), []);
    let bigger = MachineConfig {
        vcpus: 2,
        ..config(COUNTING)
    };
    let other = rig_with(bigger, &["numbers", "more"]).machine.fingerprint();
    let keys: BTreeSet<String> = one
        .differences(&other)
        .into_iter()
        .map(|difference| difference.key().to_owned())
        .collect();
    for key in ["vcpus", "device.more"] {
        assert!(keys.contains(key), "{key} is not in {keys:?}");
    }
    assert!(!keys.iter().any(|key| key.starts_with("device.numbers")));
}

/// Through any number of hosts.
#[test]
fn a_state_says_how_long_ago_another_machine_broke_under_the_guest() {
    let ago = |rig: &mut Rig, load: &dyn Fn(&mut Machine)| {
        let told = Arc::new(Mutex::new(None));
        let tells = told.clone();
        rig.machine.on_event(move |event| {
            if let MachineEvent::BrokeBefore { ago } = event {
                *tells.lock().unwrap() = Some(*ago);
            }
        });
        load(&mut rig.machine);
        *told.lock().unwrap()
    };
    let save = |rig: &mut Rig| {
        let mut state = Vec::new();
        let mut paused = rig.machine.pause_guest().unwrap();
        paused.save_state(&mut state).unwrap();
        state
    };
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    let innocent = save(&mut first);
    let load = |state: &[u8]| {
        let state = state.to_vec();
        move |machine: &mut Machine| machine.load(&state).unwrap()
    };
    assert_eq!(ago(&mut standby(), &load(&innocent)), None);
    first.machine.breaker().another_broke();
    let mut state = save(&mut first);
    for least in [0, 60, 120].map(Duration::from_secs) {
        let mut next = standby();
        let tried = ago(&mut next, &|machine| machine.try_load(&state).unwrap());
        assert_eq!(tried, None, "it is not taken over");
        let told = ago(&mut next, &load(&state)).expect("it is told");
        assert!(told >= least && told < least + DEADLINE, "{told:?}");
        next.machine.start().unwrap();
        // A minute later.
        let past = &next.machine.events.past;
        past.machine_broke(past.machine_broke_ago().unwrap() + Duration::from_secs(60));
        state = save(&mut next);
    }
}
