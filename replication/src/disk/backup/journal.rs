//! The backup's journal: two files used in turn. While one collects epochs, the other is applied to the images.
//!
//! A file begins with a header ([`RawFileHeader`], 512 bytes with its trailing zeros). Records follow up to its
//! end: [`RawRecordHeader`], and the batches as received, each after its length (4 bytes).
//!
//! The headers say what is on the images, and each record names its predecessor and what was durable before it
//! was written. So a replay (`replay.rs`) applies whole epochs without a gap, whatever a loss of power has left
//! of the files, and notices what no loss of power can explain. What must not be done here: applying anything.

use std::io;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use zerocopy::little_endian::{U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::core::disk::DISK_BATCH_BYTES_MAX;
use crate::disk::DiskError;
use crate::disk::place::{JournalId, Place, RawPlace, START};
use crate::files::{self, HostFile, HostFiles};

pub(crate) const FILE_HEADER_BYTES: u64 = 512;
const RECORD_HEADER_BYTES: u64 = 64;
const RECORD_CRC_AT: usize = offset_of!(RawRecordHeader, crc);
const FILE_MAGIC: &[u8; 8] = b"USTUDYJ2";
/// What all versions' files begin with.
const FAMILY: &[u8] = b"USTUDYJ";
const RECORD_MAGIC: &[u8; 4] = b"UDJR";
/// A look for records behind a damaged one reads so much at once.
const SCAN_BYTES: usize = 1 << 20;

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
    /// Both files of a journal have the same.
    id: U128,
    /// CRC32 of the preceding bytes.
    crc: U32,
    zeros: [u8; 460],
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
    /// Everything up to there was durable, in these files or on the images, when this was written.
    synced: RawPlace,
    /// Number of batches.
    batches: U32,
    /// CRC32 of the journal's id, the preceding bytes and the body. So neither what an earlier
    /// journal has left nor anything that a guest has written passes for a record.
    crc: U32,
}

/// One epoch's writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) previous: Place,
    pub(crate) synced: Place,
    pub(crate) batches: Vec<Bytes>,
}

impl Record {
    /// Its size in a file.
    pub(crate) fn bytes(&self) -> u64 {
        let body: u64 = self.batches.iter().map(|b| 4 + b.len() as u64).sum();
        RECORD_HEADER_BYTES + body
    }

    fn encode_header(&self, id: Option<JournalId>) -> RawRecordHeader {
        let mut header = RawRecordHeader {
            magic: *RECORD_MAGIC,
            length: ((self.bytes() - RECORD_HEADER_BYTES) as u32).into(),
            place: self.place.into(),
            previous: self.previous.into(),
            synced: self.synced.into(),
            batches: (self.batches.len() as u32).into(),
            crc: U32::ZERO,
        };
        let mut crc = record_crc(id);
        crc.update(&header.as_bytes()[..RECORD_CRC_AT]);
        for batch in &self.batches {
            crc.update(&(batch.len() as u32).to_le_bytes());
            crc.update(batch);
        }
        header.crc = crc.finalize().into();
        header
    }

    /// Writes it at `at`. It is durable only after a sync.
    fn write(&self, file: &dyn HostFile, at: u64, id: Option<JournalId>) -> io::Result<()> {
        file.write_at(at, self.encode_header(id).as_bytes())?;
        let mut at = at + RECORD_HEADER_BYTES;
        for batch in &self.batches {
            file.write_at(at, &(batch.len() as u32).to_le_bytes())?;
            file.write_at(at + 4, batch)?;
            at += 4 + batch.len() as u64;
        }
        Ok(())
    }

    /// The record at `at` of a file of `end` bytes. `None` if there is no valid one.
    fn read(
        file: &dyn HostFile,
        at: u64,
        end: u64,
        id: Option<JournalId>,
    ) -> io::Result<Option<Self>> {
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
        let mut crc = record_crc(id);
        crc.update(&bytes[..RECORD_CRC_AT]);
        crc.update(&body);
        if header.crc != crc.finalize() {
            return Ok(None);
        }
        let batches = split(Bytes::from(body), header.batches.get());
        Ok(batches.map(|batches| Self {
            place: header.place.into(),
            previous: header.previous.into(),
            synced: header.synced.into(),
            batches,
        }))
    }
}

