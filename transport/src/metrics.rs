//! Plain counters of a link. The embedding program chooses names and export formats.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Traffic of one link so far, or of several together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkMetrics {
    /// Bytes read from the stream.
    pub bytes_in: u64,
    /// Bytes that the stream has taken.
    pub bytes_out: u64,
    /// Whole frames received.
    pub frames_in: u64,
    /// Whole frames that the stream has taken.
    pub frames_out: u64,
}

impl Add for LinkMetrics {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
            frames_in: self.frames_in + other.frames_in,
            frames_out: self.frames_out + other.frames_out,
        }
    }
}

/// The counters behind [`LinkMetrics`], shared by both halves of a link. Each counter is exact, but
/// a snapshot is not taken at one instant.
#[derive(Debug, Default)]
pub struct LinkCounters {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    frames_in: AtomicU64,
    frames_out: AtomicU64,
}

impl LinkCounters {
    /// The values now.
    #[must_use]
    pub fn snapshot(&self) -> LinkMetrics {
        LinkMetrics {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            frames_in: self.frames_in.load(Ordering::Relaxed),
            frames_out: self.frames_out.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn count_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_frame_in(&self) {
        self.frames_in.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_frame_out(&self) {
        self.frames_out.fetch_add(1, Ordering::Relaxed);
    }
}
