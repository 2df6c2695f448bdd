//! Turns disk writes into batches and back: the body of a `SyncDisk` or `EpochDisk` message, and of
//! a journal's record.
//!
//! All numbers are little-endian. Nothing is aligned.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | number of records, at least 1 |
//! | 4 | … | records, one after the other, to the end of the batch |
//!
//! A record:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | what: 0 data as they are, 1 zeros, 2 discard, 3 check |
//! | 1 | 1 | 0 |
//! | 2 | 2 | number of the disk |
//! | 4 | 8 | offset on the disk, a multiple of 512 |
//! | 12 | 8 | length, a multiple of 512, not 0 |
//! | 20 | … | the data, if what is 0; a digest of 16 bytes, if what is 3 |
//!
//! A check has at most [`CHECK_BYTES_MAX`], and all checks of a batch together at most
//! [`CHECKED_BYTES_MAX`]: they are the only records that are dearer to obey than to send.
//!
//! Must not be done here: allocating as much as a number in a batch says. Decoded data share the
//! batch's memory.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{DIGEST_BYTES, Digest, DiskWrite, SECTOR_BYTES, What};

/// Default limit on the body of a batch, in bytes.
pub const DISK_BATCH_BYTES_DEFAULT: usize = 256 << 10;
/// Largest body of a batch, in bytes.
pub const DISK_BATCH_BYTES_MAX: usize = 1 << 20;
/// Largest range that a check covers, in bytes.
pub const CHECK_BYTES_MAX: u64 = 1 << 20;
/// Most that the checks of one batch cover together, in bytes.
pub const CHECKED_BYTES_MAX: u64 = 64 << 20;

const BATCH_HEADER_BYTES: usize = 4;
const RECORD_HEADER_BYTES: usize = 20;
const KIND_DATA: u8 = 0;
const KIND_ZERO: u8 = 1;
const KIND_DISCARD: u8 = 2;
const KIND_CHECK: u8 = 3;

/// Why a batch cannot be decoded. Offsets are bytes from the batch's beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskBatchError {
    /// It announces no record, or is too short to announce one.
    #[error("disk batch of {bytes} bytes holds no write")]
    Empty {
        /// Length of the batch.
        bytes: usize,
    },
    /// It is longer than a batch may be.
    #[error("disk batch of {bytes} bytes, limit {DISK_BATCH_BYTES_MAX}")]
    TooLong {
        /// Length of the batch.
        bytes: usize,
    },
    /// It ends within a record.
    #[error(
        "disk batch ends at offset {offset}, {missing} bytes short of its record number {record}"
    )]
    Truncated {
        /// Number of the record, from 0.
        record: u32,
        /// Length of the batch.
        offset: usize,
        /// Bytes missing, as far as can be told.
        missing: u64,
    },
    /// It has more bytes than the announced records.
    #[error("{bytes} bytes left over after the last of {records} disk writes")]
    LeftOver {
        /// Bytes too many.
        bytes: usize,
        /// Records announced.
        records: u32,
    },
    /// A number that names no kind of write.
    #[error("disk write at offset {offset}: unknown kind {kind}")]
    UnknownKind {
        /// Where the record begins.
        offset: usize,
        /// The number.
        kind: u16,
    },
    /// There is no such disk.
    #[error("disk write at offset {offset}: disk {disk}, but there are {disks}")]
    NoDisk {
        /// Where the record begins.
        offset: usize,
        /// Number of the disk.
        disk: u16,
        /// How many there are.
        disks: usize,
    },
    /// A check covers too much, or the checks of the batch do.
    #[error(
        "disk check at offset {offset}: {length} bytes, after {before} in the same batch; the limits are \
         {CHECK_BYTES_MAX} and {CHECKED_BYTES_MAX}"
    )]
    CheckTooLong {
        /// Where the record begins.
        offset: usize,
        /// Length of the range.
        length: u64,
        /// Bytes of earlier checks.
        before: u64,
    },
    /// The range is empty, not of whole sectors, or not on the disk.
    #[error(
        "disk write at offset {offset}: {length} bytes from byte {start} of disk {disk}, which has {disk_bytes}"
    )]
    Range {
        /// Where the record begins.
        offset: usize,
        /// Number of the disk.
        disk: u16,
        /// First byte on the disk.
        start: u64,
        /// Length of the range.
        length: u64,
        /// Size of the disk.
        disk_bytes: u64,
    },
}

