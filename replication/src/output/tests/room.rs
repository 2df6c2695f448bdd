//! R5: a full gate slows the guest and loses nothing.

use std::io;
use std::sync::{Arc, mpsc};

use super::{console, far, frame, gate_with, send, waking_gate_with};
use crate::core::message::Message;
use crate::core::message::wire::OUTPUT_BYTES_MAX;
use crate::ids::EpochId;
use crate::output::{
    FRAME_OVERHEAD_BYTES, FrameSink, Full, GateLimits, GateMode, OutputEvent, OutputGate, SendError,
};

/// A network that takes nothing.
struct BusyWire;

impl FrameSink for BusyWire {
    fn send(&self, _frame: &[u8]) -> Result<(), SendError> {
        Err(SendError::Busy)
    }
}

#[test]
fn a_full_gate_refuses_and_wakes_the_device_when_there_is_room() {
    let limits = GateLimits {
        held_bytes_max: 10 * (FRAME_OVERHEAD_BYTES + 10),
        ..GateLimits::default()
    };
    let (gate, port, wire, wakes) = waking_gate_with(limits);
    gate.hold();
    for _ in 0..10 {
        send(&port, "0123456789");
    }
    assert_eq!(port.send(frame("x")), Err(Full));
    assert_eq!(gate.counts().refusals, 1);
    gate.seal(EpochId(1));
    assert_eq!(port.send(frame("x")), Err(Full));
    assert_eq!(wakes.take(), 0, "no room yet");
    gate.release(EpochId(1), far());
    assert_eq!(wakes.take(), 1);
    send(&port, "x");
    assert_eq!(wire.take().len(), 10);
    // A device that was not refused is not woken.
    gate.seal(EpochId(2));
    gate.release(EpochId(2), far());
    assert_eq!(wakes.take(), 0);
    assert_eq!(wire.take(), [b"x"]);
}

#[test]
fn what_is_not_sealed_yet_is_being_collected() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    let (console, _screen) = console(&gate);
    gate.hold();
    assert!(!gate.is_collecting());
    send(&port, "x");
    assert!(gate.is_collecting());
    gate.seal(EpochId(1));
    assert!(!gate.is_collecting(), "it is held, but sealed");
    console.write(b"x").unwrap();
    assert!(gate.is_collecting());
}

/// As those who print expect of a writer.
#[test]
fn a_full_console_would_block_its_writer() {
    let limits = GateLimits {
        console_bytes_max: 8,
        ..GateLimits::default()
    };
    let gate = OutputGate::new(limits);
    let (mut console, _screen) = console(&gate);
    gate.hold();
    assert_eq!(io::Write::write(&mut console, b"12345").unwrap(), 5);
    let refused = io::Write::write(&mut console, b"12345").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(console.position(), 5);
}

#[test]
fn a_frame_larger_than_the_limit_passes_alone() {
    let limits = GateLimits {
        held_bytes_max: 1,
        ..GateLimits::default()
    };
    let (gate, port, wire, wakes) = waking_gate_with(limits);
    gate.hold();
    send(&port, "large");
    assert_eq!(port.send(frame("x")), Err(Full));
    gate.seal(EpochId(1));
    gate.release(EpochId(1), far());
    assert_eq!(wire.take(), [b"large"]);
    assert_eq!(wakes.take(), 1);
}

#[test]
fn shutting_and_opening_wake_a_refused_device() {
    for open in [true, false] {
        let limits = GateLimits {
            held_bytes_max: 1,
            ..GateLimits::default()
        };
        let (gate, port, _wire, wakes) = waking_gate_with(limits);
        gate.hold();
        send(&port, "a");
        assert_eq!(port.send(frame("b")), Err(Full));
        if open {
            gate.open()
        } else {
            gate.shut()
        }
        assert_eq!(wakes.take(), 1);
        send(&port, "b");
    }
}

#[test]
fn a_full_backend_loses_frames_and_counts_them() {
    let gate = OutputGate::default();
    let port = gate.add_network(Arc::new(BusyWire), || ());
    gate.hold();
    port.send(frame("abc")).unwrap();
    gate.seal(EpochId(1));
    gate.release(EpochId(1), far());
    let counts = gate.counts();
    assert_eq!((counts.frames_dropped, counts.bytes_dropped), (1, 3));
    assert_eq!((counts.frames_delayed, counts.held_bytes), (1, 0));
}

#[test]
fn the_listener_hears_of_waiting_output_and_of_fullness() {
    let limits = GateLimits {
        held_bytes_max: 4 * (FRAME_OVERHEAD_BYTES + 1),
        ..GateLimits::default()
    };
    let (gate, port, _wire) = gate_with(limits);
    let (tty, _screen) = console(&gate);
    let (events, heard) = mpsc::channel();
    let asked = gate.clone();
    gate.set_listener(Arc::new(move |event| {
        // No lock is held: the listener may ask the gate.
        assert_eq!(asked.mode(), GateMode::Holding);
        events.send(event).unwrap();
    }));
    send(&port, "open");
    gate.hold();
    tty.write(b"x").unwrap();
    for text in ["1", "2", "3", "4"] {
        send(&port, text);
    }
    assert_eq!(port.send(frame("5")), Err(Full));
    use OutputEvent::{Full as F, Waiting as W};
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [W, W, W, W, F, F]);
}

#[test]
fn the_output_of_an_epoch_always_fits_into_its_message() {
    let limits = GateLimits {
        repeat_bytes_max: usize::MAX,
        console_bytes_max: usize::MAX,
        ..GateLimits::default()
    };
    let (gate, port, _wire) = gate_with(limits);
    let consoles: Vec<_> = (0..9).map(|_| console(&gate)).collect();
    gate.hold();
    for (tty, _screen) in &consoles {
        while tty.write(&[7; 1000]).is_ok() {}
    }
    // Tiny ones have the largest share of what is not the guest's bytes.
    while port.send(frame("x")).is_ok() {}
    let output = gate.seal(EpochId(1));
    let consoles_bytes: usize = output.console.iter().map(|run| run.bytes.len()).sum();
    assert!(consoles_bytes > 2 << 20, "{consoles_bytes}");
    assert!(output.frames.len() > 1000);
    let epoch = EpochId(1);
    let (kind, epoch, body) = Message::EpochOutput { epoch, output }.encode();
    assert!(body.len() <= OUTPUT_BYTES_MAX, "{} bytes", body.len());
    Message::decode(kind, epoch, body).expect("the backup takes it");
}
