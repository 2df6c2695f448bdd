//! How marks of a map cost the guest little, by what a flush of the map takes.
//!
//! What must not be done here: marking anything.

use std::time::Duration;

/// At most so much is marked around a block where flushes are slow.
const REACH_BYTES_MAX: u64 = 16 << 20;
/// What a resynchronisation copies in a second, roughly: what is marked needlessly costs that much time.
const COPY_BYTES_PER_S: u64 = 125_000_000;
/// Marks are kept for so many times what a flush takes.
const KEPT_FLUSHES: u32 = 100;

/// A flush counts for no more than this: the clock may have been set.
const FLUSH_NS_MAX: u64 = 1_000_000_000;

/// What a flush takes, of late.
#[derive(Debug, Default)]
pub(super) struct Thrift {
    flush_ns: u64,
}

impl Thrift {
    /// A flush took so long.
    pub(super) fn flushed(&mut self, took_ns: u64) {
        self.flush_ns = self.flush_ns.midpoint(took_ns.min(FLUSH_NS_MAX));
    }

    /// How many blocks are marked at once, at least: what is copied in the time of a flush.
    pub(super) fn reach(&self, block_bytes: u64) -> u64 {
        let in_time = self.flush_ns.saturating_mul(COPY_BYTES_PER_S) / 1_000_000_000;
        (in_time.min(REACH_BYTES_MAX) / block_bytes).max(1)
    }

    /// How long marks are kept, at least.
    pub(super) fn kept(&self) -> Duration {
        Duration::from_nanos(self.flush_ns) * KEPT_FLUSHES
    }
}
