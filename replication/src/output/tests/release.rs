//! R1: what leaves, and when.

use super::{console, far, gate_with, send, shown};
use crate::ids::EpochId;
use crate::output::{ConsoleProgress, GateLimits, GateMode, SendError};

#[test]
fn r1_nothing_leaves_before_its_epoch_is_released() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    let (tty, screen) = console(&gate);
    gate.hold();
    send(&port, "a");
    tty.write(b"A").unwrap();
    gate.seal(EpochId(1));
    send(&port, "b");
    tty.write(b"B").unwrap();
    gate.seal(EpochId(2));
    send(&port, "c");
    tty.write(b"C").unwrap();
    assert!(wire.take().is_empty());
    assert_eq!(shown(&gate, &screen), "");

    gate.release(EpochId(0), far());
    assert!(wire.take().is_empty());
    gate.release(EpochId(1), far());
    assert_eq!(wire.take(), [b"a"]);
    assert_eq!(shown(&gate, &screen), "A");
    gate.release(EpochId(1), far());
    assert!(wire.take().is_empty());
    // The current bucket has no epoch yet: no release reaches it.
    gate.release(EpochId(u64::MAX), far());
    assert_eq!(wire.take(), [b"b"]);
    assert_eq!(shown(&gate, &screen), "AB");
    gate.seal(EpochId(3));
    gate.release(EpochId(3), far());
    assert_eq!(wire.take(), [b"c"]);
    assert_eq!(shown(&gate, &screen), "ABC");
}

#[test]
fn a_release_whose_time_is_over_stops_between_frames_and_is_taken_up_again() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    gate.hold();
    send(&port, "one");
    gate.seal(EpochId(1));
    send(&port, "two");
    gate.seal(EpochId(2));
    assert!(!gate.release(EpochId(1), || false));
    assert!(wire.take().is_empty());
    assert!(gate.release(EpochId(2), far()));
    assert_eq!(wire.take(), [b"one", b"two"]);
}

#[test]
fn an_open_gate_holds_nothing() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    let (tty, screen) = console(&gate);
    send(&port, "a");
    tty.write(b"A").unwrap();
    assert_eq!(wire.take(), [b"a"]);
    assert_eq!(shown(&gate, &screen), "A");
    let sealed = gate.seal(EpochId(1));
    assert!(sealed.frames.is_empty() && sealed.console.is_empty());
    let out = ConsoleProgress {
        device: 0,
        position: 1,
    };
    assert_eq!(sealed.written, [out]);
}

#[test]
fn opening_lets_everything_go_in_order() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    let (tty, screen) = console(&gate);
    gate.hold();
    for epoch in 1..=3 {
        send(&port, &format!("{epoch}"));
        tty.write(format!("{epoch}").as_bytes()).unwrap();
        gate.seal(EpochId(epoch));
    }
    send(&port, "rest");
    tty.write(b"rest").unwrap();
    gate.open();
    assert_eq!(wire.take(), [&b"1"[..], b"2", b"3", b"rest"]);
    assert_eq!(shown(&gate, &screen), "123rest");
    send(&port, "now");
    assert_eq!(wire.take(), [b"now"]);
    // And it can hold again, with epochs counted anew.
    gate.hold();
    send(&port, "held");
    gate.seal(EpochId(1));
    assert!(wire.take().is_empty());
    gate.release(EpochId(1), far());
    assert_eq!(wire.take(), [b"held"]);
}

#[test]
fn a_shut_gate_lets_nothing_out_for_good() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    let (tty, screen) = console(&gate);
    gate.hold();
    send(&port, "sealed");
    tty.write(b"sealed").unwrap();
    let sealed = gate.seal(EpochId(1));
    send(&port, "current");
    gate.shut();
    assert_eq!(gate.mode(), GateMode::Shut);
    gate.release(EpochId(1), far());
    gate.open();
    gate.repeat(&sealed);
    send(&port, "later");
    tty.write(b"later").unwrap();
    assert_eq!(port.announce(b"me"), Err(SendError::Closed));
    assert!(wire.take().is_empty());
    assert_eq!(shown(&gate, &screen), "");
    let counts = gate.counts();
    assert_eq!((counts.frames_dropped, counts.held_bytes), (3, 0));
    assert_eq!(tty.position(), 11);
    assert!(tty.has_room());
}

#[test]
fn announcements_pass_a_holding_gate() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    gate.hold();
    send(&port, "guest");
    port.announce(b"here").unwrap();
    assert_eq!(wire.take(), [b"here"]);
}
