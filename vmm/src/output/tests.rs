//! The gate's rules, each by a test that fails when the rule is broken.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use understudy_replication::ids::EpochId;
use understudy_replication::ports::{ConsoleOutput, OutputEvent, OutputGate, SealedOutput};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Records what leaves.
#[derive(Default)]
pub(crate) struct Wire {
    frames: Mutex<Vec<Vec<u8>>>,
    busy: AtomicBool,
}

impl Wire {
    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.frames.lock().unwrap())
    }
}

impl FrameSink for Wire {
    fn send(&self, frame: &[u8]) -> Result<(), SendError> {
        if self.busy.load(Ordering::Relaxed) {
            return Err(SendError::Busy);
        }
        self.frames.lock().unwrap().push(frame.to_vec());
        Ok(())
    }
}

/// Later than any test takes.
pub(crate) fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

pub(crate) fn gate_with(limits: GateLimits) -> (Gate, NetPort, Arc<Wire>) {
    let gate = Gate::new(limits);
    let wire = Arc::new(Wire::default());
    let port = gate.add_network(wire.clone()).unwrap();
    (gate, port, wire)
}

fn frame(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn send(port: &NetPort, text: &str) {
    port.send(frame(text)).unwrap();
}

fn console(gate: &Gate) -> (ConsolePort, MemorySink) {
    let sink = MemorySink::default();
    (gate.add_console(Box::new(sink.clone())).unwrap(), sink)
}

fn shown(gate: &Gate, sink: &MemorySink) -> String {
    assert!(gate.flush_consoles(DEADLINE));
    String::from_utf8(sink.contents()).unwrap()
}

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
    let past = Instant::now() - Duration::from_millis(1);
    assert!(!gate.release(EpochId(1), past));
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
    assert_eq!(gate.seal(EpochId(1)), SealedOutput::default());
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
    gate.release(EpochId(1), far());
    gate.open();
    gate.repeat(&sealed);
    send(&port, "later");
    tty.write(b"later").unwrap();
    assert_eq!(gate.announce(0, b"me"), Err(SendError::Closed));
    assert!(wire.take().is_empty());
    assert_eq!(shown(&gate, &screen), "");
    let counters = gate.counters();
    assert_eq!((counters.frames_dropped, counters.waiting_bytes), (3, 0));
    assert_eq!(tty.position(), 11);
    assert!(tty.has_room());
}

#[test]
fn a_full_gate_refuses_and_wakes_the_device_when_there_is_room() {
    let limits = GateLimits {
        held_bytes_max: 10 * (FRAME_OVERHEAD_BYTES + 10),
        ..GateLimits::default()
    };
    let (gate, port, wire) = gate_with(limits);
    gate.hold();
    for _ in 0..10 {
        send(&port, "0123456789");
    }
    assert_eq!(port.send(frame("x")), Err(Full));
    assert_eq!(gate.counters().refusals, 1);
    gate.seal(EpochId(1));
    assert_eq!(port.send(frame("x")), Err(Full));
    assert!(port.space_event().read().is_err(), "no room yet");
    gate.release(EpochId(1), far());
    assert_eq!(port.space_event().read().unwrap(), 1);
    send(&port, "x");
    assert_eq!(wire.take().len(), 10);
    // A device that was not refused is not woken.
    gate.seal(EpochId(2));
    gate.release(EpochId(2), far());
    assert!(port.space_event().read().is_err());
    assert_eq!(wire.take(), [b"x"]);
}

#[test]
fn a_frame_larger_than_the_limit_passes_alone() {
    let limits = GateLimits {
        held_bytes_max: 1,
        ..GateLimits::default()
    };
    let (gate, port, wire) = gate_with(limits);
    gate.hold();
    send(&port, "large");
    assert_eq!(port.send(frame("x")), Err(Full));
    gate.seal(EpochId(1));
    gate.release(EpochId(1), far());
    assert_eq!(wire.take(), [b"large"]);
    assert_eq!(port.space_event().read().unwrap(), 1);
}

#[test]
fn shutting_and_opening_wake_a_refused_device() {
    for open in [true, false] {
        let limits = GateLimits {
            held_bytes_max: 1,
            ..GateLimits::default()
        };
        let (gate, port, _wire) = gate_with(limits);
        gate.hold();
        send(&port, "a");
        assert_eq!(port.send(frame("b")), Err(Full));
        if open {
            gate.open()
        } else {
            gate.shut()
        }
        assert_eq!(port.space_event().read().unwrap(), 1);
        send(&port, "b");
    }
}

