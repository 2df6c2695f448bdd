//! What the guest asks of a disk: taking a chain of descriptors apart (VIRTIO 1.2, section 5.2.6).
//!
//! Nothing that arrives here can be trusted: the guest wrote it. A chain becomes a [`Request`] with its parts bounded and its positions
//! within the disk, or a refusal; nothing is allocated by a length that the guest chose. What must not be
//! done here: input or output.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::SECTOR_BYTES;
use crate::devices::virtio::Descriptors;
use crate::memory::GuestRam;

/// Descriptors in the queue: header, status and twice the segments of a request fit.
pub(super) const QUEUE_SIZE: u16 = 128;
/// Most data of one request. A driver that keeps to [`SEGMENTS_MAX`] and [`SEGMENT_BYTES_MAX`] stays below.
pub(super) const DATA_BYTES_MAX: usize = SEGMENTS_MAX as usize * SEGMENT_BYTES_MAX as usize;
/// Most pieces of the data of one request.
pub(super) const SEGMENTS_MAX: u32 = 64;
/// Most bytes of each.
pub(super) const SEGMENT_BYTES_MAX: u32 = 16 << 10;
/// Most sectors that one request discards or makes zero (8 MiB): what a host that has to write the zeros
/// does in a bearable time.
pub(super) const RANGE_SECTORS_MAX: u32 = 16 << 10;
/// Length of the answer to `GET_ID`.
pub(super) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// `struct virtio_blk_req` up to its data: type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;

/// A status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A chain that has no place even for a status.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A request, with where its status goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) status_at: GuestAddress,
    /// What to do, or the status to answer at once.
    pub(super) kind: Result<RequestKind, Status>,
}

/// What to do. Positions are in bytes and within the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Read {
        offset: u64,
        into: Segments,
    },
    Write {
        offset: u64,
        from: Segments,
    },
    Flush,
    Identify {
        into: Segments,
    },
    Discard {
        offset: u64,
        bytes: u64,
    },
    WriteZeroes {
        offset: u64,
        bytes: u64,
        may_unmap: bool,
    },
}

/// The limits of the disk that requests must keep to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) capacity_sectors: u64,
    pub(super) read_only: bool,
}

/// Pieces of guest memory, one after the other: no more than a queue has descriptors.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Segments(Vec<(GuestAddress, u32)>);

impl Segments {
    /// All bytes together; at most 2^32 times the descriptors of a queue.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    fn is_in(&self, memory: &GuestRam) -> bool {
        let mut pieces = self.0.iter();
        pieces.all(|(at, len)| memory.check_range(*at, *len as usize))
    }

    /// Takes `bytes` off the front.
    fn split_front(&mut self, bytes: usize) -> Option<Self> {
        let mut front = Self::default();
        let mut missing = u32::try_from(bytes).ok()?;
        let mut rest = Vec::with_capacity(self.0.len());
        for &(at, len) in &self.0 {
            let taken = len.min(missing);
            missing -= taken;
            if taken > 0 {
                front.0.push((at, taken));
            }
            if taken < len {
                rest.push((
                    at.0.checked_add(taken.into()).map(GuestAddress)?,
                    len - taken,
                ));
            }
        }
        self.0 = rest;
        (missing == 0).then_some(front)
    }

    /// Takes the last byte off, and says where it is.
    fn split_last_byte(&mut self) -> Option<GuestAddress> {
        while let Some((at, len)) = self.0.pop() {
            let Some(before) = len.checked_sub(1) else {
                continue;
            };
            if before > 0 {
                self.0.push((at, before));
            }
            return at.0.checked_add(before.into()).map(GuestAddress);
        }
        None
    }

    /// Copies all bytes out of guest memory into `data`, which has their length.
    pub(super) fn gather(&self, memory: &GuestRam, data: &mut [u8]) -> Option<()> {
        let mut rest = data;
        for (at, len) in &self.0 {
            let (piece, after) = rest.split_at_mut_checked(*len as usize)?;
            memory.read_slice(piece, *at).ok()?;
            rest = after;
        }
        rest.is_empty().then_some(())
    }

    /// Copies `data`, as long as they are or shorter, into guest memory.
    pub(super) fn scatter(&self, memory: &GuestRam, data: &[u8]) -> Option<()> {
        let mut rest = data;
        for (at, len) in &self.0 {
            let (piece, after) = rest.split_at(rest.len().min(*len as usize));
            memory.write_slice(piece, *at).ok()?;
            rest = after;
        }
        rest.is_empty().then_some(())
    }
}

