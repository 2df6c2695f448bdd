//! The frame: a fixed header of 48 bytes, then the body.
//!
//! Only this file knows the header's bytes. It does no I/O and keeps no state;
//! [`FrameDecoder`](crate::FrameDecoder) splits a stream into frames. Every change of a byte here
//! needs a new [`PROTOCOL_VERSION`]. But magic and version stay the first six bytes forever, so
//! that peers of different versions can detect that.

use std::mem::offset_of;

use bytes::Bytes;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::LinkError;

/// The first four bytes of every frame, `USTY`, as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"USTY");

/// Version of the framing and of all messages in it. Both peers must have the same.
pub const PROTOCOL_VERSION: u16 = 10;

/// Size of the frame header in bytes.
pub const HEADER_BYTES: usize = 48;

/// Bytes of the header that hold magic and version, in every version.
const PREFIX_BYTES: usize = 6;

/// Default limit on the size of a frame's body in bytes.
pub const MAX_BODY_BYTES: u32 = 4 << 20;

/// What a link accepts. Both sides should be configured alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest body of a frame in bytes, in both directions.
    pub body_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: MAX_BODY_BYTES,
        }
    }
}

/// One message on a link. The caller defines what `kind`, `generation`, `epoch` and `body` mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// What kind of message the body is.
    pub kind: u16,
    /// The sender's generation.
    pub generation: u64,
    /// The epoch the message belongs to, 0 if none.
    pub epoch: u64,
    /// The message.
    pub body: Bytes,
}

impl Frame {
    /// Size on the wire in bytes, header included.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// The header of this frame when it is the `sequence`-th of its direction, counted from 0.
    ///
    /// # Errors
    /// [`LinkError::OversizeSend`] if the body is over the limit.
    pub fn encode_header(
        &self,
        sequence: u64,
        limits: Limits,
    ) -> Result<[u8; HEADER_BYTES], LinkError> {
        let body_len = u32::try_from(self.body.len())
            .ok()
            .filter(|len| *len <= limits.body_bytes_max)
            .ok_or(LinkError::OversizeSend {
                len: self.body.len(),
                limit: limits.body_bytes_max,
            })?;
        let mut header = Header {
            magic: MAGIC.into(),
            version: PROTOCOL_VERSION.into(),
            kind: self.kind.into(),
            generation: self.generation.into(),
            epoch: self.epoch.into(),
            sequence: sequence.into(),
            body_len: body_len.into(),
            body_crc: crc32fast::hash(&self.body).into(),
            reserved: U32::ZERO,
            header_crc: U32::ZERO,
        };
        header.header_crc = header.checksum().into();
        Ok(zerocopy::transmute!(header))
    }
}

/// The header as it is on the wire, little endian. `docs/PROTOCOL.md` has the same table. The
/// derived traits reject a layout with padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: U32,
    pub(crate) version: U16,
    pub(crate) kind: U16,
    pub(crate) generation: U64,
    pub(crate) epoch: U64,
    pub(crate) sequence: U64,
    pub(crate) body_len: U32,
    pub(crate) body_crc: U32,
    pub(crate) reserved: U32,
    /// CRC32 of the header up to here.
    pub(crate) header_crc: U32,
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_BYTES);
    assert!(offset_of!(Header, kind) == PREFIX_BYTES);
};

impl Header {
    /// CRC32 of everything before `header_crc`.
    pub(crate) fn checksum(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..offset_of!(Self, header_crc)])
    }

    /// Checks as much of magic and version as `bytes` holds. Separate from [`Self::decode`],
    /// because a peer of another version may have a shorter header and then wait for an answer.
    pub(crate) fn check_prefix(bytes: &[u8]) -> Result<(), LinkError> {
        if let Some(magic) = bytes.first_chunk() {
            let got = u32::from_le_bytes(*magic);
            if got != MAGIC {
                return Err(LinkError::BadMagic {
                    got,
                    expected: MAGIC,
                });
            }
        }
        if bytes.len() >= PREFIX_BYTES {
            let theirs = u16::from_le_bytes([bytes[4], bytes[5]]);
            if theirs != PROTOCOL_VERSION {
                return Err(LinkError::Version {
                    ours: PROTOCOL_VERSION,
                    theirs,
                });
            }
        }
        Ok(())
    }

    /// Reads and checks a header. `sequence` is the expected number.
    pub(crate) fn decode(
        bytes: &[u8; HEADER_BYTES],
        sequence: u64,
        limits: Limits,
    ) -> Result<Self, LinkError> {
        Self::check_prefix(bytes)?;
        let header: Self = zerocopy::transmute!(*bytes);
        let crc = header.checksum();
        if header.header_crc != crc {
            return Err(LinkError::HeaderChecksum {
                sequence,
                got: crc,
                expected: header.header_crc.get(),
            });
        }
        if header.sequence != sequence {
            return Err(LinkError::Sequence {
                expected: sequence,
                got: header.sequence.get(),
            });
        }
        if header.reserved != 0 {
            return Err(LinkError::Reserved {
                sequence,
                got: header.reserved.get(),
            });
        }
        if header.body_len > limits.body_bytes_max {
            return Err(LinkError::TooLarge {
                sequence,
                len: header.body_len.get(),
                limit: limits.body_bytes_max,
            });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by hand from `docs/PROTOCOL.md` with another CRC32. If this test must change, so must
    /// [`PROTOCOL_VERSION`].
    #[test]
    fn header_has_its_golden_bytes() {
        let frame = Frame {
            kind: 0x0102,
            generation: 0x1112_1314_1516_1718,
            epoch: 0x2122_2324_2526_2728,
            body: Bytes::from_static(b"dirty pages"),
        };
        #[rustfmt::skip]
        let golden: [u8; HEADER_BYTES] = [
            0x55, 0x53, 0x54, 0x59, 0x0a, 0x00, 0x02, 0x01,
            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x0b, 0x00, 0x00, 0x00, 0x73, 0x8d, 0x3d, 0xc8,
            0x00, 0x00, 0x00, 0x00, 0xcd, 0x7e, 0x2f, 0x32,
        ];
        let header = frame.encode_header(0, Limits::default()).unwrap();
        assert_eq!(header, golden);
        let parsed = Header::decode(&golden, 0, Limits::default()).unwrap();
        assert_eq!(
            (
                parsed.kind.get(),
                parsed.generation.get(),
                parsed.epoch.get(),
                parsed.body_len.get()
            ),
            (frame.kind, frame.generation, frame.epoch, 11)
        );
    }

    #[test]
    fn oversize_body_is_refused_with_both_numbers() {
        let frame = Frame {
            body: Bytes::from_static(&[0; 101]),
            ..Frame::default()
        };
        let limits = Limits {
            body_bytes_max: 100,
        };
        let error = frame.encode_header(0, limits).unwrap_err();
        assert!(matches!(
            error,
            LinkError::OversizeSend {
                len: 101,
                limit: 100
            }
        ));
        assert!(!error.is_protocol() && !error.is_peer_gone());
    }
}
