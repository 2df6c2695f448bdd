//! What travels with an epoch, and what a promoted side does with it.

use super::{DEADLINE, attach, console, frame, gate_with, send, shown};
use crate::ids::EpochId;
use crate::output::{
    ConsoleOutput, ConsoleSink, FRAME_OVERHEAD_BYTES, GateLimits, MemoryConsole, NetworkFrame,
    SealedOutput,
};

#[test]
fn sealed_output_is_a_bounded_suffix_of_frames_and_the_whole_console() {
    let limits = GateLimits {
        repeat_bytes_max: 2 * (FRAME_OVERHEAD_BYTES + 1),
        ..GateLimits::default()
    };
    let (gate, port, _wire) = gate_with(limits);
    let (tty, _screen) = console(&gate);
    let (second, _screen) = console(&gate);
    tty.write(b"before").unwrap();
    assert!(gate.flush_consoles(DEADLINE));
    gate.hold();
    for text in ["a", "b", "c"] {
        send(&port, text);
    }
    tty.write(b"he").unwrap();
    second.write(b"other").unwrap();
    tty.write(b"llo").unwrap();
    let output = gate.seal(EpochId(1));
    let frames: Vec<_> = output.frames.iter().map(|f| &f.bytes[..]).collect();
    assert_eq!(frames, [b"b", b"c"]);
    let run = |device, position, text| ConsoleOutput {
        device,
        position,
        bytes: frame(text),
    };
    assert_eq!(output.console, [run(0, 6, "hello"), run(1, 0, "other")]);
}

#[test]
fn after_a_failover_frames_are_repeated_and_console_bytes_only_completed() {
    // Both hosts have the same console.
    let screen = MemoryConsole::default();
    let (old, old_port, _) = gate_with(GateLimits::default());
    let old_tty = attach(&old, &screen);
    old_tty.write(b"boot ").unwrap();
    assert!(old.flush_consoles(DEADLINE));
    old.hold();
    send(&old_port, "last");
    old_tty.write(b"hello").unwrap();
    let output = old.seal(EpochId(1));
    let position = old_tty.position();
    drop(old);

    for already in ["", "he", "hello", "hello and more"] {
        let screen = MemoryConsole::default();
        let mut copy = screen.clone();
        copy.append(0, format!("boot {already}").as_bytes())
            .unwrap();
        let (new, _port, wire) = gate_with(GateLimits::default());
        let tty = attach(&new, &screen);
        tty.set_position(position);
        new.repeat(&output);
        assert_eq!(wire.take(), [b"last"]);
        let expected = if already.len() > 5 { already } else { "hello" };
        assert_eq!(shown(&new, &screen), format!("boot {expected}"));
        assert_eq!(new.counts().frames_repeated, 1);
    }
}

#[test]
fn what_is_repeated_comes_before_what_the_guest_says_next() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    let (tty, screen) = console(&gate);
    let output = SealedOutput {
        frames: ["1", "2"]
            .map(|text| NetworkFrame {
                device: 0,
                bytes: frame(text),
            })
            .to_vec(),
        console: vec![ConsoleOutput {
            device: 0,
            position: 0,
            bytes: frame("old "),
        }],
        ..SealedOutput::default()
    };
    tty.set_position(4);
    gate.repeat(&output);
    send(&port, "3");
    tty.write(b"new").unwrap();
    assert_eq!(wire.take(), [b"1", b"2", b"3"]);
    assert_eq!(shown(&gate, &screen), "old new");
}

#[test]
fn repeating_for_devices_that_do_not_exist_does_nothing() {
    let (gate, _port, wire) = gate_with(GateLimits::default());
    let mut output = SealedOutput::default();
    output.frames.push(NetworkFrame {
        device: 7,
        bytes: frame("x"),
    });
    output.console.push(ConsoleOutput {
        device: 9,
        position: u64::MAX,
        bytes: frame("x"),
    });
    gate.repeat(&output);
    assert!(wire.take().is_empty());
}
