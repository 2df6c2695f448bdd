//! The backup's journal: two files used in turn. While one collects epochs, the other is applied to the images.
//!
//! A file begins with a header ([`RawFileHeader`], 512 bytes with its trailing zeros). Records follow up to its
//! end: [`RawRecordHeader`], and the batches as received, each after its length (4 bytes).
//!
//! The headers say what is on the images, and each record names its predecessor. So a replay applies whole
//! epochs without a gap, whatever a loss of power has left of the files. What must not be done here:
//! applying an epoch that does not follow the one before it.

use std::io;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::core::disk::DISK_BATCH_BYTES_MAX;
use crate::disk::DiskError;
use crate::disk::image::{HostFile, HostFiles};
use crate::ids::{EpochId, Generation};

pub(crate) const FILE_HEADER_BYTES: u64 = 512;
const RECORD_HEADER_BYTES: u64 = 48;
const RECORD_CRC_AT: usize = offset_of!(RawRecordHeader, crc);
const FILE_MAGIC: &[u8; 8] = b"USTUDYJ1";
const RECORD_MAGIC: &[u8; 4] = b"UDJR";

/// The header of a file. Numbers are little-endian.
#[derive(FromBytes, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct RawFileHeader {
    magic: [u8; 8],
    /// CRC32 of the names, sizes and modes of the disks.
    disks: U32,
    zero: U32,
    /// The last record that is on the images durably, or was dropped for good.
    applied: RawPlace,
    /// CRC32 of the preceding bytes.
    crc: U32,
    zeros: [u8; 476],
}

/// The header of a record.
#[derive(FromBytes, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct RawRecordHeader {
    magic: [u8; 4],
    /// Length of the body.
    length: U32,
    place: RawPlace,
    /// The record before this one, even if it is in the other file.
    previous: RawPlace,
    /// Number of batches.
    batches: U32,
    /// CRC32 of the preceding bytes and of the body.
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPlace {
    generation: U64,
    epoch: U64,
}

impl From<Place> for RawPlace {
    fn from((generation, epoch): Place) -> Self {
        Self {
            generation: generation.0.into(),
            epoch: epoch.0.into(),
        }
    }
}

impl From<RawPlace> for Place {
    fn from(raw: RawPlace) -> Self {
        (Generation(raw.generation.get()), EpochId(raw.epoch.get()))
    }
}

/// A record's place in the sequence of all records.
pub(crate) type Place = (Generation, EpochId);

/// The place before the first record.
pub(crate) const START: Place = (Generation(0), EpochId(0));

/// One epoch's writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) previous: Place,
    pub(crate) batches: Vec<Bytes>,
}

impl Record {
    /// Its size in a file.
    pub(crate) fn bytes(&self) -> u64 {
        let body: u64 = self.batches.iter().map(|b| 4 + b.len() as u64).sum();
        RECORD_HEADER_BYTES + body
    }

    fn encode_header(&self) -> RawRecordHeader {
        let mut header = RawRecordHeader {
            magic: *RECORD_MAGIC,
            length: ((self.bytes() - RECORD_HEADER_BYTES) as u32).into(),
            place: self.place.into(),
            previous: self.previous.into(),
            batches: (self.batches.len() as u32).into(),
            crc: U32::ZERO,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header.as_bytes()[..RECORD_CRC_AT]);
        for batch in &self.batches {
            crc.update(&(batch.len() as u32).to_le_bytes());
            crc.update(batch);
        }
        header.crc = crc.finalize().into();
        header
    }

    /// Writes it at `at`. It is durable only after a sync.
    pub(crate) fn write(&self, file: &dyn HostFile, at: u64) -> io::Result<()> {
        file.write_at(at, self.encode_header().as_bytes())?;
        let mut at = at + RECORD_HEADER_BYTES;
        for batch in &self.batches {
            file.write_at(at, &(batch.len() as u32).to_le_bytes())?;
            file.write_at(at + 4, batch)?;
            at += 4 + batch.len() as u64;
        }
        Ok(())
    }

    /// The record at `at` of a file of `end` bytes. `None` if there is no valid one.
    pub(crate) fn read(file: &dyn HostFile, at: u64, end: u64) -> io::Result<Option<Self>> {
        let room = end.saturating_sub(at);
        if room < RECORD_HEADER_BYTES {
            return Ok(None);
        }
        let mut bytes = [0; RECORD_HEADER_BYTES as usize];
        file.read_at(at, &mut bytes)?;
        let header: RawRecordHeader = zerocopy::transmute!(bytes);
        let length = u64::from(header.length);
        if header.magic != *RECORD_MAGIC || length > room - RECORD_HEADER_BYTES {
            return Ok(None);
        }
        // The file has at least this many bytes.
        let mut body = vec![0; length as usize];
        file.read_at(at + RECORD_HEADER_BYTES, &mut body)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..RECORD_CRC_AT]);
        crc.update(&body);
        if header.crc != crc.finalize() {
            return Ok(None);
        }
        let batches = split(Bytes::from(body), header.batches.get());
        Ok(batches.map(|batches| Self {
            place: header.place.into(),
            previous: header.previous.into(),
            batches,
        }))
    }
}

fn split(mut body: Bytes, batches: u32) -> Option<Vec<Bytes>> {
    let mut found = Vec::new();
    while !body.is_empty() {
        let length = body.try_get_u32_le().ok()? as usize;
        if length > body.len() || length > DISK_BATCH_BYTES_MAX {
            return None;
        }
        found.push(body.split_to(length));
    }
    (found.len() as u64 == u64::from(batches)).then_some(found)
}

/// One of the two files.
#[derive(Clone)]
pub(crate) struct JournalFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn HostFile>,
    disks: u32,
}

