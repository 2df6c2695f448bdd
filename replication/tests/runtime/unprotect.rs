//! A guest that runs already is protected, gets another backup, and is given back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use understudy_replication::arbiter::Verdict;
use understudy_replication::ports::Machine;
use understudy_replication::runtime::{
    Ended, Event, EventKind, Events, NotProtected, Origin, Primary, RuntimeError, Unprotected,
};
use understudy_transport::Endpoint;

use super::{
    PATIENCE, START, arbiter, assert_counts_up, endpoint, pair, promoted, standby, wait_for,
};
use crate::fake::Fake;

/// Waits for an event.
pub(crate) fn await_event(
    mut events: Events,
    wanted: impl Fn(&EventKind) -> bool + Send + 'static,
) -> Event {
    let (found, happened) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        while let Some(event) = events.blocking_recv() {
            if wanted(&event.kind) {
                let _ = found.send(event);
                return;
            }
        }
    });
    happened.recv_timeout(PATIENCE).expect("the event")
}

#[test]
fn a_running_guest_is_protected_and_given_back_as_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let kept = standby(directory.path(), Fake::new()).start().unwrap();
    let mut machine = Fake::new();
    let gate = machine.gate_handle();
    let stops = Arc::clone(&machine.stops);
    machine.run().unwrap();
    let primary = Primary::attach(Origin::Running(machine))
        .arbiter(arbiter(directory.path()))
        .backup(endpoint(directory.path()))
        .protect()
        .unwrap();
    let handle = primary.handle();
    let events = handle.subscribe();
    let event = await_event(events, |kind| *kind == EventKind::Protected);
    assert_eq!((event.vm.as_str(), event.node.as_str()), ("vm", "primary"));
    let Unprotected { mut machine, .. } = primary.unprotect().unwrap();
    let mut late = handle.subscribe();
    assert_eq!(late.blocking_recv().unwrap().kind, EventKind::Ended);
    assert_eq!(late.blocking_recv(), None);
    assert_eq!(stops.load(Ordering::Acquire), 0);
    assert!(!gate.is_holding());
    let said = gate.out().len();
    wait_for("running", || handle.status(), |_| gate.out().len() > said);
    assert_counts_up(&gate.out());
    // The copy was given up, and by the arbiter's record nobody else has one.
    let waiting = kept.handle();
    wait_for(
        "given up",
        || waiting.status(),
        |status| status.phase == "listening",
    );
    assert!(kept.handle().stop());
    machine.stop();
    machine.assert_consistent();
}

#[test]
fn a_guest_that_was_given_back_keeps_its_names_and_its_generation_and_is_protected_again() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    let unprotected = pair.primary.unprotect().unwrap();
    // It is still held.
    let other = arbiter(directory.path()).claim(START, "somebody");
    assert!(matches!(other.unwrap(), Verdict::Refused { .. }));
    let again = Primary::attach(Origin::Unprotected(unprotected))
        .backup(endpoint(directory.path()))
        .protect()
        .unwrap();
    let handle = again.handle();
    wait_for(
        "protected again",
        || handle.status(),
        |status| status.protected && status.node == "a" && status.generation == 2,
    );
    let events = pair.standby.handle().subscribe();
    assert!(pair.standby.handle().promote());
    let event = await_event(events, |kind| matches!(kind, EventKind::Promoted { .. }));
    assert_eq!(event.node, "b");
    let promoted = promoted(pair.standby);
    assert!(matches!(again.wait().unwrap(), Ended::Fenced { .. }));
    // Names and arbiter are the standby's.
    let alone = Primary::attach(Origin::Promoted(promoted))
        .protect()
        .unwrap();
    assert_eq!(alone.handle().status().node, "b");
    let mut machine = alone.unprotect().unwrap().machine;
    machine.stop();
    machine.assert_consistent();
}

#[test]
fn a_protected_guest_gets_another_backup_and_the_first_one_cannot_take_over() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    let elsewhere = Endpoint::Unix(directory.path().join("other"));
    let other = standby(directory.path(), Fake::new())
        .listen(elsewhere.clone())
        .node("c")
        .start()
        .unwrap();
    let handle = pair.primary.handle();
    assert!(handle.set_backup(Some(elsewhere)));
    wait_for(
        "protected by the other",
        || handle.status(),
        |status| status.protected && status.peer.as_deref() == Some("c"),
    );
    let first = pair.standby.handle();
    assert!(!first.status().protected);
    assert!(other.handle().promote());
    let mut promoted = promoted(other);
    assert!(matches!(pair.primary.wait().unwrap(), Ended::Fenced { .. }));
    promoted.machine.stop();
    promoted.machine.assert_consistent();
    first.stop();
}

#[test]
fn a_running_guest_that_cannot_be_protected_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let holder = arbiter(directory.path());
    holder.claim(START, "somebody").unwrap();
    let mut machine = Fake::new();
    let stops = Arc::clone(&machine.stops);
    machine.run().unwrap();
    let refused = Primary::attach(Origin::Running(machine))
        .arbiter(arbiter(directory.path()))
        .try_protect();
    let Err(NotProtected { error, .. }) = &refused else {
        panic!("a second owner was let in");
    };
    assert!(matches!(error, RuntimeError::Owned { .. }));
    let machine = refused.err().and_then(NotProtected::into_machine).unwrap();
    assert_eq!(stops.load(Ordering::Acquire), 0);
    drop(machine);
}