#[test]
fn a_full_backend_loses_frames_and_counts_them() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    gate.hold();
    send(&port, "abc");
    gate.seal(EpochId(1));
    wire.busy.store(true, Ordering::Relaxed);
    gate.release(EpochId(1), far());
    wire.busy.store(false, Ordering::Relaxed);
    assert!(wire.take().is_empty());
    let counters = gate.counters();
    assert_eq!((counters.frames_dropped, counters.bytes_dropped), (1, 3));
    assert_eq!((counters.frames_held, counters.waiting_bytes), (1, 0));
}

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
    let screen = MemorySink::default();
    let (old, old_port, _) = gate_with(GateLimits::default());
    let old_tty = old.add_console(Box::new(screen.clone())).unwrap();
    old_tty.write(b"boot ").unwrap();
    assert!(old.flush_consoles(DEADLINE));
    old.hold();
    send(&old_port, "last");
    old_tty.write(b"hello").unwrap();
    let output = old.seal(EpochId(1));
    let position = old_tty.position();
    drop(old);

    for already in ["", "he", "hello", "hello and more"] {
        let screen = MemorySink::default();
        let mut copy = screen.clone();
        copy.append(0, format!("boot {already}").as_bytes())
            .unwrap();
        let (new, _port, wire) = gate_with(GateLimits::default());
        let tty = new.add_console(Box::new(screen.clone())).unwrap();
        tty.set_position(position);
        new.repeat(&output);
        assert_eq!(wire.take(), [b"last"]);
        let expected = if already.len() > 5 { already } else { "hello" };
        assert_eq!(shown(&new, &screen), format!("boot {expected}"));
        assert_eq!(new.counters().frames_repeated, 1);
    }
}

