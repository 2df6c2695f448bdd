//! How much output may wait at the gate (R5).

use bytes::Bytes;

/// What a held frame counts in addition to its bytes, so that many tiny frames are bounded too.
pub const FRAME_OVERHEAD_BYTES: usize = 64;

/// Limits of an [`OutputGate`](super::OutputGate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// Network output held, for all devices together, plus [`FRAME_OVERHEAD_BYTES`] for each frame.
    pub held_bytes_max: usize,
    /// How much of an epoch's network output is copied into
    /// [`SealedOutput`](super::SealedOutput), counted in the same way.
    pub repeat_bytes_max: usize,
    /// Console output that is held or not yet written, for each console.
    pub console_bytes_max: usize,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            held_bytes_max: 64 << 20,
            repeat_bytes_max: 512 << 10,
            console_bytes_max: 1 << 20,
        }
    }
}

/// At or above this the guest is slowed; below it refused devices are woken.
pub(super) fn nearly_full(bytes_max: usize) -> usize {
    bytes_max / 4 * 3
}

/// What a waiting frame counts against the limits.
pub(super) fn cost(frame: &Bytes) -> usize {
    frame.len() + FRAME_OVERHEAD_BYTES
}
