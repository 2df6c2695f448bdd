//! Consoles that are slower than their guests.

use std::io;
use std::sync::mpsc;
use std::time::Instant;

use super::{DEADLINE, Wakes, shown};
use crate::output::{ConsoleSink, Full, GateLimits, MemoryConsole, OutputGate};

/// A console that waits for permission before each write.
struct SlowScreen {
    permits: mpsc::Receiver<()>,
    screen: MemoryConsole,
}

impl ConsoleSink for SlowScreen {
    fn position(&mut self) -> io::Result<Option<u64>> {
        self.screen.position()
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.permits
            .recv_timeout(DEADLINE)
            .map_err(io::Error::other)?;
        self.screen.append(position, bytes)
    }
}

#[test]
fn a_slow_console_slows_its_guest_and_loses_nothing() {
    let gate = OutputGate::new(GateLimits {
        console_bytes_max: 8,
        ..GateLimits::default()
    });
    let (permit, permits) = mpsc::channel();
    let screen = MemoryConsole::default();
    let slow = SlowScreen {
        permits,
        screen: screen.clone(),
    };
    let wakes = Wakes::default();
    let tty = gate.add_console(Box::new(slow), wakes.waker()).unwrap();
    let mut written = 0;
    while tty.has_room() {
        tty.write(b"x").unwrap();
        written += 1;
    }
    assert_eq!(written, 6);
    tty.write(b"yy").unwrap();
    assert_eq!(tty.write(b"z"), Err(Full));
    assert_eq!(tty.position(), 8);
    for _ in 0..8 {
        permit.send(()).unwrap();
    }
    assert_eq!(shown(&gate, &screen), "xxxxxxyy");
    // The writer's thread wakes the device after it has made room.
    let deadline = Instant::now() + DEADLINE;
    while wakes.take() == 0 {
        assert!(Instant::now() < deadline, "nobody woke the device");
        std::thread::yield_now();
    }
    assert!(tty.has_room());
}
