//! Whatever of the output had not really left when the primary died is repeated, and no more than that.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{DEADLINE, attach, far, frame, gate_with, send, shown};
use crate::ids::EpochId;
use crate::output::{
    ConsoleOutput, ConsoleProgress, ConsoleSink, FRAME_OVERHEAD_BYTES, FrameSink, GateLimits,
    KEPT_CONSOLE_BYTES_MAX, KEPT_FRAME_BYTES_MAX, KeptOutput, MemoryConsole, NetworkFrame,
    OutputGate, SealedOutput, SendError,
};

/// A console that takes nothing while somebody holds the lock.
struct Slow {
    busy: Arc<Mutex<()>>,
    screen: MemoryConsole,
}

impl ConsoleSink for Slow {
    fn position(&mut self) -> io::Result<Option<u64>> {
        self.screen.position()
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let _turn = self.busy.lock();
        self.screen.append(position, bytes)
    }
}

#[test]
fn console_bytes_that_wait_for_their_console_at_the_kill_are_repeated() {
    let busy = Arc::new(Mutex::new(()));
    let (old, _port, _wire) = gate_with(GateLimits::default());
    let screen = MemoryConsole::default();
    let slow = Slow {
        busy: Arc::clone(&busy),
        screen: screen.clone(),
    };
    let tty = old.add_console(Box::new(slow), || ()).unwrap();
    tty.write(b"out ").unwrap();
    assert!(old.flush_consoles(DEADLINE));
    let turn = busy.lock();
    // This waits since before the guest was protected.
    tty.write(b"open ").unwrap();
    old.hold();
    let mut kept = KeptOutput::default();
    for (epoch, line) in (1..).zip(["one ", "two ", "three "]) {
        tty.write(line.as_bytes()).unwrap();
        kept.add(EpochId(epoch), old.seal(EpochId(epoch)));
        assert!(old.release(EpochId(epoch), far()));
    }
    let position = tty.position();
    // The primary is gone. Its console is on another host, or it is this one.
    for already in ["", "out open o"] {
        let screen = MemoryConsole::default();
        let mut other = screen.clone();
        other.append(0, already.as_bytes()).unwrap();
        let (new, _port, _wire) = gate_with(GateLimits::default());
        let tty = attach(&new, &screen);
        tty.set_position(position);
        new.repeat(&kept.to_repeat());
        let rest = "open one two three ";
        let all = format!("out {rest}");
        let expected = if already.is_empty() { rest } else { &all };
        assert_eq!(shown(&new, &screen), expected);
    }
    // It lives on, and its console goes on: what is out is not kept any more.
    drop(turn);
    assert_eq!(shown(&old, &screen), "out open one two three ");
    tty.write(b"four").unwrap();
    kept.add(EpochId(4), old.seal(EpochId(4)));
    let left = kept.to_repeat();
    assert_eq!(left.console.len(), 1);
    assert_eq!(&left.console[0].bytes[..], b"four");
}

#[test]
fn frames_of_an_epoch_are_repeated_until_all_of_it_has_left() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    gate.hold();
    let mut kept = KeptOutput::default();
    let mut frames = |epoch: u64, text: &str| {
        send(&port, text);
        kept.add(EpochId(epoch), gate.seal(EpochId(epoch)));
        let output = kept.to_repeat();
        let frames = output.frames.iter().map(|it| it.bytes.to_vec());
        String::from_utf8(frames.collect::<Vec<_>>().concat()).unwrap()
    };
    assert_eq!(frames(1, "a"), "a");
    // Not released yet, as when shared disks are slow.
    assert_eq!(frames(2, "b"), "ab");
    assert!(gate.release(EpochId(1), far()));
    assert_eq!(frames(3, "c"), "bc");
    assert!(gate.release(EpochId(3), far()));
    assert_eq!(frames(4, "d"), "d");
    // Another backup gets other epochs.
    gate.open();
    gate.hold();
    assert_eq!(gate.seal(EpochId(1)).sent_through, EpochId(0));
}

/// A network that takes nothing at times.
#[derive(Default)]
struct Fickle {
    refuses: AtomicBool,
}