impl JournalFile {
    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let path = self.path.clone();
        move |source| DiskError::File { path, what, source }
    }

    fn header(disks: u32, applied: Place) -> [u8; FILE_HEADER_BYTES as usize] {
        let mut header = RawFileHeader {
            magic: *FILE_MAGIC,
            disks: disks.into(),
            zero: U32::ZERO,
            applied: applied.into(),
            crc: U32::ZERO,
            zeros: [0; 476],
        };
        let before = offset_of!(RawFileHeader, crc);
        header.crc = crc32fast::hash(&header.as_bytes()[..before]).into();
        zerocopy::transmute!(header)
    }

    /// Opens the file at `path` for the disks with this checksum. Creates it if there is none.
    pub(crate) fn open(
        files: &dyn HostFiles,
        path: PathBuf,
        disks: u32,
    ) -> Result<Self, DiskError> {
        let failed = |what| {
            let path = path.clone();
            move |source| DiskError::File { path, what, source }
        };
        let file = match files.open(&path).map_err(failed("open"))? {
            Some(file) => file,
            None => files
                .create(&path, &Self::header(disks, START))
                .map_err(failed("create"))?,
        };
        Ok(Self {
            path,
            file: file.into(),
            disks,
        })
    }

    /// Opens the file at `path`, if there is one.
    pub(crate) fn open_existing(
        files: &dyn HostFiles,
        path: &Path,
        disks: u32,
    ) -> Result<Option<Self>, DiskError> {
        let opened = files.open(path).map_err(|source| DiskError::File {
            path: path.into(),
            what: "open",
            source,
        })?;
        Ok(opened.map(|file| Self {
            path: path.into(),
            file: file.into(),
            disks,
        }))
    }

    /// The last place on the images according to the header. `None` if the header was torn.
    fn applied(&self) -> Result<Option<Place>, DiskError> {
        let bytes = self.file.bytes().map_err(self.failed("read"))?;
        if bytes < FILE_HEADER_BYTES {
            return Ok(None);
        }
        let mut bytes = [0; FILE_HEADER_BYTES as usize];
        let read = self.file.read_at(0, &mut bytes);
        read.map_err(self.failed("read"))?;
        let header: RawFileHeader = zerocopy::transmute!(bytes);
        let (disks, place) = (header.disks.get(), header.applied.into());
        if bytes != Self::header(disks, place) {
            return Ok(None);
        }
        if disks != self.disks {
            return Err(DiskError::OtherDisks {
                path: self.path.clone(),
            });
        }
        Ok(Some(place))
    }

    /// Empties the file durably and records `applied`. Records up to there must not be needed any
    /// more.
    pub(crate) fn empty(&self, applied: Place) -> Result<(), DiskError> {
        // Header first: if the rest of the file comes back, it is known to be old.
        let header = Self::header(self.disks, applied);
        let written = self.file.write_at(0, &header).and_then(|()| {
            self.file.sync()?;
            self.file.set_bytes(FILE_HEADER_BYTES)
        });
        written.map_err(self.failed("empty"))
    }

    /// Makes earlier writes to it survive a loss of power.
    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        self.file.sync().map_err(self.failed("flush"))
    }

    /// Appends a record at `at`.
    pub(crate) fn append(&self, record: &Record, at: u64) -> Result<(), DiskError> {
        let written = record.write(&*self.file, at);
        written.map_err(self.failed("write"))
    }

    /// Calls `each` for every valid record, up to the first that is invalid or does not follow the
    /// one before it. Returns the last place, and the number of valid bytes.
    pub(crate) fn walk(
        &self,
        mut each: impl FnMut(&Record) -> Result<(), DiskError>,
    ) -> Result<(Option<Place>, u64), DiskError> {
        let end = self.file.bytes().map_err(self.failed("read"))?;
        let (mut last, mut at) = (None, FILE_HEADER_BYTES);
        while let Some(record) = Record::read(&*self.file, at, end).map_err(self.failed("read"))? {
            if last.is_some_and(|last| record.previous != last) {
                break;
            }
            each(&record)?;
            at += record.bytes();
            last = Some(record.place);
        }
        Ok((last, at))
    }
}

/// Applies the files to the images with `apply`: whole epochs in a row, from what the images have
/// up to `limit`. Then `settle` makes the images durable, and the files are emptied. If it is
/// interrupted at any point, it can safely be repeated.
pub(crate) fn replay(
    files: &[JournalFile],
    limit: EpochId,
    mut apply: impl FnMut(&Record) -> Result<(), DiskError>,
    settle: impl FnOnce() -> Result<(), DiskError>,
) -> Result<Place, DiskError> {
    let (mut at, mut ends, mut order) = (START, START, Vec::new());
    for file in files {
        at = at.max(file.applied()?.unwrap_or(START));
        // An image may only receive what is durable in the journal.
        file.sync()?;
        let mut first = None;
        let (last, _) = file.walk(|record| {
            first.get_or_insert(record.place);
            Ok(())
        })?;
        ends = ends.max(last.unwrap_or(START));
        order.push((first, file));
    }
    ends = ends.max(at);
    order.retain(|(first, _)| first.is_some());
    if order.is_empty() {
        return Ok(at);
    }
    order.sort_by_key(|(first, _)| *first);
    let mut cut = false;
    for (_, file) in order {
        file.walk(|record| {
            if cut || record.place <= at {
                return Ok(());
            }
            cut = record.previous != at || record.place.1 > limit;
            if !cut {
                apply(record)?;
                at = record.place;
            }
            Ok(())
        })?;
    }
    settle()?;
    for file in files {
        file.empty(ends)?;
    }
    Ok(at)
}
