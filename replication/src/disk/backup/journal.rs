//! The backup's journal: two files used in turn. While one collects epochs, the other is brought to the images.
//!
//! A file begins with a header of 512 bytes, and then has records to its end:
//!
//! | offset | bytes | field of the header |
//! | --- | --- | --- |
//! | 0 | 8 | `USTUDYJ1` |
//! | 8 | 4 | CRC32 of the names and sizes of the disks |
//! | 12 | 4 | 0 |
//! | 16 | 16 | generation and epoch of the last record that is on the images for good |
//! | 32 | 4 | CRC32 of the bytes before |
//!
//! | offset | bytes | field of a record |
//! | --- | --- | --- |
//! | 0 | 4 | `UDJR` |
//! | 4 | 4 | length of the body |
//! | 8 | 16 | generation and epoch |
//! | 24 | 16 | generation and epoch of the record before, also if that is in the other file |
//! | 40 | 4 | number of batches |
//! | 44 | 4 | CRC32 of the bytes before and of the body |
//! | 48 | … | the batches as they were received, each after its length (4 bytes) |
//!
//! What is on the images is known from the headers, and each record names its predecessor: so a replay does
//! whole epochs without a gap, whatever a loss of power has left of the files. What must not be done here:
//! letting an epoch be applied that does not follow.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::core::disk::DISK_BATCH_BYTES_MAX;
use crate::disk::DiskError;
use crate::disk::image::{HostFile, HostFiles};
use crate::ids::{EpochId, Generation};

pub(crate) const FILE_HEADER_BYTES: u64 = 512;
const RECORD_HEADER_BYTES: u64 = 48;
const FILE_MAGIC: &[u8; 8] = b"USTUDYJ1";
const RECORD_MAGIC: &[u8; 4] = b"UDJR";

/// A record's place in the row of all records.
pub(crate) type Place = (Generation, EpochId);

/// Before the first record.
pub(crate) const START: Place = (Generation(0), EpochId(0));

/// One epoch's writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) previous: Place,
    pub(crate) batches: Vec<Bytes>,
}

impl Record {
    /// What it takes in a file.
    pub(crate) fn bytes(&self) -> u64 {
        let body: u64 = self.batches.iter().map(|b| 4 + b.len() as u64).sum();
        RECORD_HEADER_BYTES + body
    }

    fn encode_header(&self) -> BytesMut {
        let mut header = BytesMut::with_capacity(RECORD_HEADER_BYTES as usize);
        header.put_slice(RECORD_MAGIC);
        header.put_u32_le((self.bytes() - RECORD_HEADER_BYTES) as u32);
        for (generation, epoch) in [self.place, self.previous] {
            header.put_u64_le(generation.0);
            header.put_u64_le(epoch.0);
        }
        header.put_u32_le(self.batches.len() as u32);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        for batch in &self.batches {
            crc.update(&(batch.len() as u32).to_le_bytes());
            crc.update(batch);
        }
        header.put_u32_le(crc.finalize());
        header
    }

    /// Appends it at `at`; durable only after a sync.
    pub(crate) fn write(&self, file: &dyn HostFile, at: u64) -> io::Result<()> {
        file.write_at(at, &self.encode_header())?;
        let mut at = at + RECORD_HEADER_BYTES;
        for batch in &self.batches {
            file.write_at(at, &(batch.len() as u32).to_le_bytes())?;
            file.write_at(at + 4, batch)?;
            at += 4 + batch.len() as u64;
        }
        Ok(())
    }

