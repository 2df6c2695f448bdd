//! The header of a map's file: what the image is, beside its blocks.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | `USTUDYMP` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | flags: bit 0 unfinished copy |
//! | 16 | 8 | number of this header; the greater one counts |
//! | 24 | 8 | size of the disk in bytes |
//! | 32 | 8 | size of a block in bytes |
//! | 40 | 16 | id of the pair the image belongs to, 0 for none |
//! | 56 | 16 | id of the pair it may come to belong to, 0 for none |
//! | 72 | 436 | 0 |
//! | 508 | 4 | CRC32 of the bytes before |
//!
//! It stands twice, at bytes 0 and 4096, written in turn: a torn one leaves the one before it.

use crate::core::disk::{PairId, block_bytes_for};

pub(crate) const HEADER_BYTES: usize = 512;
/// Where the two headers begin.
pub(crate) const SLOTS: [u64; 2] = [0, 4096];
/// Where the bits begin.
pub(crate) const BITS_AT: u64 = 8192;

const MAGIC: &[u8; 8] = b"USTUDYMP";
const VERSION: u32 = 1;
const UNFINISHED: u32 = 1;

/// What a map says of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) block_bytes: u64,
    pub(crate) unfinished: bool,
    pub(crate) current: Option<PairId>,
    pub(crate) candidate: Option<PairId>,
}

impl Header {
    /// Of an image that belongs to no pair.
    pub(crate) fn new(disk_bytes: u64) -> Self {
        Self {
            number: 0,
            disk_bytes,
            block_bytes: block_bytes_for(disk_bytes),
            unfinished: false,
            current: None,
            candidate: None,
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let id = |id: Option<PairId>| id.map_or(0, |id| id.0).to_le_bytes();
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let flags = if self.unfinished { UNFINISHED } else { 0 };
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.disk_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.block_bytes.to_le_bytes());
        bytes[40..56].copy_from_slice(&id(self.current));
        bytes[56..72].copy_from_slice(&id(self.candidate));
        let crc = crc32fast::hash(&bytes[..508]);
        bytes[508..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if it is not a header of this version in every byte.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let id_at = |at: usize| Some(u128::from_le_bytes(bytes[at..at + 16].try_into().ok()?));
        let id = |id: u128| (id != 0).then_some(PairId(id));
        let flags = u32_at(12)?;
        let good = &bytes[..8] == MAGIC
            && u32_at(8)? == VERSION
            && flags & !UNFINISHED == 0
            && bytes[72..508].iter().all(|byte| *byte == 0)
            && u32_at(508)? == crc32fast::hash(&bytes[..508]);
        let header = Self {
            number: u64_at(16)?,
            disk_bytes: u64_at(24)?,
            block_bytes: u64_at(32)?,
            unfinished: flags & UNFINISHED != 0,
            current: id(id_at(40)?),
            candidate: id(id_at(56)?),
        };
        let sane = header.disk_bytes > 0 && header.block_bytes.is_power_of_two();
        (good && sane).then_some(header)
    }
}
