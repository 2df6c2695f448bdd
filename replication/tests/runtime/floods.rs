//! Strangers at the standby's port, and peers that send more than they should.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use understudy_replication::EpochId;
use understudy_replication::core::message::{Hello, Message, Welcome};
use understudy_replication::output::{FrameSink, GateMode, OutputGate, SendError};
use understudy_transport::{Frame, HEADER_BYTES};

use super::*;

/// Threads that connect to a standby's port again and again and say nothing.
struct Reconnecting {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Reconnecting {
    fn start(port: PathBuf, threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..threads).map(|_| {
            let (stop, port) = (Arc::clone(&stop), port.clone());
            std::thread::spawn(move || {
                let mut connections = 0;
                while !stop.load(Ordering::Acquire) {
                    connections += u64::from(UnixStream::connect(&port).is_ok());
                }
                connections
            })
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    /// Returns how many connections they made.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    }
}

#[test]
fn strangers_at_the_port_do_not_keep_a_guest_from_being_protected() {
    let directory = tempfile::tempdir().unwrap();
    let port = directory.path().join("channel");
    let standby = standby(directory.path(), Fake::new()).start().unwrap();
    // Each of them used to have the port for itself for 1.5 s.
    let silent: Vec<_> = (0..15)
        .map(|_| UnixStream::connect(&port).unwrap())
        .collect();
    let reconnecting = Reconnecting::start(port, 8);
    let began = Instant::now();
    let primary = primary(directory.path(), Fake::new()).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "protected among strangers",
        || handle.status(),
        |status| status.protected,
    );
    let took = began.elapsed();
    let counts = standby.handle().status().strangers;
    let made = reconnecting.stop();
    assert!(took < Duration::from_secs(15), "took {took:?}: {counts:?}");
    assert!(counts.connections > 16, "{counts:?} of {made}");
    drop(silent);
    handle.guest_stopped();
    primary.wait().unwrap();
    standby.handle().stop();
    standby.await_promotion().unwrap();
}

/// Says to a copy of this test program which test it is to do itself.
const OWN_PROCESS: &str = "UNDERSTUDY_FLOODS_TEST";

/// Runs `body` in a process of its own, so that its memory is its own too.
fn in_own_process(test: &str, body: fn()) {
    if std::env::var_os(OWN_PROCESS).is_some_and(|own| own == test) {
        return body();
    }
    let name = format!("floods::{test}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(OWN_PROCESS, test)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Bytes of resident memory of this process: `VmRSS` now, `VmHWM` at most since the last reset.
fn resident(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// By how much resident memory grows at most while `body` runs.
fn growth(body: impl FnOnce()) -> u64 {
    let before = resident("VmRSS");
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    body();
    resident("VmHWM").saturating_sub(before)
}

/// Sends messages over a socket as a peer would.
struct Talker {
    stream: UnixStream,
    generation: u64,
    sequence: u64,
    buffer: Vec<u8>,
}

impl Talker {
    fn new(stream: UnixStream, generation: u64) -> Self {
        Self {
            stream,
            generation,
            sequence: 0,
            buffer: Vec::new(),
        }
    }

    fn add(&mut self, (kind, epoch, body): (u16, u64, Bytes)) {
        let frame = Frame {
            kind,
            generation: self.generation,
            epoch,
            body,
        };
        let header = frame.encode_header(self.sequence, Default::default());
        self.sequence += 1;
        self.buffer.extend(header.unwrap());
        self.buffer.extend(&frame.body);
    }

    fn send(&mut self) -> std::io::Result<()> {
        let sent = self.stream.write_all(&self.buffer);
        self.buffer.clear();
        sent
    }
}

/// What a primary may need beside what it had: the queue to its standby, and what it reads at once.
const PRIMARY_GROWTH_MAX: u64 = 96 << 20;
/// More than any bound here, and not so much that the machine suffers from a program without one.
const FLOOD_BYTES: usize = 256 << 20;

/// A primary whose standby welcomes it and then sends this again and again.
fn flood_a_primary(message: &Message) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("channel")).unwrap();
    let primary = primary(directory.path(), Fake::new()).protect().unwrap();
    let handle = primary.handle();
    // Before it started the guest, the primary asked what is known of it.
    drop(listener.accept().unwrap());
    let (stream, _) = listener.accept().unwrap();
    let mut standby = Talker::new(stream, handle.status().generation);
    let welcome = Message::Welcome(Welcome {
        node: "b".into(),
        host: None,
        session: 0,
        disks: Vec::new(),
    });
    standby.add(welcome.encode());
    standby.send().unwrap();
    let (grown, sent) = {
        let mut sent = 0;
        let grown = growth(|| {
            while sent < FLOOD_BYTES {
                while standby.buffer.len() < 64 << 10 {
                    standby.add(message.encode());
                }
                sent += standby.buffer.len();
                if standby.send().is_err() {
                    break;
                }
            }
        });
        (grown, sent)
    };
    assert!(
        grown < PRIMARY_GROWTH_MAX,
        "grew by {grown} for {sent} sent"
    );
    assert!(sent < FLOOD_BYTES, "it was never cut off");
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
}

#[test]
fn a_standby_that_sends_without_end_is_cut_off() {
    in_own_process("a_standby_that_sends_without_end_is_cut_off", || {
        flood_a_primary(&Message::Heartbeat);
    });
}

#[test]
fn a_standby_that_acknowledges_without_end_is_cut_off() {
    in_own_process("a_standby_that_acknowledges_without_end_is_cut_off", || {
        let epoch = EpochId(1);
        flood_a_primary(&Message::Ack {
            epoch,
            durable: EpochId(0),
        });
    });
}

/// What a standby may need for strangers and for one malformed message of a primary.
const STANDBY_GROWTH_MAX: u64 = 48 << 20;

#[test]
fn whoever_talks_to_a_standby_costs_it_little() {
    in_own_process("whoever_talks_to_a_standby_costs_it_little", || {
        let directory = tempfile::tempdir().unwrap();
        let port = directory.path().join("channel");
        let machine = Fake::new();
        let (fingerprint, layout) = (machine.fingerprint(), machine.memory().layout().clone());
        let standby = standby(directory.path(), machine).start().unwrap();
        let handle = standby.handle();
        let arbiter = arbiter(directory.path());
        arbiter.claim(START, "a").unwrap();
        let hello = Message::Hello(Hello {
            vm: "vm".into(),
            node: "a".into(),
            fingerprint,
            layout,
            arbiter: arbiter.record().unwrap().arbiter,
            session: 1,
        });
        // Frames of one byte. Each would take 72 bytes of memory.
        let mut output = vec![0x80, 0x80, 0x40];
        output.extend([0, 1, 7].repeat(1 << 20));
        output.push(0);
        let connect = |generation| Talker::new(UnixStream::connect(&port).unwrap(), generation);
        let grown = growth(|| {
            // All but the last byte of an introduction as long as it may be.
            let mut strangers: Vec<_> = (0..300).map(|_| connect(1)).collect();
            for stranger in &mut strangers {
                stranger.add((1, 0, vec![0; 64 << 10].into()));
                stranger.buffer.pop();
                // It may have been turned away.
                let _ = stranger.send();
            }
            let mut primary = connect(1);
            primary.add(hello.encode());
            primary.send().unwrap();
            // The welcome.
            primary.stream.read_exact(&mut [0; HEADER_BYTES]).unwrap();
            primary.add((7, 1, output.into()));
            // It is cut off in the middle of it, or right after it.
            let _ = primary.send();
            wait_for(
                "cut off",
                || handle.status(),
                |status| status.alarm.is_some(),
            );
        });
        assert!(grown < STANDBY_GROWTH_MAX, "grew by {grown}");
        let alarm = handle.status().alarm.unwrap();
        assert!(alarm.contains("EpochOutput"), "{alarm}");
        handle.stop();
        standby.await_promotion().unwrap();
    });
}

/// A network that takes everything and keeps nothing.
struct Nowhere;

impl FrameSink for Nowhere {
    fn send(&self, _frame: &[u8]) -> Result<(), SendError> {
        Ok(())
    }
}

/// What the gate holds by default, and as much again for what is on its way through it.
const GATE_GROWTH_MAX: u64 = 2 * (64 << 20);

#[test]
fn a_full_gate_holds_what_it_counts_however_small_the_frames_are() {
    in_own_process(
        "a_full_gate_holds_what_it_counts_however_small_the_frames_are",
        || {
            let gate = OutputGate::default();
            let port = gate.add_network(Arc::new(Nowhere), || ());
            gate.hold();
            let mut frames = 0_u64;
            let grown = growth(|| {
                // Each in a buffer as devices have them. Touched, so that it is resident.
                let frame = || {
                    let mut buffer = vec![7; 2048];
                    buffer.truncate(60);
                    Bytes::from(buffer)
                };
                while port.send(frame()).is_ok() {
                    frames += 1;
                }
                gate.seal(EpochId(1));
                assert!(gate.release(EpochId(1), || true));
            });
            assert_eq!(gate.mode(), GateMode::Holding);
            assert_eq!(gate.counts().frames_sent, frames);
            assert!(frames > 100_000, "{frames}");
            assert!(
                grown < GATE_GROWTH_MAX,
                "grew by {grown} for {frames} frames"
            );
        },
    );
}

/// How often a standby whose memory cannot be written was given a copy of the guest.
#[test]
fn a_standby_that_cannot_write_its_memory_is_tried_more_and_more_rarely() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Fake::new();
    machine.write_fails.store(true, Ordering::Release);
    let standby = standby(directory.path(), machine).start().unwrap();
    let primary = primary(directory.path(), Fake::new()).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "told so",
        || handle.status(),
        |status| {
            let alarm = status.alarm.as_deref().unwrap_or_default();
            alarm.contains("cannot keep its copy") && alarm.contains("this write fails on purpose")
        },
    );
    let (began, connections) = (
        Instant::now(),
        standby.handle().status().strangers.connections,
    );
    wait_for(
        "tried again",
        || standby.handle().status(),
        |status| status.strangers.connections > connections,
    );
    // On a busy machine the alarm may be seen late, and the pause looks shorter than the 5 s it is.
    assert!(
        began.elapsed() > Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    handle.guest_stopped();
    primary.wait().unwrap();
    standby.handle().stop();
    standby.await_promotion().unwrap();
}

#[test]
fn a_state_that_cannot_be_sent_is_found_out_before_anything_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Fake::new();
    machine.save_failures.store(u64::MAX, Ordering::Release);
    let standby = standby(directory.path(), Fake::new()).start().unwrap();
    let primary = primary(directory.path(), machine).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "alarmed",
        || handle.status(),
        |status| {
            let alarm = status.alarm.as_deref().unwrap_or_default();
            alarm.contains("this save fails on purpose")
        },
    );
    let status = handle.status();
    assert_eq!((status.sync_bytes, status.generation), (0, 1), "{status:?}");
    handle.guest_stopped();
    primary.wait().unwrap();
    standby.handle().stop();
    standby.await_promotion().unwrap();
}