    /// The record at `at` of a file of `end` bytes; `None` if there is no good one.
    pub(crate) fn read(file: &dyn HostFile, at: u64, end: u64) -> io::Result<Option<Self>> {
        let room = end.saturating_sub(at);
        if room < RECORD_HEADER_BYTES {
            return Ok(None);
        }
        let mut header = [0; RECORD_HEADER_BYTES as usize];
        file.read_at(at, &mut header)?;
        let u32_at = |at: usize| u32::from_le_bytes(array(&header[at..at + 4]));
        let place_at = |at: usize| {
            let number = |at: usize| u64::from_le_bytes(array(&header[at..at + 8]));
            (Generation(number(at)), EpochId(number(at + 8)))
        };
        let length = u64::from(u32_at(4));
        if header[..4] != *RECORD_MAGIC || length > room - RECORD_HEADER_BYTES {
            return Ok(None);
        }
        // As many bytes are in the file.
        let mut body = vec![0; length as usize];
        file.read_at(at + RECORD_HEADER_BYTES, &mut body)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[..44]);
        crc.update(&body);
        if crc.finalize() != u32_at(44) {
            return Ok(None);
        }
        let batches = split(Bytes::from(body), u32_at(40));
        Ok(batches.map(|batches| Self {
            place: place_at(8),
            previous: place_at(24),
            batches,
        }))
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

fn split(mut body: Bytes, batches: u32) -> Option<Vec<Bytes>> {
    let mut found = Vec::new();
    while !body.is_empty() {
        if body.len() < 4 {
            return None;
        }
        let length = u32::from_le_bytes(array(&body.split_to(4))) as usize;
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

    fn header(disks: u32, applied: Place) -> BytesMut {
        let mut header = BytesMut::with_capacity(FILE_HEADER_BYTES as usize);
        header.put_slice(FILE_MAGIC);
        header.put_u32_le(disks);
        header.put_u32_le(0);
        header.put_u64_le(applied.0.0);
        header.put_u64_le(applied.1.0);
        header.put_u32_le(crc32fast::hash(&header));
        header.resize(FILE_HEADER_BYTES as usize, 0);
        header
    }

    /// The file at `path` for the disks that have this sum, made if there is none.
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

    /// The file at `path`, if there is one.
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

    /// What its header says to be on the images; `None` if the header was torn.
    fn applied(&self) -> Result<Option<Place>, DiskError> {
        let bytes = self.file.bytes().map_err(self.failed("read"))?;
        if bytes < FILE_HEADER_BYTES {
            return Ok(None);
        }
        let mut header = [0; FILE_HEADER_BYTES as usize];
        let read = self.file.read_at(0, &mut header);
        read.map_err(self.failed("read"))?;
        let number = |at: usize| u64::from_le_bytes(array(&header[at..at + 8]));
        let place = (Generation(number(16)), EpochId(number(24)));
        let disks = u32::from_le_bytes(array(&header[8..12]));
        if header[..] != Self::header(disks, place)[..] {
            return Ok(None);
        }
        if disks != self.disks {
            return Err(DiskError::OtherDisks {
                path: self.path.clone(),
            });
        }
        Ok(Some(place))
    }

    /// Its records are on the images for good, up to `applied`; the file is empty from now on, durably.
    pub(crate) fn empty(&self, applied: Place) -> Result<(), DiskError> {
        // The header first: should the rest of the file come back, it is known to be old.
        let header = Self::header(self.disks, applied);
        let written = self.file.write_at(0, &header).and_then(|()| {
            self.file.sync()?;
            self.file.set_bytes(FILE_HEADER_BYTES)
        });
        written.map_err(self.failed("empty"))
    }

    /// Makes what was written to it survive a loss of power.
    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        self.file.sync().map_err(self.failed("flush"))
    }

    /// Appends a record at `at`.
    pub(crate) fn append(&self, record: &Record, at: u64) -> Result<(), DiskError> {
        let written = record.write(&*self.file, at);
        written.map_err(self.failed("write"))
    }

    /// Gives each good record, up to the first that is not good or does not follow the one before it. The last
    /// place, and how many bytes were good.
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

/// Brings what the files have to the images, by `apply`: whole epochs in a row, from what the images have, up
/// to `limit`. Then `settle` makes the images durable, and the files are emptied. Safe to be done again
/// after it was cut off anywhere.
pub(crate) fn replay(
    files: &[JournalFile],
    limit: EpochId,
    mut apply: impl FnMut(&Record) -> Result<(), DiskError>,
    settle: impl FnOnce() -> Result<(), DiskError>,
) -> Result<Place, DiskError> {
    let (mut at, mut ends, mut order) = (START, START, Vec::new());
    for file in files {
        at = at.max(file.applied()?.unwrap_or(START));
        // An image is touched only when what is being written is durable.
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