/// A finished batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBatch {
    /// The body of a message.
    pub body: Bytes,
    /// Records in it.
    pub writes: u32,
}

/// Turns writes into batches.
#[derive(Debug)]
pub struct DiskBatchWriter {
    body: BytesMut,
    writes: u32,
    /// How much the checks in it cover.
    checked_bytes: u64,
    bytes_max: usize,
}

impl DiskBatchWriter {
    /// A writer of batches of at most `bytes_max` bytes, clamped to the range from one sector to
    /// [`DISK_BATCH_BYTES_MAX`].
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let least = BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + SECTOR_BYTES as usize;
        Self {
            body: BytesMut::new(),
            writes: 0,
            checked_bytes: 0,
            bytes_max: bytes_max.clamp(least, DISK_BATCH_BYTES_MAX),
        }
    }

    /// Appends a write, in pieces if it is longer than a batch. Passes every full batch to `full`.
    pub fn push(&mut self, write: &DiskWrite, mut full: impl FnMut(DiskBatch)) {
        let data = match &write.what {
            What::Data(data) => data,
            What::Zero { bytes } => {
                return self.record(KIND_ZERO, write.disk, write.offset, *bytes, &[], &mut full);
            }
            What::Discard { bytes } => {
                return self.record(
                    KIND_DISCARD,
                    write.disk,
                    write.offset,
                    *bytes,
                    &[],
                    &mut full,
                );
            }
            What::Check { bytes, digest } => {
                if self.checked_bytes + bytes > CHECKED_BYTES_MAX {
                    self.finish().into_iter().for_each(&mut full);
                }
                self.record(
                    KIND_CHECK,
                    write.disk,
                    write.offset,
                    *bytes,
                    digest,
                    &mut full,
                );
                self.checked_bytes += bytes;
                return;
            }
        };
        let (mut rest, mut offset) = (&data[..], write.offset);
        while !rest.is_empty() {
            let room = self.room();
            let piece = if room >= rest.len() {
                rest.len()
            } else if room >= SECTOR_BYTES as usize {
                room - room % SECTOR_BYTES as usize
            } else {
                full(self.finish().expect("a batch without room is not empty"));
                continue;
            };
            let (now, later) = rest.split_at(piece);
            self.record(KIND_DATA, write.disk, offset, piece as u64, now, &mut full);
            rest = later;
            offset += piece as u64;
        }
    }

    /// Ends the batch and begins the next one; `None` if nothing was appended.
    pub fn finish(&mut self) -> Option<DiskBatch> {
        let writes = std::mem::take(&mut self.writes);
        self.checked_bytes = 0;
        if writes == 0 {
            return None;
        }
        self.body[..BATCH_HEADER_BYTES].copy_from_slice(&writes.to_le_bytes());
        Some(DiskBatch {
            body: self.body.split().freeze(),
            writes,
        })
    }

    /// Bytes of data that another record may have; 0 if no record fits.
    fn room(&self) -> usize {
        let used = self.body.len().max(BATCH_HEADER_BYTES) + RECORD_HEADER_BYTES;
        self.bytes_max.saturating_sub(used)
    }

    fn record(
        &mut self,
        kind: u8,
        disk: u16,
        offset: u64,
        bytes: u64,
        data: &[u8],
        full: &mut impl FnMut(DiskBatch),
    ) {
        if self.writes > 0 && self.body.len() + RECORD_HEADER_BYTES + data.len() > self.bytes_max {
            full(self.finish().expect("it was just seen to hold writes"));
        }
        if self.writes == 0 {
            self.body.put_u32_le(0);
        }
        self.writes += 1;
        self.body.put_u8(kind);
        self.body.put_u8(0);
        self.body.put_u16_le(disk);
        self.body.put_u64_le(offset);
        self.body.put_u64_le(bytes);
        self.body.put_slice(data);
    }
}