fn record_crc(id: Option<JournalId>) -> crc32fast::Hasher {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.map_or(0, |id| id.0).to_le_bytes());
    crc
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

/// What the header of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) id: Option<JournalId>,
    /// The last place on the images.
    pub(super) applied: Place,
}

/// One of the two files.
#[derive(Clone)]
pub(crate) struct JournalFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn HostFile>,
    disks: u32,
    /// The journal it is a file of.
    pub(super) id: Option<JournalId>,
}

/// What a look through a file has found.
pub(super) struct Survey {
    /// Its records up to the first that is invalid or does not follow the one before it, each with
    /// its predecessor.
    pub(super) records: Vec<(Place, Place)>,
    /// Where there is something behind them that is no record that follows.
    pub(super) ends_early_at: Option<u64>,
    /// The latest place that a record of this file, in the row or behind its end, knows as durable.
    pub(super) synced: Place,
}

impl JournalFile {
    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let path = self.path.clone();
        move |source| DiskError::File { path, what, source }
    }

    fn encode(disks: u32, header: FileHeader) -> [u8; FILE_HEADER_BYTES as usize] {
        let mut raw = RawFileHeader {
            magic: *FILE_MAGIC,
            disks: disks.into(),
            zero: U32::ZERO,
            applied: header.applied.into(),
            id: header.id.map_or(0, |id| id.0).into(),
            crc: U32::ZERO,
            zeros: [0; 460],
        };
        let before = offset_of!(RawFileHeader, crc);
        raw.crc = crc32fast::hash(&raw.as_bytes()[..before]).into();
        zerocopy::transmute!(raw)
    }

    /// Opens the file at `path` for the disks with this checksum. Creates it if there is none.
    pub(crate) fn open(
        files: &dyn HostFiles,
        path: PathBuf,
        disks: u32,
    ) -> Result<Self, DiskError> {
        if let Some(file) = Self::open_existing(files, &path, disks)? {
            return Ok(file);
        }
        let fresh = FileHeader {
            id: None,
            applied: START,
        };
        match files::replace(files, &path, &Self::encode(disks, fresh)) {
            Ok(file) => Ok(Self {
                path,
                file: file.into(),
                disks,
                id: None,
            }),
            Err(source) => Err(DiskError::File {
                path,
                what: "create",
                source,
            }),
        }
    }

    /// Opens the file at `path`, if there is one.
    pub(crate) fn open_existing(
        files: &dyn HostFiles,
        path: &Path,
        disks: u32,
    ) -> Result<Option<Self>, DiskError> {
        let opened = files::open_existing(files, path).map_err(|source| DiskError::File {
            path: path.into(),
            what: "open",
            source,
        })?;
        let Some(file) = opened else {
            return Ok(None);
        };
        let mut file = Self {
            path: path.into(),
            file: file.into(),
            disks,
            id: None,
        };
        file.id = file.header()?.and_then(|header| header.id);
        Ok(Some(file))
    }

    /// Its header. `None` if it is damaged or was torn.
    pub(super) fn header(&self) -> Result<Option<FileHeader>, DiskError> {
        let bytes = self.file.bytes().map_err(self.failed("read"))?;
        if bytes < FILE_HEADER_BYTES {
            return Ok(None);
        }
        let mut bytes = [0; FILE_HEADER_BYTES as usize];
        let read = self.file.read_at(0, &mut bytes);
        read.map_err(self.failed("read"))?;
        let raw: RawFileHeader = zerocopy::transmute!(bytes);
        let (disks, header) = (
            raw.disks.get(),
            FileHeader {
                id: JournalId::stored(raw.id.get()),
                applied: raw.applied.into(),
            },
        );
        if raw.magic != *FILE_MAGIC && raw.magic.starts_with(FAMILY) {
            return Err(DiskError::JournalVersion {
                path: self.path.clone(),
            });
        }
        if bytes != Self::encode(disks, header) {
            return Ok(None);
        }
        if disks != self.disks {
            return Err(DiskError::OtherDisks {
                path: self.path.clone(),
            });
        }
        Ok(Some(header))
    }

    /// Makes it an empty file of a new journal.
    pub(crate) fn renew(&mut self, id: JournalId) -> Result<(), DiskError> {
        self.id = Some(id);
        self.empty(START)
    }

    /// Empties the file durably and records up to where the images are. Records up to there must
    /// not be needed any more.
    pub(crate) fn empty(&self, applied: Place) -> Result<(), DiskError> {
        // Header first: if the rest of the file comes back, it is known to be old.
        let id = self.id;
        let header = Self::encode(self.disks, FileHeader { id, applied });
        let written = self.file.write_at(0, &header).and_then(|()| {
            self.file.sync()?;
            self.file.set_bytes(FILE_HEADER_BYTES)?;
            self.file.sync()
        });
        written.map_err(self.failed("empty"))
    }

    /// Makes earlier writes to it survive a loss of power.
    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        self.file.sync().map_err(self.failed("flush"))
    }

    /// Appends a record at `at`.
    pub(crate) fn append(&self, record: &Record, at: u64) -> Result<(), DiskError> {
        let written = record.write(&*self.file, at, self.id);
        written.map_err(self.failed("write"))
    }

    /// Calls `each` for every valid record, up to the first that is invalid or does not follow the
    /// one before it. Returns the last place, and where the valid bytes end.
    pub(crate) fn walk(
        &self,
        mut each: impl FnMut(&Record) -> Result<(), DiskError>,
    ) -> Result<(Option<Place>, u64), DiskError> {
        let end = self.file.bytes().map_err(self.failed("read"))?;
        let (mut last, mut at) = (None, FILE_HEADER_BYTES);
        while let Some(record) =
            Record::read(&*self.file, at, end, self.id).map_err(self.failed("read"))?
        {
            if last.is_some_and(|last| record.previous != last) {
                break;
            }
            each(&record)?;
            at += record.bytes();
            last = Some(record.place);
        }
        Ok((last, at))
    }

    /// Looks through the whole file, also behind a damaged record.
    pub(super) fn survey(&self) -> Result<Survey, DiskError> {
        let (mut records, mut synced) = (Vec::new(), START);
        let (_, valid_end) = self.walk(|record| {
            records.push((record.place, record.previous));
            synced = synced.max(record.synced);
            Ok(())
        })?;
        let end = self.file.bytes().map_err(self.failed("read"))?;
        let ends_early_at = (end > valid_end).then_some(valid_end);
        if ends_early_at.is_some() {
            let behind = self.scan(valid_end, end).map_err(self.failed("read"))?;
            synced = synced.max(behind);
        }
        Ok(Survey {
            records,
            ends_early_at,
            synced,
        })
    }

    /// The latest place that any valid record in `at..end` knows as durable.
    fn scan(&self, mut at: u64, end: u64) -> io::Result<Place> {
        let mut synced = START;
        let mut piece = vec![0; SCAN_BYTES];
        while end.saturating_sub(at) >= RECORD_HEADER_BYTES {
            let piece = &mut piece[..SCAN_BYTES.min((end - at) as usize)];
            self.file.read_at(at, piece)?;
            let starts = piece.windows(RECORD_MAGIC.len()).enumerate();
            for (start, _) in starts.filter(|(_, bytes)| bytes == RECORD_MAGIC) {
                if let Some(record) = Record::read(&*self.file, at + start as u64, end, self.id)? {
                    synced = synced.max(record.synced);
                }
            }
            // A magic may lie across the end of the piece.
            at += (piece.len() - (RECORD_MAGIC.len() - 1)) as u64;
        }
        Ok(synced)
    }
}
