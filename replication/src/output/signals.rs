//! What the gate tells others. No signal is given with a lock of the gate held: whoever hears it may ask
//! the gate.

use std::sync::Arc;

/// Who is told that output waits; see [`OutputGate::set_listener`](super::OutputGate::set_listener).
pub type OutputListener = Arc<dyn Fn(OutputEvent) + Send + Sync>;

/// Tells a device that was refused that it is worth trying again.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

/// What an [`OutputGate`](super::OutputGate) tells its listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputEvent {
    /// The current bucket has just got (more) output.
    Waiting,
    /// The gate is so full that the guest's output is being slowed.
    Full,
}

/// The gate is full. The device must keep the output and try again when its port's waker is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the output gate is full")]
pub struct Full;
