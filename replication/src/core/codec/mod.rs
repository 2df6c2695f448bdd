//! The page codec (step ④ and its inverse in step ⑥): turns pages of guest memory into batches of
//! bytes.
//!
//! The [`Encoder`] knows the backup's version of recently shipped pages. It leaves out a page that
//! has not changed, and sends any other in one of four forms, the smallest that it finds. [`decode`]
//! rebuilds the pages over the backup's committed memory, and needs only that memory and the batch.
//!
//! Must not be done here: deciding when an epoch is whole, and writing memory. The decoder reads a
//! peer's bytes, so it checks every length and allocates nothing.
//!
//! # Format of a batch
//!
//! All numbers are little-endian. Nothing is aligned.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | number of page records, at least 1 |
//! | 4 | … | page records, one after the other, to the end of the batch |
//!
//! A page record:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | how the page is sent, below |
//! | 1 | 7 | page index (guest-physical address / 4096) |
//! | 8 | … | payload |
//!
//! | number | the page is | payload |
//! | --- | --- | --- |
//! | 0 | zero | nothing |
//! | 2 | changed in some of its 512 words of 8 bytes | `u32` CRC32 of the resulting page; `u8` mask of the groups of 64 words that changed, lowest bit first, not 0; for each such group a `u64` bitmap of the changed words, lowest bit first, not 0; then the XOR of each changed word with the base's, not 0, in order |
//! | 3 | compressed | `u16` length, not 0; an LZ4 block of that length that yields 4096 bytes |
//! | 4 | sent as it is | 4096 bytes |
//!
//! The base of 2 is the backup's committed page. The CRC32 (IEEE) proves that both sides use the same
//! base. A difference is an error, never a silently wrong page.
//!
//! A page occurs at most once in an epoch (during initial synchronisation: in a batch). It must lie
//! in the memory layout agreed upon in the handshake.

mod cache;
mod decoder;
mod delta;
mod encoder;

pub use decoder::{PageSink, decode};
pub use encoder::{Batch, BatchWriter, EncodedPage, Encoder};

use crate::ids::PageIndex;

/// Default limit on the body of a batch, in bytes.
pub const BATCH_BYTES_DEFAULT: usize = 256 << 10;
/// Largest body of a batch, in bytes.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Bytes before a batch's first record.
const BATCH_HEADER_BYTES: usize = 4;
/// Bytes of a record before its payload.
const RECORD_HEADER_BYTES: usize = 8;
/// The longest record: a page as it is. (The encoder never sends a longer one.)
const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + crate::ids::PAGE_BYTES;

const KIND_ZERO: u8 = 0;
const KIND_DELTA: u8 = 2;
const KIND_LZ4: u8 = 3;
const KIND_RAW: u8 = 4;

/// What an encoder has encoded so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CodecStats {
    /// Pages sent as zero.
    pub zero_pages: u64,
    /// Pages left out because they have not changed.
    pub unchanged_pages: u64,
    /// Pages sent as their changed words.
    pub delta_pages: u64,
    /// Pages sent compressed.
    pub lz4_pages: u64,
    /// Pages sent raw.
    pub raw_pages: u64,
    /// Bytes of the page records, and of their batches' headers.
    pub encoded_bytes: u64,
}

impl CodecStats {
    /// Pages in all, sent or not.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.zero_pages + self.unchanged_pages + self.delta_pages + self.lz4_pages + self.raw_pages
    }

    fn count(&mut self, kind: u8, record_bytes: usize) {
        match kind {
            KIND_ZERO => self.zero_pages += 1,
            KIND_DELTA => self.delta_pages += 1,
            KIND_LZ4 => self.lz4_pages += 1,
            _ => self.raw_pages += 1,
        }
        self.encoded_bytes += record_bytes as u64;
    }
}

/// Why a batch cannot be decoded. Offsets are bytes from the batch's beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The batch announces no page, or is too short to announce one.
    #[error("batch of {bytes} bytes holds no page")]
    Empty {
        /// Length of the batch.
        bytes: usize,
    },
    /// The batch ends within a record.
    #[error("batch ends at offset {offset}, {missing} bytes short of its record number {record}")]
    Truncated {
        /// Number of the record, from 0.
        record: u32,
        /// Length of the batch.
        offset: usize,
        /// Bytes missing.
        missing: usize,
    },
    /// The batch has more bytes than the announced records.
    #[error("{bytes} bytes left over after the last of {records} records")]
    LeftOver {
        /// Bytes too many.
        bytes: usize,
        /// Records announced.
        records: u32,
    },
    /// A number that names no form of a page.
    #[error("{page} at offset {offset}: unknown encoding {kind}")]
    UnknownKind {
        /// The page.
        page: PageIndex,
        /// Where its record begins.
        offset: usize,
        /// The number.
        kind: u8,
    },
    /// The page is not guest memory.
    #[error("{page} at offset {offset} is not guest memory")]
    NotMemory {
        /// The page.
        page: PageIndex,
        /// Where its record begins.
        offset: usize,
    },
    /// The page occurred before.
    #[error("{page} occurs twice")]
    Duplicate {
        /// The page.
        page: PageIndex,
    },
    /// The payload is not a valid page.
    #[error("{page} at offset {offset}: {what}")]
    Malformed {
        /// The page.
        page: PageIndex,
        /// Where its record begins.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The rebuilt page is not the page that was sent: the sides have different bases.
    #[error("{page}: rebuilt page has checksum {found:#010x}, sent was {expected:#010x}")]
    BaseDiffers {
        /// The page.
        page: PageIndex,
        /// Checksum sent.
        expected: u32,
        /// Checksum of the rebuilt page.
        found: u32,
    },
    /// The base page could not be read.
    #[error("{page}: cannot read its base: {why}")]
    Unreadable {
        /// The page.
        page: PageIndex,
        /// Why.
        why: String,
    },
}

#[cfg(test)]
mod tests;
