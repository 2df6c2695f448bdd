//! What the gate tells others. It gives no signal while it holds one of its locks, so the receiver
//! may query the gate.

use std::sync::Arc;

/// The function that is told that output waits; see
/// [`OutputGate::set_listener`](super::OutputGate::set_listener).
pub type OutputListener = Arc<dyn Fn(OutputEvent) + Send + Sync>;

/// Tells a refused device that it is worth trying again.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

/// What an [`OutputGate`](super::OutputGate) tells its listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputEvent {
    /// Output was added to the current bucket.
    Waiting,
    /// The gate is so full that it slows the guest's output.
    Full,
    /// Something was added to what follows the guest to its next host.
    Arrived,
}

/// The gate is full. The device must keep the output and try again when its port's waker is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the output gate is full")]
pub struct Full;