/// Decodes a batch for disks of these sizes and passes its writes to `each`, in order. Returns how
/// many there are.
///
/// Passes nothing on unless the whole batch is valid. Data share the batch's memory.
///
/// # Errors
/// If it is malformed, or has a write outside its disk.
pub fn decode_batch(
    batch: &Bytes,
    disk_bytes: &[u64],
    mut each: impl FnMut(DiskWrite),
) -> Result<u32, DiskBatchError> {
    let writes = walk(batch, disk_bytes, |_| {})?;
    walk(batch, disk_bytes, &mut each)?;
    Ok(writes)
}

/// Checks that this is a range of whole sectors of a disk. `offset` is where its record begins.
fn check_range(
    offset: usize,
    disk: u16,
    start: u64,
    length: u64,
    disk_bytes: &[u64],
) -> Result<(), DiskBatchError> {
    let Some(&disk_bytes) = disk_bytes.get(usize::from(disk)) else {
        return Err(DiskBatchError::NoDisk {
            offset,
            disk,
            disks: disk_bytes.len(),
        });
    };
    let sectors = start.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
    let inside = start
        .checked_add(length)
        .is_some_and(|end| end <= disk_bytes);
    if sectors && inside && length > 0 {
        return Ok(());
    }
    Err(DiskBatchError::Range {
        offset,
        disk,
        start,
        length,
        disk_bytes,
    })
}

/// Takes a digest off the beginning. The error is how many bytes are missing.
fn split_digest(rest: &mut Bytes) -> Result<Digest, u64> {
    let Some(digest) = rest.first_chunk().copied() else {
        return Err((DIGEST_BYTES - rest.len()) as u64);
    };
    rest.advance(DIGEST_BYTES);
    Ok(digest)
}

fn walk(
    batch: &Bytes,
    disk_bytes: &[u64],
    mut each: impl FnMut(DiskWrite),
) -> Result<u32, DiskBatchError> {
    let bytes = batch.len();
    if bytes > DISK_BATCH_BYTES_MAX {
        return Err(DiskBatchError::TooLong { bytes });
    }
    if bytes < BATCH_HEADER_BYTES {
        return Err(DiskBatchError::Empty { bytes });
    }
    let mut rest = batch.clone();
    let records = rest.get_u32_le();
    let mut checked = 0;
    if records == 0 {
        return Err(DiskBatchError::Empty { bytes });
    }
    for record in 0..records {
        let offset = bytes - rest.len();
        let truncated = |missing: u64| DiskBatchError::Truncated {
            record,
            offset: bytes,
            missing,
        };
        if rest.len() < RECORD_HEADER_BYTES {
            return Err(truncated((RECORD_HEADER_BYTES - rest.len()) as u64));
        }
        // The byte after the kind must be 0; otherwise this is no known kind.
        let kind = rest.get_u16_le();
        let (disk, start, length) = (rest.get_u16_le(), rest.get_u64_le(), rest.get_u64_le());
        check_range(offset, disk, start, length, disk_bytes)?;
        let what = match u8::try_from(kind) {
            Ok(KIND_DATA) => {
                if (rest.len() as u64) < length {
                    return Err(truncated(length - rest.len() as u64));
                }
                What::Data(rest.split_to(length as usize))
            }
            Ok(KIND_ZERO) => What::Zero { bytes: length },
            Ok(KIND_DISCARD) => What::Discard { bytes: length },
            Ok(KIND_CHECK) => {
                let before = checked;
                checked += length;
                if length > CHECK_BYTES_MAX || checked > CHECKED_BYTES_MAX {
                    return Err(DiskBatchError::CheckTooLong {
                        offset,
                        length,
                        before,
                    });
                }
                let digest = split_digest(&mut rest).map_err(truncated)?;
                What::Check {
                    bytes: length,
                    digest,
                }
            }
            _ => return Err(DiskBatchError::UnknownKind { offset, kind }),
        };
        each(DiskWrite {
            disk,
            offset: start,
            what,
        });
    }
    if !rest.is_empty() {
        return Err(DiskBatchError::LeftOver {
            bytes: rest.len(),
            records,
        });
    }
    Ok(records)
}