#[test]
fn what_is_repeated_comes_before_what_the_guest_says_next() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    let (tty, screen) = console(&gate);
    let output = SealedOutput {
        frames: ["1", "2"]
            .map(|text| understudy_replication::ports::NetworkFrame {
                device: 0,
                bytes: frame(text),
            })
            .to_vec(),
        console: vec![ConsoleOutput {
            device: 0,
            position: 0,
            bytes: frame("old "),
        }],
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
    output
        .frames
        .push(understudy_replication::ports::NetworkFrame {
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

#[test]
fn announcements_pass_a_holding_gate() {
    let (gate, port, wire) = gate_with(GateLimits::default());
    gate.hold();
    send(&port, "guest");
    port.announce(b"here").unwrap();
    gate.announce(0, b"still").unwrap();
    assert_eq!(wire.take(), [&b"here"[..], b"still"]);
    assert_eq!(gate.announce(1, b"x"), Err(SendError::Refused));
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
    gate.set_listener(Arc::new(move |event| {
        // Whoever is called may ask the gate: no lock is held.
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

/// A console that waits for permission before each write.
struct SlowScreen {
    permits: mpsc::Receiver<()>,
    screen: MemorySink,
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
    let gate = Gate::new(GateLimits {
        console_bytes_max: 8,
        ..GateLimits::default()
    });
    let (permit, permits) = mpsc::channel();
    let screen = MemorySink::default();
    let slow = SlowScreen {
        permits,
        screen: screen.clone(),
    };
    let tty = gate.add_console(Box::new(slow)).unwrap();
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
    assert!(tty.space_event().read().is_ok());
    assert!(tty.has_room());
}

#[test]
fn console_files_are_begun_and_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    std::fs::write(&path, "of an older guest").unwrap();
    let contents = || {
        let mut text = String::new();
        std::fs::File::open(&path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    };
    let old = Gate::new(GateLimits::default());
    let new = Gate::new(GateLimits::default());
    let old_tty = old
        .add_console(Box::new(FileSink::create(&path).unwrap()))
        .unwrap();
    let new_tty = new
        .add_console(Box::new(FileSink::join(&path).unwrap()))
        .unwrap();
    // Until the guest speaks, it may run elsewhere.
    assert_eq!(contents(), "of an older guest");
    old_tty.write(b"boot ").unwrap();
    old.hold();
    old_tty.write(b"hello ").unwrap();
    let output = old.seal(EpochId(1));
    // The primary releases, and dies: the file has it all.
    old.release(EpochId(1), far());
    assert!(old.flush_consoles(DEADLINE));
    assert_eq!(contents(), "boot hello ");
    new_tty.set_position(11);
    new.repeat(&output);
    new_tty.write(b"again").unwrap();
    assert!(new.flush_consoles(DEADLINE));
    assert_eq!(contents(), "boot hello again");
}

#[test]
fn a_longer_console_file_than_the_guest_can_have_written_swallows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    std::fs::write(&path, "of an older guest, on this host. ").unwrap();
    let gate = Gate::new(GateLimits::default());
    let tty = gate
        .add_console(Box::new(FileSink::join(&path).unwrap()))
        .unwrap();
    tty.set_position(5);
    tty.write(b"hello").unwrap();
    assert!(gate.flush_consoles(DEADLINE));
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, "of an older guest, on this host. hello");
}

#[test]
fn nothing_overtakes_while_one_thread_releases_and_another_sends() {
    const FRAMES: u32 = 2000;
    let (gate, port, wire) = gate_with(GateLimits::default());
    let other = gate.clone();
    let (epochs, sealed) = mpsc::channel();
    let releaser = std::thread::spawn(move || {
        for epoch in sealed {
            other.release(epoch, far());
        }
        other.open();
    });
    gate.hold();
    let mut epochs = Some(epochs);
    for number in 0..FRAMES {
        port.send(Bytes::copy_from_slice(&number.to_be_bytes()))
            .unwrap();
        if number == FRAMES / 2 {
            // From here on the other thread opens the gate at some moment.
            epochs = None;
        }
        if let Some(epochs) = epochs.as_ref().filter(|_| number % 7 == 0) {
            let epoch = EpochId(u64::from(number) + 1);
            gate.seal(epoch);
            epochs.send(epoch).unwrap();
        }
    }
    releaser.join().unwrap();
    let sent = wire.take();
    let expected: Vec<_> = (0..FRAMES).map(|n| n.to_be_bytes().to_vec()).collect();
    assert!(
        sent == expected,
        "{} of {FRAMES} frames, or out of order",
        sent.len()
    );
}

/// A wire whose first frame takes until it is permitted.
struct SlowWire {
    permits: Mutex<mpsc::Receiver<()>>,
    begun: mpsc::Sender<()>,
    /// Held while a frame is on its way: a second one would be a second thread.
    inside: Mutex<()>,
    wire: Wire,
}

impl FrameSink for SlowWire {
    fn send(&self, frame: &[u8]) -> Result<(), SendError> {
        let _alone = self.inside.try_lock().map_err(|_| SendError::Refused)?;
        if frame == [0] {
            self.begun.send(()).unwrap();
            let permits = self.permits.lock().unwrap();
            permits.recv_timeout(DEADLINE).unwrap();
        }
        self.wire.send(frame)
    }
}

/// A gate whose wire is busy with frame 0 until the permit is given.
struct BusyGate {
    gate: Gate,
    port: NetPort,
    slow: Arc<SlowWire>,
    permit: mpsc::Sender<()>,
    has_begun: Mutex<mpsc::Receiver<()>>,
}

fn busy_gate() -> BusyGate {
    let (permit, permits) = mpsc::channel();
    let (begun, has_begun) = mpsc::channel();
    let slow = Arc::new(SlowWire {
        permits: Mutex::new(permits),
        begun,
        inside: Mutex::new(()),
        wire: Wire::default(),
    });
    let gate = Gate::new(GateLimits::default());
    let port = gate.add_network(slow.clone()).unwrap();
    BusyGate {
        gate,
        port,
        slow,
        permit,
        has_begun: Mutex::new(has_begun),
    }
}

impl BusyGate {
    fn send(&self, number: u8) {
        self.port.send(Bytes::copy_from_slice(&[number])).unwrap();
    }

    /// Lets two threads race while the wire is busy with what `first` sends.
    fn race<A: Send, B: Send>(
        &self,
        first: impl FnOnce() + Send,
        one: impl FnOnce() -> A + Send,
        other: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        std::thread::scope(|threads| {
            threads.spawn(first);
            let has_begun = self.has_begun.lock().unwrap();
            has_begun.recv_timeout(DEADLINE).unwrap();
            let (trying, tries) = mpsc::channel();
            let also_trying = trying.clone();
            let one = threads.spawn(move || {
                trying.send(()).unwrap();
                one()
            });
            let other = threads.spawn(move || {
                also_trying.send(()).unwrap();
                other()
            });
            for _ in 0..2 {
                tries.recv_timeout(DEADLINE).unwrap();
            }
            std::thread::yield_now();
            self.permit.send(()).unwrap();
            (one.join().unwrap(), other.join().unwrap())
        })
    }
}

// In the races below the scheduler decides who comes first, and so whether a broken gate is found out
// in one round; a right one is right in all of them.
const ROUNDS: u32 = 200;

#[test]
fn nothing_overtakes_what_is_being_sent() {
    for round in 0..ROUNDS {
        // Few frames are all on their way at once, of many some are still in the outbox.
        let held = if round % 2 == 0 { 2 } else { 200 };
        let busy = busy_gate();
        busy.gate.hold();
        (0..held).for_each(|number| busy.send(number));
        busy.race(|| busy.gate.open(), || busy.send(held), || ());
        let expected: Vec<_> = (0..=held).map(|number| vec![number]).collect();
        assert_eq!(busy.slow.wire.take(), expected);
    }
}

#[test]
fn nothing_overtakes_what_waits_for_the_wire() {
    for _ in 0..ROUNDS {
        let busy = busy_gate();
        busy.gate.hold();
        (1..4).for_each(|number| busy.send(number));
        busy.race(
            || busy.gate.announce(0, &[0]).unwrap(),
            || busy.gate.open(),
            || busy.send(4),
        );
        assert_eq!(busy.slow.wire.take(), [[0], [1], [2], [3], [4]]);
    }
}

#[test]
fn nothing_leaves_once_shut_has_returned() {
    for _ in 0..ROUNDS {
        let busy = busy_gate();
        let (left_by_then, ()) = busy.race(
            || busy.send(0),
            || {
                busy.gate.shut();
                busy.slow.wire.frames.lock().unwrap().len()
            },
            || busy.send(1),
        );
        assert_eq!(busy.slow.wire.take().len(), left_by_then);
    }
}

/// What a caller does to a gate.
#[derive(Debug, Clone)]
enum Act {
    Send(u8),
    Console(u8),
    Seal,
    Release(u64),
    Open,
    Hold,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => any::<u8>().prop_map(Act::Send),
        2 => any::<u8>().prop_map(Act::Console),
        3 => Just(Act::Seal),
        3 => (0..4_u64).prop_map(Act::Release),
        1 => Just(Act::Open),
        1 => Just(Act::Hold),
    ];
    proptest::collection::vec(act, 0..60)
}

proptest! {
    /// Against a model: a list of (epoch or none, byte) that lets go of a prefix.
    #[test]
    fn the_gate_is_a_queue_that_opens_at_released_epochs(acts in acts()) {
        let (gate, port, wire) = gate_with(GateLimits::default());
        let (tty, screen) = console(&gate);
        let mut epoch = 0;
        let mut holding = false;
        let mut waiting: Vec<(Option<u64>, bool, u8)> = Vec::new();
        let (mut frames, mut text): (Vec<Vec<u8>>, Vec<u8>) = Default::default();
        for act in acts {
            let mut gone = Vec::new();
            match act {
                Act::Send(byte) => {
                    port.send(Bytes::copy_from_slice(&[byte])).unwrap();
                    waiting.push((None, true, byte));
                }
                Act::Console(byte) => {
                    tty.write(&[byte]).unwrap();
                    waiting.push((None, false, byte));
                }
                Act::Seal if holding => {
                    epoch += 1;
                    gate.seal(EpochId(epoch));
                    waiting.iter_mut().for_each(|w| w.0 = w.0.or(Some(epoch)));
                }
                Act::Seal => {}
                Act::Release(back) => {
                    let through = epoch.saturating_sub(back);
                    gate.release(EpochId(through), far());
                    gone = waiting
                        .extract_if(.., |w| w.0.is_some_and(|e| e <= through))
                        .collect();
                }
                Act::Open => {
                    gate.open();
                    holding = false;
                }
                Act::Hold => {
                    gate.hold();
                    holding = true;
                }
            }
            if !holding {
                gone.append(&mut waiting);
            }
            for (_, is_frame, byte) in gone {
                if is_frame { frames.push(vec![byte]) } else { text.push(byte) }
            }
            prop_assert_eq!(&*wire.frames.lock().unwrap(), &frames);
            prop_assert!(gate.flush_consoles(DEADLINE));
            prop_assert_eq!(&screen.contents(), &text);
        }
    }
}
