//! Consoles that are slower than their guests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

#[test]
fn who_was_refused_is_woken_whenever_the_last_write_ends() {
    let gate = OutputGate::new(GateLimits {
        console_bytes_max: 1,
        ..GateLimits::default()
    });
    let (wake, wakes) = mpsc::channel();
    let screen = MemoryConsole::default();
    let waker = move || wake.send(()).unwrap_or_default();
    let tty = gate.add_console(Box::new(screen.clone()), waker).unwrap();
    for number in 0..30_000 {
        wakes.try_iter().for_each(drop);
        while tty.write(b"x").is_err() {
            let woken = wakes.recv_timeout(DEADLINE);
            woken.unwrap_or_else(|_| panic!("nobody woke the device after byte {number}"));
        }
    }
    assert_eq!(shown(&gate, &screen).len(), 30_000);
}

/// A console in a file system with room for so many bytes.
#[derive(Clone)]
struct SmallDisk {
    room: Arc<AtomicUsize>,
    attempts: Arc<AtomicUsize>,
    screen: MemoryConsole,
}

impl SmallDisk {
    fn new(room: usize) -> Self {
        Self {
            room: Arc::new(AtomicUsize::new(room)),
            attempts: Arc::default(),
            screen: MemoryConsole::default(),
        }
    }

    fn await_attempts(&self, number: usize) {
        let deadline = Instant::now() + DEADLINE;
        while self.attempts.load(Ordering::Acquire) < number {
            assert!(Instant::now() < deadline, "the console is not written");
            std::thread::yield_now();
        }
    }
}

impl ConsoleSink for SmallDisk {
    fn position(&mut self) -> io::Result<Option<u64>> {
        self.screen.position()
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.attempts.fetch_add(1, Ordering::AcqRel);
        let fits = bytes.len().min(self.room.load(Ordering::Acquire));
        self.room.fetch_sub(fits, Ordering::AcqRel);
        self.screen.append(position, &bytes[..fits])?;
        match fits == bytes.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

#[test]
fn a_console_on_a_full_disk_gets_its_lines_once_there_is_room() {
    let (gate, disk) = (OutputGate::default(), SmallDisk::new(4));
    let tty = gate.add_console(Box::new(disk.clone()), || ()).unwrap();
    tty.write(b"one\n").unwrap();
    tty.write(b"two\n").unwrap();
    disk.await_attempts(2);
    tty.write(b"three\n").unwrap();
    disk.room.store(1 << 20, Ordering::Release);
    assert_eq!(shown(&gate, &disk.screen), "one\ntwo\nthree\n");
    assert_eq!(gate.counts().console_bytes_lost, 0);
}

#[test]
fn a_full_disk_does_not_stop_the_guest_and_what_is_lost_is_counted() {
    let (gate, disk) = (
        OutputGate::new(GateLimits {
            console_bytes_max: 4000,
            ..GateLimits::default()
        }),
        SmallDisk::new(10),
    );
    let tty = gate.add_console(Box::new(disk.clone()), || ()).unwrap();
    // Many times what may wait.
    for _ in 0..400 {
        let deadline = Instant::now() + DEADLINE;
        while !tty.has_room() {
            assert!(Instant::now() < deadline, "the guest stands still");
            std::thread::yield_now();
        }
        tty.write(&[b'x'; 100]).unwrap();
    }
    gate.shut();
    let written = disk.screen.contents().len() as u64;
    assert_eq!(written, 10);
    let lost = gate.counts().console_bytes_lost;
    assert!((30_000..=40_000 - written).contains(&lost), "{lost}");
}
