//! The gate's rules, each by a test that fails when the rule is broken.

mod accounts;
mod arrivals;
mod console;
mod kept;
mod model;
mod races;
mod release;
mod repeat;
mod room;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{ConsolePort, GateLimits, MemoryConsole, MemoryFrames, NetPort, OutputGate};

const DEADLINE: Duration = Duration::from_secs(20);

/// How often a device was woken.
#[derive(Clone, Default)]
struct Wakes(Arc<AtomicU64>);

impl Wakes {
    fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let wakes = Arc::clone(&self.0);
        move || {
            wakes.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Since the last call.
    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::AcqRel)
    }
}

/// This process was never stalled.
fn far() -> impl Fn() -> bool {
    || true
}

fn gate_with(limits: GateLimits) -> (OutputGate, NetPort, MemoryFrames) {
    let (gate, port, wire, _wakes) = waking_gate_with(limits);
    (gate, port, wire)
}

fn waking_gate_with(limits: GateLimits) -> (OutputGate, NetPort, MemoryFrames, Wakes) {
    let gate = OutputGate::new(limits);
    let (wire, wakes) = (MemoryFrames::default(), Wakes::default());
    let port = gate.add_network(Arc::new(wire.clone()), wakes.waker());
    (gate, port, wire, wakes)
}

fn frame(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn send(port: &NetPort, text: &str) {
    port.send(frame(text)).unwrap();
}

/// Attaches a console that `screen` shows.
fn attach(gate: &OutputGate, screen: &MemoryConsole) -> ConsolePort {
    gate.add_console(Box::new(screen.clone()), || ()).unwrap()
}

fn console(gate: &OutputGate) -> (ConsolePort, MemoryConsole) {
    let screen = MemoryConsole::default();
    (attach(gate, &screen), screen)
}

fn shown(gate: &OutputGate, screen: &MemoryConsole) -> String {
    assert!(gate.flush_consoles(DEADLINE));
    String::from_utf8(screen.contents()).unwrap()
}