impl FrameSink for Fickle {
    fn send(&self, _frame: &[u8]) -> Result<(), SendError> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(SendError::Busy),
            false => Ok(()),
        }
    }
}

#[test]
fn what_the_network_did_not_take_has_not_left() {
    let (gate, sink) = (OutputGate::default(), Arc::new(Fickle::default()));
    let port = gate.add_network(sink.clone(), || ());
    gate.hold();
    let release = |epoch: u64, is_in_time: &dyn Fn() -> bool| {
        send(&port, "one");
        send(&port, "two");
        gate.seal(EpochId(epoch));
        gate.release(EpochId(epoch), is_in_time);
        gate.left_through().0
    };
    assert_eq!(release(1, &|| true), 1);
    sink.refuses.store(true, Ordering::Relaxed);
    assert_eq!(release(2, &|| true), 1);
    sink.refuses.store(false, Ordering::Relaxed);
    assert_eq!(release(3, &|| true), 3);
    // It refuses the first frame of the next epoch, and takes the rest of it after a stall.
    sink.refuses.store(true, Ordering::Relaxed);
    let frames = AtomicUsize::new(0);
    assert_eq!(
        release(4, &|| frames.fetch_add(1, Ordering::Relaxed) < 1),
        3
    );
    sink.refuses.store(false, Ordering::Relaxed);
    assert!(gate.release(EpochId(4), far()));
    assert_eq!(gate.left_through(), EpochId(3));
    assert_eq!(release(5, &|| true), 5);
    // Another backup gets other epochs.
    gate.open();
    gate.hold();
    assert_eq!(gate.left_through(), EpochId(0));
}

#[test]
fn what_has_left_at_a_handover_is_not_kept() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    gate.hold();
    let mut kept = KeptOutput::default();
    let outputs = [1, 2, 3].map(|epoch| {
        send(&port, "x");
        (EpochId(epoch), gate.seal(EpochId(epoch)))
    });
    for (epoch, output) in outputs {
        // It may come before the last epochs are committed.
        if epoch == EpochId(2) {
            kept.have_left(EpochId(2));
        }
        kept.add(epoch, output);
    }
    assert_eq!(kept.to_repeat().frames.len(), 1);
    kept.have_left(EpochId(3));
    assert_eq!(kept.to_repeat().frames, []);
}

#[test]
fn what_is_kept_is_bounded_whatever_the_primary_says() {
    let mut kept = KeptOutput::default();
    let text = "x".repeat(1 << 20);
    for epoch in 0..12 {
        let console = [0, 1].map(|device| ConsoleOutput {
            device,
            position: epoch << 20,
            bytes: frame(&text),
        });
        let frames = vec![
            NetworkFrame {
                device: 0,
                bytes: frame("y"),
            };
            20_000
        ];
        let output = SealedOutput {
            frames,
            console: console.to_vec(),
            // It lies.
            sent_through: EpochId(0),
            written: vec![ConsoleProgress {
                device: 7,
                position: u64::MAX,
            }],
        };
        kept.add(EpochId(epoch + 1), output);
        let all = kept.to_repeat();
        let console: usize = all.console.iter().map(|run| run.bytes.len()).sum();
        assert!(console <= KEPT_CONSOLE_BYTES_MAX);
        let frames = all.frames.len() * (FRAME_OVERHEAD_BYTES + 1);
        assert!(frames <= KEPT_FRAME_BYTES_MAX);
    }
    // The newest ones are left.
    let all = kept.to_repeat();
    let end = |run: &ConsoleOutput| run.position + run.bytes.len() as u64;
    assert!(all.console.iter().all(|run| end(run) == 12 << 20));
    // Positions that cannot be are no panic.
    for position in [u64::MAX, 3] {
        let run = ConsoleOutput {
            device: 0,
            position,
            bytes: frame("abc"),
        };
        let output = SealedOutput {
            console: vec![run.clone()],
            written: vec![ConsoleProgress {
                device: 0,
                position: u64::MAX,
            }],
            ..SealedOutput::default()
        };
        kept.add(EpochId(99), output);
        assert!(kept.to_repeat().console.contains(&run));
    }
}
