//! Counts what passes the gate.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::GateCounters;

#[derive(Default)]
pub(super) struct Counters {
    held: Frames,
    sent: Frames,
    dropped: Frames,
    frames_repeated: AtomicU64,
    refusals: AtomicU64,
}

#[derive(Default)]
struct Frames {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Frames {
    fn add(&self, frame: &Bytes) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn held(&self, frame: &Bytes) {
        self.held.add(frame);
    }

    pub(super) fn sent(&self, frame: &Bytes) {
        self.sent.add(frame);
    }

    pub(super) fn dropped(&self, frame: &Bytes) {
        self.dropped.add(frame);
    }

    pub(super) fn repeated(&self) {
        self.frames_repeated.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self, waiting_bytes: u64) -> GateCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GateCounters {
            frames_held: get(&self.held.frames),
            bytes_held: get(&self.held.bytes),
            frames_sent: get(&self.sent.frames),
            bytes_sent: get(&self.sent.bytes),
            frames_dropped: get(&self.dropped.frames),
            bytes_dropped: get(&self.dropped.bytes),
            frames_repeated: get(&self.frames_repeated),
            refusals: get(&self.refusals),
            waiting_bytes,
        }
    }
}
