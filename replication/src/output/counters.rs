//! Counts what passes the gate.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What has passed an [`OutputGate`](super::OutputGate) so far, and what waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputCounts {
    /// Network output that is held, or released and not sent yet; counted as for
    /// [`held_bytes_max`](super::GateLimits::held_bytes_max).
    pub held_bytes: u64,
    /// Frames that had to wait.
    pub frames_delayed: u64,
    /// Their bytes.
    pub bytes_delayed: u64,
    /// Frames handed to the network, at once or after a wait.
    pub frames_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Frames lost because the network was full or gone, or the gate was shut.
    pub frames_dropped: u64,
    /// Their bytes.
    pub bytes_dropped: u64,
    /// Frames of a dead primary that are sent again; also counted as sent.
    pub frames_repeated: u64,
    /// How often a device was refused because the gate was full.
    pub refusals: u64,
    /// Bytes of consoles that could not be written, for example to a full file system.
    #[serde(default)]
    pub console_bytes_lost: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) delayed: FrameCounter,
    pub(super) sent: FrameCounter,
    pub(super) dropped: FrameCounter,
    frames_repeated: AtomicU64,
    refusals: AtomicU64,
}

#[derive(Default)]
pub(super) struct FrameCounter {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl FrameCounter {
    pub(super) fn add(&self, frame: &Bytes) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn add_repeated(&self) {
        self.frames_repeated.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_refusal(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self, held_bytes: u64, console_bytes_lost: u64) -> OutputCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OutputCounts {
            held_bytes,
            frames_delayed: get(&self.delayed.frames),
            bytes_delayed: get(&self.delayed.bytes),
            frames_sent: get(&self.sent.frames),
            bytes_sent: get(&self.sent.bytes),
            frames_dropped: get(&self.dropped.frames),
            bytes_dropped: get(&self.dropped.bytes),
            frames_repeated: get(&self.frames_repeated),
            refusals: get(&self.refusals),
            console_bytes_lost,
        }
    }
}
