//! What the gate and a backup count as waiting is what waits: whoever counts wrongly slows a guest for ever, or drops what
//! a client was to get.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use super::{DEADLINE, console, far, frame, gate_with, send, shown};
use crate::ids::EpochId;
use crate::output::{
    ConsoleOutput, ConsoleSink, FRAME_OVERHEAD_BYTES, FrameSink, Full, GateLimits,
    KEPT_CONSOLE_BYTES_MAX, KEPT_FRAME_BYTES_MAX, KeptOutput, MemoryConsole, MemoryFrames, NetPort,
    NetworkFrame, OutputGate, SealedOutput, SendError,
};

/// What one of these frames counts.
const COST: usize = 1024;
/// So many of them are kept.
const FRAMES_KEPT: usize = KEPT_FRAME_BYTES_MAX / COST;

fn frames(count: usize) -> Vec<NetworkFrame> {
    let bytes = "z".repeat(COST - FRAME_OVERHEAD_BYTES);
    let frame = NetworkFrame {
        device: 0,
        bytes: frame(&bytes),
    };
    vec![frame; count]
}

#[test]
fn frames_that_are_out_or_dropped_count_no_more() {
    let mut kept = KeptOutput::default();
    let mut add = |epoch: u64, count: usize, sent_through: u64| {
        let output = SealedOutput {
            frames: frames(count),
            sent_through: EpochId(sent_through),
            ..SealedOutput::default()
        };
        kept.add(EpochId(epoch), output);
        kept.to_repeat().frames.len()
    };
    // As many as are kept, again and again: the ones before are out.
    for epoch in 1..5 {
        assert_eq!(add(epoch, FRAMES_KEPT, epoch - 1), FRAMES_KEPT);
    }
    // Nothing is out any more: the oldest are dropped, and not one too many.
    for epoch in 5..9 {
        assert_eq!(
            add(epoch, FRAMES_KEPT - 1, 4),
            FRAMES_KEPT.min((FRAMES_KEPT - 1) * (epoch as usize - 4))
        );
    }
    // They are dropped when one more comes, and no others.
    assert_eq!(add(9, 1, 4), FRAMES_KEPT);
    // A part is out: only as much as that finds room.
    assert_eq!(add(10, 1, 8), 2);
    assert_eq!(add(11, FRAMES_KEPT - 2, 8), FRAMES_KEPT);
    assert_eq!(add(12, 2, 9), FRAMES_KEPT);
}

#[test]
fn a_console_is_kept_as_far_as_the_others_leave_room() {
    let mut kept = KeptOutput::default();
    let mut add = |device: u16, position: u64, bytes: usize| {
        let run = ConsoleOutput {
            device,
            position,
            bytes: vec![b'x'; bytes].into(),
        };
        let output = SealedOutput {
            console: vec![run],
            ..SealedOutput::default()
        };
        kept.add(EpochId(1), output);
        let lengths = kept.to_repeat().console.into_iter();
        lengths.map(|run| run.bytes.len()).collect::<Vec<_>>()
    };
    const MAX: usize = KEPT_CONSOLE_BYTES_MAX;
    assert_eq!(add(0, 0, MAX - 1000), [MAX - 1000]);
    assert_eq!(add(0, MAX as u64 - 1000, 1000), [MAX]);
    // Another one has room for nothing until the first one is out.
    assert_eq!(add(1, 0, 500), [MAX]);
}

#[test]
fn console_bytes_that_were_released_leave_room_for_as_many_others() {
    let gate = OutputGate::new(GateLimits {
        console_bytes_max: 10,
        ..GateLimits::default()
    });
    let (tty, screen) = console(&gate);
    gate.hold();
    for epoch in 1..20 {
        tty.write(b"0123456789").unwrap();
        assert_eq!(tty.write(b"x"), Err(Full));
        gate.seal(EpochId(epoch));
        gate.release(EpochId(epoch), far());
        assert!(gate.flush_consoles(DEADLINE));
    }
    assert_eq!(shown(&gate, &screen).len(), 190);
}

#[test]
fn as_many_frames_are_repeated_as_fit_and_no_more() {
    for room in 1..4 {
        let (gate, _port, wire) = gate_with(GateLimits {
            held_bytes_max: room * COST,
            ..GateLimits::default()
        });
        gate.repeat(&SealedOutput {
            frames: frames(5),
            ..SealedOutput::default()
        });
        assert_eq!(wire.take().len(), room);
        assert_eq!(gate.counts().frames_repeated, room as u64);
    }
}

/// A wire that sends a frame of the guest's for each of the first ones that it is given.
struct AnsweringWire {
    port: OnceLock<NetPort>,
    answers: Mutex<u32>,
    wire: MemoryFrames,
}

impl FrameSink for AnsweringWire {
    fn send(&self, bytes: &[u8]) -> Result<(), SendError> {
        let mut answers = self.answers.lock().unwrap();
        if *answers > 0 {
            *answers -= 1;
            send(self.port.get().unwrap(), &format!("answer {answers}"));
        }
        self.wire.send(bytes)
    }
}

#[test]
fn frames_that_are_sent_while_older_ones_leave_come_after_them_and_count_no_more_then() {
    let wire = Arc::new(AnsweringWire {
        port: OnceLock::new(),
        answers: Mutex::new(3),
        wire: MemoryFrames::default(),
    });
    let gate = OutputGate::default();
    let port = gate.add_network(wire.clone(), || ());
    wire.port.set(port).ok().unwrap();
    gate.hold();
    // More than are taken out at once.
    for number in 0..200 {
        send(wire.port.get().unwrap(), &format!("frame {number}"));
    }
    gate.open();
    let sent = wire.wire.take();
    assert_eq!(sent.len(), 203);
    assert_eq!(sent[199], b"frame 199");
    assert_eq!(sent[200], b"answer 2");
    assert_eq!(gate.counts().held_bytes, 0);
}

/// A console that says when it is dropped.
struct Watched {
    screen: MemoryConsole,
    gone: mpsc::Sender<()>,
}

impl ConsoleSink for Watched {
    fn position(&mut self) -> io::Result<Option<u64>> {
        self.screen.position()
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.screen.append(position, bytes)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.gone.send(());
    }
}

#[test]
fn a_gate_that_is_gone_leaves_no_thread_behind_and_writes_what_it_had() {
    let (gone, is_gone) = mpsc::channel();
    let (gate, screen) = (OutputGate::default(), MemoryConsole::default());
    let watched = Watched {
        screen: screen.clone(),
        gone,
    };
    let tty = gate.add_console(Box::new(watched), || ()).unwrap();
    tty.write(b"the last words").unwrap();
    drop((gate, tty));
    // The thread owned it.
    is_gone.recv_timeout(DEADLINE).unwrap();
    assert_eq!(screen.contents(), b"the last words");
}
