//! A state that the standby's machine cannot load: it is found out before the guest counts as protected. And trials that
//! hang, or cost the machine.

use super::hang::Hang;
use super::*;

#[test]
fn a_guest_whose_state_the_standby_cannot_load_is_not_protected_and_runs_on() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Fake::new(), Fake::new());
    let (gate, refuses) = (a.gate_handle(), Arc::clone(&b.refuses_state));
    refuses.store(true, Ordering::Release);
    let standby = standby(directory.path(), b).start().unwrap();
    let primary = primary(directory.path(), a).protect().unwrap();
    let (handle, other) = (primary.handle(), standby.handle());
    let is_said = |status: &Status| {
        let alarm = status.alarm.as_deref().unwrap_or_default();
        alarm.contains("refused on purpose") && !status.protected
    };
    wait_for("an alarm", || handle.status(), is_said);
    wait_for("an alarm of the standby", || other.status(), is_said);
    // The guest is heard as if there were no standby.
    let said = gate.out().len();
    wait_for("heard", || other.status(), |_| gate.out().len() > said + 10);
    // Once the state can be loaded, it is protected.
    refuses.store(false, Ordering::Release);
    wait_for("protected", || handle.status(), |status| status.protected);
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
    other.stop();
    assert!(matches!(
        standby.await_promotion().unwrap(),
        Outcome::Stopped
    ));
}

#[test]
fn each_copy_is_tried_before_it_counts_and_the_machine_can_still_take_over() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Fake::new(), Fake::new());
    let trials = Arc::clone(&b.trials);
    let standby = standby(directory.path(), b).start().unwrap();
    let primary = primary(directory.path(), a).protect().unwrap();
    let handle = primary.handle();
    wait_for("protected", || handle.status(), |status| status.protected);
    assert_eq!(trials.load(Ordering::Acquire), 1);
    assert!(standby.handle().promote());
    let mut promoted = promoted(standby);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
}

/// A standby whose first trial hangs until it is set not to.
fn hanging(directory: &Path, policy: Policy) -> (StandbyRun<Fake>, Protection<Fake>, Arc<Hang>) {
    let (a, b) = (Fake::new(), Fake::new());
    let (hangs, trials) = (Arc::clone(&b.trial_hangs), Arc::clone(&b.trials));
    hangs.set(true);
    let standby = standby(directory, b).policy(policy).start().unwrap();
    let primary = primary(directory, a).protect().unwrap();
    let other = standby.handle();
    let began = |_: &Status| trials.load(Ordering::Acquire) == 1;
    wait_for("in a trial", || other.status(), began);
    (standby, primary, hangs)
}

#[test]
fn a_standby_that_is_stopped_does_not_wait_for_a_trial_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let (standby, primary, hangs) = hanging(directory.path(), patient());
    standby.handle().stop();
    let (sender, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let outcome = standby.await_promotion().unwrap();
        sender.send(matches!(outcome, Outcome::Stopped)).unwrap();
    });
    assert_eq!(stopped.recv_timeout(PATIENCE), Ok(true));
    // What is left of the trial ends by itself.
    hangs.set(false);
    primary.handle().guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
}

#[test]
fn while_a_trial_hangs_no_other_copy_begins() {
    let directory = tempfile::tempdir().unwrap();
    let (standby, primary, hangs) = hanging(directory.path(), Policy::default());
    let (handle, other) = (primary.handle(), standby.handle());
    wait_for(
        "told so",
        || handle.status(),
        |status| {
            let alarm = status.alarm.as_deref().unwrap_or_default();
            alarm.contains("has not come to an end")
        },
    );
    let copied = other.status().link.bytes_in;
    let refused = || other.status().strangers.refused;
    let before = refused();
    wait_for(
        "refused again",
        || handle.status(),
        |_| refused() > before + 2,
    );
    let more = other.status().link.bytes_in - copied;
    assert!(more < 64 << 10, "{more} bytes were sent");
    hangs.set(false);
    wait_for("protected", || handle.status(), |status| status.protected);
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
    other.stop();
    standby.await_promotion().unwrap();
}

#[test]
fn a_standby_whose_machine_is_of_no_use_any_more_ends_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (a, mut b) = (Fake::new(), Fake::new());
    b.is_unusable = true;
    let stops = Arc::clone(&b.stops);
    let standby = standby(directory.path(), b).start().unwrap();
    let primary = primary(directory.path(), a).protect().unwrap();
    let error = standby.await_promotion().err().unwrap();
    assert!(error.to_string().contains("on purpose"), "{error}");
    assert_eq!(stops.load(Ordering::Acquire), 1);
    primary.handle().guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
}