impl Request {
    /// Takes a chain apart.
    pub(super) fn parse(
        chain: Descriptors<'_>,
        memory: &GuestRam,
        bounds: Bounds,
    ) -> Result<Self, Malformed> {
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        for descriptor in chain {
            if descriptor.is_write_only() {
                writable.0.push((descriptor.addr(), descriptor.len()));
            } else if writable.0.is_empty() {
                readable.0.push((descriptor.addr(), descriptor.len()));
            } else {
                return Err(Malformed);
            }
        }
        let status_at = writable.split_last_byte().ok_or(Malformed)?;
        if !memory.check_range(status_at, 1) {
            return Err(Malformed);
        }
        let mut header = [0; HEADER_BYTES];
        let front = readable.split_front(HEADER_BYTES).ok_or(Malformed)?;
        front.gather(memory, &mut header).ok_or(Malformed)?;
        if !readable.is_in(memory) || !writable.is_in(memory) {
            return Err(Malformed);
        }
        let kind = RequestKind::parse(header, readable, writable, memory, bounds);
        Ok(Self { status_at, kind })
    }
}

impl RequestKind {
    fn parse(
        header: [u8; HEADER_BYTES],
        readable: Segments,
        writable: Segments,
        memory: &GuestRam,
        bounds: Bounds,
    ) -> Result<Self, Status> {
        let kind = u32_at(&header, 0);
        let sector = u64_at(&header, 8);
        let writes = matches!(
            kind,
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
        );
        if writes && bounds.read_only {
            return Err(Status::IoError);
        }
        match kind {
            VIRTIO_BLK_T_IN => Ok(Self::Read {
                offset: bounds.data(sector, writable.bytes())?,
                into: writable,
            }),
            VIRTIO_BLK_T_OUT => Ok(Self::Write {
                offset: bounds.data(sector, readable.bytes())?,
                from: readable,
            }),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if writable.bytes() == ID_BYTES as u64 => {
                Ok(Self::Identify { into: writable })
            }
            VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                let (offset, bytes, flags) = bounds.range(&readable, memory)?;
                match (kind, flags) {
                    (VIRTIO_BLK_T_DISCARD, 0) => Ok(Self::Discard { offset, bytes }),
                    (VIRTIO_BLK_T_WRITE_ZEROES, 0 | VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => {
                        Ok(Self::WriteZeroes {
                            offset,
                            bytes,
                            may_unmap: flags == VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
                        })
                    }
                    // Section 5.2.6.2: unknown flags, and unmap with a discard, are unsupported.
                    _ => Err(Status::Unsupported),
                }
            }
            _ => Err(Status::Unsupported),
        }
    }
}

impl Bounds {
    /// Where the data of a read or write begin.
    fn data(self, sector: u64, bytes: u64) -> Result<u64, Status> {
        let whole = bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES);
        if !whole || bytes > DATA_BYTES_MAX as u64 {
            return Err(Status::IoError);
        }
        self.within(sector, bytes / SECTOR_BYTES)
    }

    fn within(self, sector: u64, sectors: u64) -> Result<u64, Status> {
        match sector.checked_add(sectors) {
            // The capacity in bytes fits: it is that of a file.
            Some(end) if end <= self.capacity_sectors => Ok(sector * SECTOR_BYTES),
            _ => Err(Status::IoError),
        }
    }

    /// The one range of a discard or write-zeroes request: offset, bytes, flags.
    fn range(self, data: &Segments, memory: &GuestRam) -> Result<(u64, u64, u32), Status> {
        let mut range = [0; RANGE_BYTES];
        // As many ranges as one request may have is told in configuration space: one.
        if data.bytes() != RANGE_BYTES as u64 {
            return Err(Status::IoError);
        }
        data.gather(memory, &mut range).ok_or(Status::IoError)?;
        let (sector, sectors) = (u64_at(&range, 0), u32_at(&range, 8));
        if sectors == 0 || sectors > RANGE_SECTORS_MAX {
            return Err(Status::IoError);
        }
        let offset = self.within(sector, sectors.into())?;
        Ok((
            offset,
            u64::from(sectors) * SECTOR_BYTES,
            u32_at(&range, 12),
        ))
    }
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}
