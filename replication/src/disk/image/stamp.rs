//! Whether this host alone has changed an image since its map was last in use.
//!
//! While an image is written, its map notes every moment until when that may go on (a *stamp*), and in the end
//! how the image was left. An image that was changed at another time was changed by somebody else. Stamps are
//! made durable from time to time only: after a loss of power, an image may be newer than its stamp by as much.

use std::mem::offset_of;
use std::time::Duration;

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use super::storage::Changed;

/// Where the stamp is in the map's file.
pub(crate) const STAMP_AT: u64 = 1024;
pub(crate) const STAMP_BYTES: usize = 512;

/// How long a process may write before its next stamp.
pub(crate) const LEASE: Duration = Duration::from_millis(100);
/// A write may begin a little later than the lease allows, when the process was stalled.
const STALL: Duration = Duration::from_millis(400);
/// While the image is written, its stamp is made durable at least this often.
pub(crate) const SYNC_EVERY: Duration = Duration::from_secs(60);
/// So much older may a stamp be than its image after a loss of power.
const LOST: Duration = Duration::from_secs(120);

const MAGIC: &[u8; 8] = b"USTUDYST";

/// The stamp's bytes. Numbers are little-endian.
#[derive(FromBytes, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    closed: U32,
    zero: U32,
    until_ns: U64,
    content_ns: U64,
    boot: U128,
    zeros: [u8; 460],
    /// CRC32 of the preceding bytes.
    crc: U32,
}

/// What a map notes of the use of its image. Times are since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Nothing was under way any more.
    pub(crate) closed: bool,
    /// Until when this host could write it.
    pub(crate) until_ns: u64,
    /// When its content was last changed, then.
    pub(crate) content_ns: u64,
    /// Tells one run of the host from another.
    pub(crate) boot: u128,
}

impl Stamp {
    pub(crate) fn encode(&self) -> [u8; STAMP_BYTES] {
        let mut raw = Raw {
            magic: *MAGIC,
            closed: u32::from(self.closed).into(),
            zero: U32::ZERO,
            until_ns: self.until_ns.into(),
            content_ns: self.content_ns.into(),
            boot: self.boot.into(),
            zeros: [0; 460],
            crc: U32::ZERO,
        };
        raw.crc = crc32fast::hash(&raw.as_bytes()[..offset_of!(Raw, crc)]).into();
        zerocopy::transmute!(raw)
    }

    /// `None` unless every byte is as this version writes it.
    pub(crate) fn decode(bytes: &[u8; STAMP_BYTES]) -> Option<Self> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        let stamp = Self {
            closed: raw.closed == 1,
            until_ns: raw.until_ns.get(),
            content_ns: raw.content_ns.get(),
            boot: raw.boot.get(),
        };
        (stamp.encode() == *bytes).then_some(stamp)
    }

    /// Whether an image that was last changed at `is` was changed by this host alone.
    pub(crate) fn explains(&self, is: Changed, boot: u128) -> bool {
        let same_boot = self.boot == boot;
        if self.closed && (same_boot || is.content_ns == self.content_ns) {
            return is.content_ns == self.content_ns;
        }
        let slack = if same_boot { STALL } else { LOST };
        is.anything_ns <= self.until_ns.saturating_add(slack.as_nanos() as u64)
    }
}
