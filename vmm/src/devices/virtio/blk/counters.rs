//! What a disk counts. None of it is part of its state.

use serde::{Deserialize, Serialize};

/// What a disk has done since it was built, and what it waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkCounters {
    /// Reads done.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Ranges discarded or made zero.
    pub ranges: u64,
    /// Requests refused: out of bounds, of a wrong length, or of an unknown kind.
    pub refused: u64,
    /// Requests that the host's disk failed.
    pub failures: u64,
    /// Chains of the guest that were no request.
    pub malformed_chains: u64,
    /// Times the guest had to wait because the standby does not have its earlier writes yet.
    pub waits: u64,
    /// Requests that the guest has made and the host's disk has not answered yet.
    pub in_flight: u64,
    /// How long the oldest of them has been waiting.
    pub oldest_wait_ms: u64,
}
