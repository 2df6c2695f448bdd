//! How much output may wait at the gate (R5).

use bytes::Bytes;

/// What a held frame counts in addition to its bytes: about what the gate itself needs to keep one.
pub const FRAME_OVERHEAD_BYTES: usize = 128;

/// Limits of an [`OutputGate`](super::OutputGate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// Network output held, for all devices together, plus [`FRAME_OVERHEAD_BYTES`] for each frame.
    pub held_bytes_max: usize,
    /// How much of an epoch's network output is copied into
    /// [`SealedOutput`](super::SealedOutput), counted in the same way; at most 896 KiB.
    pub repeat_bytes_max: usize,
    /// Console output that is held or not yet written, for each console; at most 3 MiB for all of
    /// them together.
    pub console_bytes_max: usize,
}

/// An epoch's output travels in one message of at most 4 MiB. This much of it is for frames, with
/// what they count,
pub(super) const REPEAT_BYTES_MAX: usize = 896 << 10;
/// and this much for the bytes of all consoles.
const CONSOLES_BYTES_MAX: usize = 3 << 20;

impl GateLimits {
    pub(super) fn repeat_bytes(&self) -> usize {
        self.repeat_bytes_max.min(REPEAT_BYTES_MAX)
    }

    /// The limit of one of this many consoles.
    pub(super) fn console_bytes(&self, consoles: usize) -> usize {
        self.console_bytes_max
            .min(CONSOLES_BYTES_MAX / consoles.max(1))
    }
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
