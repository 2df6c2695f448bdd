//! The header of a map's file. It describes the image as a whole. [`Raw`] has its bytes.
//!
//! The file has two headers, at bytes 0 and 4096. A new one is first made durable in the place of one of them
//! and then written to the other, too. So if one is torn, the previous one is left, and if one is damaged
//! later, the same one is.

use std::io;
use std::mem::offset_of;

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::arbiter::ArbiterId;
use crate::core::disk::{PairId, block_bytes_for};
use crate::disk::place::{JournalId, Place, RawPlace, START};
use crate::files::HostFile;
use crate::ids::Generation;
use crate::ports::disks::History;

pub(crate) const HEADER_BYTES: usize = 512;
/// Where the two headers begin.
pub(crate) const SLOTS: [u64; 2] = [0, 4096];
/// Where the bits begin.
pub(crate) const BITS_AT: u64 = 8192;

const MAGIC: &[u8; 8] = b"USTUDYMP";
const VERSION: u32 = 2;
/// Longest identity of an image that is kept.
const IDENTITY_BYTES: usize = 128;
const ARBITER_BYTES: usize = History::ARBITER_BYTES;
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
    /// The arbiter of the guest the image belongs to. Text, with zeros to its end; nothing if the image
    /// belongs to no guest.
    arbiter: [u8; ARBITER_BYTES],
    /// The generation in force when that was noted.
    generation: U64,
    zeros: [u8; 204],
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
    /// The guest it belongs to.
    pub(crate) history: Option<History>,
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
            history: None,
        }
    }

    /// The header in each of the two places, if it is valid.
    pub(crate) fn read_slots(file: &dyn HostFile) -> io::Result<[Option<Self>; 2]> {
        let bytes = file.bytes()?;
        let mut found = [None, None];
        for (slot, found) in SLOTS.into_iter().zip(&mut found) {
            let mut raw = [0; HEADER_BYTES];
            if bytes >= slot + HEADER_BYTES as u64 {
                file.read_at(slot, &mut raw)?;
                *found = Self::decode(&raw);
            }
        }
        Ok(found)
    }

    /// The one that counts.
    pub(crate) fn newest(found: [Option<Self>; 2]) -> Option<Self> {
        let valid = found.into_iter().flatten();
        valid.max_by_key(|header| header.number)
    }

    pub(crate) fn read(file: &dyn HostFile) -> io::Result<Option<Self>> {
        Self::read_slots(file).map(Self::newest)
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let id = |id: Option<PairId>| id.map_or(0, |id| id.0).into();
        let arbiter = self.history.as_ref().map_or("", |it| &it.arbiter.0);
        let generation = self.history.as_ref().map_or(0, |it| it.generation.0);
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
            identity: padded(&self.identity),
            arbiter: padded(arbiter),
            generation: generation.into(),
            zeros: [0; 204],
            crc: U32::ZERO,
        };
        raw.crc = raw.sum().into();
        zerocopy::transmute!(raw)
    }

    /// `None` unless every byte is as this version writes it.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        let id = |id: U128| (id != 0).then_some(PairId(id.get()));
        let arbiter = text(&raw.arbiter)?;
        let history = (!arbiter.is_empty()).then(|| History {
            arbiter: ArbiterId(arbiter),
            generation: Generation(raw.generation.get()),
        });
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
            history,
        };
        let sane = header.disk_bytes > 0 && header.block_bytes.is_power_of_two();
        // Only what this version writes is accepted: no other flags, no left-over bytes.
        (sane && header.encode() == *bytes).then_some(header)
    }
}

/// Text, cut if it is too long, with zeros to its end.
fn padded<const BYTES: usize>(text: &str) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let kept = text.len().min(BYTES);
    bytes[..kept].copy_from_slice(&text.as_bytes()[..kept]);
    bytes
}

/// The text up to the first zero.
fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

/// As much of an image's identity as a header keeps.
pub(crate) fn kept_identity(identity: String) -> String {
    cut(identity, IDENTITY_BYTES)
}

/// As much of a history as a header keeps. A longer identity of an arbiter counts by its beginning.
pub(crate) fn kept_history(history: &History) -> History {
    History {
        arbiter: ArbiterId(cut(history.arbiter.0.clone(), ARBITER_BYTES)),
        ..*history
    }
}

fn cut(mut text: String, bytes: usize) -> String {
    let mut kept = text.len().min(bytes);
    while !text.is_char_boundary(kept) {
        kept -= 1;
    }
    text.truncate(kept);
    text
}
