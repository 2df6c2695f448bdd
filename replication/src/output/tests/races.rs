//! Threads that release, send and shut at once.

use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;

use super::{DEADLINE, far, gate_with};
use crate::ids::EpochId;
use crate::output::{FrameSink, GateLimits, MemoryFrames, NetPort, OutputGate, SendError};

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
    wire: MemoryFrames,
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
    gate: OutputGate,
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
        wire: MemoryFrames::default(),
    });
    let gate = OutputGate::new(GateLimits::default());
    let port = gate.add_network(slow.clone(), || ());
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
            || busy.port.announce(&[0]).unwrap(),
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
                busy.slow.wire.contents().len()
            },
            || busy.send(1),
        );
        assert_eq!(busy.slow.wire.take().len(), left_by_then);
    }
}
