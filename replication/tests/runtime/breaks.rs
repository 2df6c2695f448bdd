//! A machine that has broken: its guest goes on at the standby.

use understudy_replication::runtime::{EventKind, Origin, Primary};

use super::*;
use crate::unprotect::await_event;

#[test]
fn the_guest_of_a_machine_that_broke_goes_on_at_the_standby_which_knows_why() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    let events = pair.standby.handle().subscribe();
    pair.primary.handle().machine_broke("vCPU 0 cannot go on");
    let event = await_event(events, |kind| matches!(kind, EventKind::Promoted { .. }));
    let EventKind::Promoted {
        cause,
        machine_broke,
        ..
    } = event.kind
    else {
        unreachable!("it was waited for");
    };
    assert!(machine_broke && cause.contains("vCPU 0"), "{cause}");
    match pair.primary.wait().unwrap() {
        Ended::LeftToBackup { reason } => assert!(reason.contains("vCPU 0"), "{reason}"),
        // The arbiter said so first.
        Ended::HandedOver { .. } => {}
        other => panic!("{other:?}"),
    }
    assert!(pair.primary_gate.is_shut());
    let mut promoted = promoted(pair.standby);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
    let mut seen = pair.primary_gate.out();
    let last = *seen.last().unwrap();
    let fresh = pair.standby_gate.out().into_iter();
    seen.extend(fresh.filter(|number| *number > last));
    assert_counts_up(&seen);
}

#[test]
fn without_a_standby_a_machine_that_broke_is_its_owners() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Fake::new();
    let alone = Primary::attach(Origin::Fresh(machine)).arbiter(arbiter(directory.path()));
    let protection = alone.protect().unwrap();
    let handle = protection.handle();
    let events = handle.subscribe();
    handle.machine_broke("vCPU 0 cannot go on");
    await_event(events, |kind| {
        matches!(kind, EventKind::NotHandedOver { .. })
    });
    handle.guest_stopped();
    assert_eq!(protection.wait().unwrap(), Ended::GuestStopped);
}
