//! A state that the standby's machine cannot load: it is found out before the guest counts as protected.

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
