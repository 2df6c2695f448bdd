//! What the guest was given while it was handed over goes with it.

use parking_lot::Mutex;

use super::*;
use crate::ids::EpochId;
use crate::output::{ARRIVALS_BYTES_MAX, FRAME_OVERHEAD_BYTES, NetworkFrame, OutputEvent};

fn arrival(device: u16, text: &str) -> NetworkFrame {
    NetworkFrame {
        device,
        bytes: frame(text),
    }
}

/// How often something followed the guest.
fn listen(gate: &OutputGate) -> Arc<Mutex<u32>> {
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    gate.set_listener(Arc::new(move |event| {
        if event == OutputEvent::Arrived {
            *count.lock() += 1;
        }
    }));
    told
}

#[test]
fn what_came_after_the_last_epoch_follows_the_guest() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    let second = gate.add_network(Arc::new(MemoryFrames::default()), || {});
    let told = listen(&gate);
    gate.hold();
    port.received(b"no handover yet");
    gate.keep_arrivals();
    port.received(b"in the last epoch");
    gate.seal(EpochId(1));
    port.received(b"one");
    second.received(b"two");
    assert_eq!((gate.take_arrivals(), *told.lock()), (vec![], 0));
    gate.follow_arrivals();
    let both = vec![arrival(0, "one"), arrival(1, "two")];
    assert_eq!(gate.take_arrivals(), both);
    port.received(b"three");
    assert_eq!(*told.lock(), 1);
    assert_eq!(gate.take_arrivals(), [arrival(0, "three")]);
    assert_eq!(gate.take_arrivals(), []);
}

#[test]
fn a_guest_that_stays_takes_nothing_along() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    let told = listen(&gate);
    gate.keep_arrivals();
    port.received(b"one");
    gate.forget_arrivals();
    port.received(b"two");
    gate.follow_arrivals();
    assert_eq!(gate.take_arrivals(), []);
    port.received(b"three");
    gate.forget_arrivals();
    assert_eq!((gate.take_arrivals(), *told.lock()), (vec![], 1));
    // The next handover begins afresh.
    gate.keep_arrivals();
    gate.follow_arrivals();
    assert_eq!(gate.take_arrivals(), []);
}

#[test]
fn only_so_much_follows_a_guest_however_often_it_is_taken() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    let told = listen(&gate);
    gate.follow_arrivals();
    let frame = [7; 4096];
    let (mut frames, mut offered) = (0, 0);
    while offered < 2 * ARRIVALS_BYTES_MAX {
        port.received(&frame);
        offered += frame.len();
        frames += gate.take_arrivals().len();
    }
    let room = ARRIVALS_BYTES_MAX / (frame.len() + FRAME_OVERHEAD_BYTES);
    assert_eq!((frames, *told.lock() as usize), (room, room));
}

#[test]
fn each_device_gets_what_is_its_own() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    let second = gate.add_network(Arc::new(MemoryFrames::default()), || {});
    assert_eq!(port.arrived(), None);
    assert!(port.defer(b"two"), "both hosts got it");
    assert!(port.defer(b"four"));
    gate.deliver(&[
        arrival(1, "one"),
        arrival(0, "two"),
        arrival(9, "for nobody"),
        arrival(1, "three"),
    ]);
    assert_eq!(port.arrived(), Some(frame("two")));
    assert_eq!(port.arrived(), Some(frame("four")));
    assert_eq!(second.arrived(), Some(frame("one")));
    assert_eq!(second.arrived(), Some(frame("three")));
    assert_eq!((port.arrived(), second.arrived()), (None, None));
}

#[test]
fn a_guest_that_does_not_run_has_only_so_much_kept_for_it() {
    let (gate, port, _wire) = gate_with(GateLimits::default());
    let frame = [7; 4096];
    let kept = (0..1000).filter(|_| port.defer(&frame)).count();
    assert_eq!(
        kept,
        ARRIVALS_BYTES_MAX / (frame.len() + FRAME_OVERHEAD_BYTES)
    );
    assert!(port.arrived().is_some());
    assert!(port.defer(&frame), "there is room again");
    assert!(!port.defer(&frame));
    // What comes with the guest is bounded by itself.
    gate.deliver(&[arrival(0, "one")]);
    let all = std::iter::from_fn(|| port.arrived());
    assert_eq!(all.count(), kept + 1);
}
