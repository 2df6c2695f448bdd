//! The header of a map's file. It describes the image as a whole. [`Raw`] has its bytes.
//!
//! The file has two headers, at bytes 0 and 4096. A new one is first made durable in the place of one of them
//! and then written to the other, too. So if one is torn, the previous one is left, and if one is damaged
//! later, the same one is.

use std::mem::offset_of;

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::core::disk::{PairId, block_bytes_for};
use crate::disk::place::{JournalId, Place, RawPlace, START};

pub(crate) const HEADER_BYTES: usize = 512;
/// Where the two headers begin.
pub(crate) const SLOTS: [u64; 2] = [0, 4096];
/// Where the bits begin.
pub(crate) const BITS_AT: u64 = 8192;

const MAGIC: &[u8; 8] = b"USTUDYMP";
const VERSION: u32 = 2;
/// Longest identity of an image that is kept.
const IDENTITY_BYTES: usize = 128;
const UNFINISHED: u32 = 1;

/// The header's bytes. Numbers are little-endian.
#[derive(FromBytes, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    /// Bit 0: an unfinished copy. The others are 0.
    flags: U32,
    /// Number of this header. The header with the greater number counts.
    number: U64,
    disk_bytes: U64,
    block_bytes: U64,
    /// The pair the image belongs to; 0 for none.
    current: U128,
    /// The pair it may belong to later; 0 for none.
    candidate: U128,
    /// The journal without which the image must not be used; 0 for none.
    journal: U128,
    /// Where that journal must bring the image at least.
    must_reach: RawPlace,
    /// Which image this is the map of. Text, with zeros to its end.
    identity: [u8; IDENTITY_BYTES],
    zeros: [u8; 276],
    /// CRC32 of the preceding bytes.
    crc: U32,
}

impl Raw {
    fn sum(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..offset_of!(Self, crc)])
    }
}

/// What a map records about its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) block_bytes: u64,
    pub(crate) unfinished: bool,
    pub(crate) current: Option<PairId>,
    pub(crate) candidate: Option<PairId>,
    pub(crate) journal: Option<JournalId>,
    pub(crate) must_reach: Place,
    /// What tells the image from others. Empty if nothing does.
    pub(crate) identity: String,
}

impl Header {
    /// For an image that belongs to no pair.
    pub(crate) fn new(disk_bytes: u64) -> Self {
        Self {
            number: 0,
            disk_bytes,
            block_bytes: block_bytes_for(disk_bytes),
            unfinished: false,
            current: None,
            candidate: None,
            journal: None,
            must_reach: START,
            identity: String::new(),
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let id = |id: Option<PairId>| id.map_or(0, |id| id.0).into();
        let mut identity = [0; IDENTITY_BYTES];
        let kept = self.identity.len().min(IDENTITY_BYTES);
        identity[..kept].copy_from_slice(&self.identity.as_bytes()[..kept]);
        let mut raw = Raw {
            magic: *MAGIC,
            version: VERSION.into(),
            flags: if self.unfinished { UNFINISHED } else { 0 }.into(),
            number: self.number.into(),
            disk_bytes: self.disk_bytes.into(),
            block_bytes: self.block_bytes.into(),
            current: id(self.current),
            candidate: id(self.candidate),
            journal: self.journal.map_or(0, |id| id.0).into(),
            must_reach: self.must_reach.into(),
            identity,
            zeros: [0; 276],
            crc: U32::ZERO,
        };
        raw.crc = raw.sum().into();
        zerocopy::transmute!(raw)
    }

    /// `None` unless every byte is as this version writes it.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        let id = |id: U128| (id != 0).then_some(PairId(id.get()));
        let header = Self {
            number: raw.number.get(),
            disk_bytes: raw.disk_bytes.get(),
            block_bytes: raw.block_bytes.get(),
            unfinished: raw.flags == UNFINISHED,
            current: id(raw.current),
            candidate: id(raw.candidate),
            journal: JournalId::stored(raw.journal.get()),
            must_reach: raw.must_reach.into(),
            identity: text(&raw.identity)?,
        };
        let sane = header.disk_bytes > 0 && header.block_bytes.is_power_of_two();
        // Only what this version writes is accepted: no other flags, no left-over bytes.
        (sane && header.encode() == *bytes).then_some(header)
    }
}

/// The text up to the first zero.
fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

/// As much of an image's identity as a header keeps.
pub(crate) fn kept_identity(mut identity: String) -> String {
    let mut kept = identity.len().min(IDENTITY_BYTES);
    while !identity.is_char_boundary(kept) {
        kept -= 1;
    }
    identity.truncate(kept);
    identity
}
