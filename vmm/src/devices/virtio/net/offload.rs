//! Checksum and TCP segmentation offload: what is offered and negotiated, and the header that carries it
//! (VIRTIO 1.2, sections 5.1.3 and 5.1.6).
//!
//! A backend with headers takes and gives frames behind a `struct virtio_net_hdr_v1`, which says what of
//! checksums and segmentation is still to be done. Header and frame stay together on the whole way through
//! gate, epoch and repetition: a frame without its header would be wrong on the wire. What must not be done
//! here: checksums and segments themselves; whoever passes the frame on to real hardware does them.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::backend::{HEADER_BYTES, Receives};

/// Features of a device whose backend has headers.
pub(super) const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// The header of a frame with which nothing is left to do.
pub(super) const PLAIN: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// What a driver has negotiated. Without a driver, nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offload {
    features: u64,
}

/// A header that its sender may not use, or that means nothing for its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadHeader;

/// `struct virtio_net_hdr_v1`, little-endian as on the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: u16_at(2),
            gso_size: u16_at(4),
            csum_start: u16_at(6),
            csum_offset: u16_at(8),
        }
    }

    fn to_bytes(self, buffers: u16) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let words = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            buffers,
        ];
        for (at, word) in words.into_iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl Offload {
    pub(super) fn of(features: u64) -> Self {
        Self { features }
    }

    fn has(self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// What the backend may give to the guest. Segmentation is nothing without checksums, and congestion marks
    /// are nothing without segmentation: a tap would refuse all of it.
    pub(super) fn receives(self) -> Receives {
        let checksums = self.has(VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = checksums && self.has(VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = checksums && self.has(VIRTIO_NET_F_GUEST_TSO6);
        Receives {
            checksums,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && self.has(VIRTIO_NET_F_GUEST_ECN),
        }
    }

    /// The header of a frame that the guest sends, checked and cleaned: what its driver has not negotiated it
    /// may not ask for.
    pub(super) fn sent(
        self,
        header: &[u8; HEADER_BYTES],
        frame: &[u8],
    ) -> Result<[u8; HEADER_BYTES], BadHeader> {
        let mut header = Header::parse(header);
        header.flags &= NEEDS_CSUM;
        let may = Receives {
            checksums: self.has(VIRTIO_NET_F_CSUM),
            tso4: self.has(VIRTIO_NET_F_HOST_TSO4),
            tso6: self.has(VIRTIO_NET_F_HOST_TSO6),
            ecn: self.has(VIRTIO_NET_F_HOST_ECN),
        };
        check(&header, may, frame.len())?;
        // A hint, which may be wrong.
        header.hdr_len = header
            .hdr_len
            .min(u16::try_from(frame.len()).unwrap_or(u16::MAX));
        Ok(header.to_bytes(0))
    }

    /// The header of a frame for the guest. One that says more than the guest understands came before the
    /// backend was told what that is: the frame is lost, as on a network.
    pub(super) fn received(
        self,
        header: &[u8; HEADER_BYTES],
        frame: &[u8],
    ) -> Result<[u8; HEADER_BYTES], BadHeader> {
        let mut header = Header::parse(header);
        let may = self.receives();
        header.flags &= if may.checksums {
            NEEDS_CSUM | DATA_VALID
        } else {
            NEEDS_CSUM
        };
        check(&header, may, frame.len())?;
        // num_buffers, which is 1 when buffers are not merged (section 5.1.6.4.1).
        Ok(header.to_bytes(1))
    }
}

fn check(header: &Header, may: Receives, frame_bytes: usize) -> Result<(), BadHeader> {
    let needs_checksum = header.flags & NEEDS_CSUM != 0;
    let checksum_end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
    if needs_checksum && (!may.checksums || checksum_end > frame_bytes) {
        return Err(BadHeader);
    }
    let allowed = match header.gso_type & !GSO_ECN {
        GSO_NONE => {
            return if header.gso_type == GSO_NONE {
                Ok(())
            } else {
                Err(BadHeader)
            };
        }
        GSO_TCPV4 => may.tso4,
        GSO_TCPV6 => may.tso6,
        _ => false,
    };
    let ecn = header.gso_type & GSO_ECN == 0 || may.ecn;
    // Segments get checksums of their own: without a place for them they cannot be made.
    if allowed && ecn && needs_checksum && header.gso_size > 0 {
        Ok(())
    } else {
        Err(BadHeader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [u8; 1000] = [0; 1000];
    const ALL: Offload = Offload { features: FEATURES };

    fn tso4(flags: u8, gso_type: u8, gso_size: u16, csum_start: u16) -> [u8; HEADER_BYTES] {
        Header {
            flags,
            gso_type,
            hdr_len: 2000,
            gso_size,
            csum_start,
            csum_offset: 16,
        }
        .to_bytes(7)
    }

    #[test]
    fn headers_pass_as_negotiated_and_cleaned() {
        let header = tso4(0xff, 0x81, 1448, 34);
        let sent = ALL.sent(&header, &FRAME).unwrap();
        // The hint is not longer than the frame, only one flag is for sending, and nothing is merged.
        assert_eq!(sent, [1, 0x81, 0xe8, 3, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        let received = ALL.received(&header, &FRAME).unwrap();
        assert_eq!(received, [3, 0x81, 0xd0, 7, 0xa8, 5, 34, 0, 16, 0, 1, 0]);
        let nothing = Offload::default();
        assert_eq!(nothing.sent(&PLAIN, &FRAME), Ok(PLAIN));
        // That a checksum has been verified is of no use to a guest that cannot be told.
        let verified = tso4(2, 0, 0, 0);
        assert_eq!(nothing.received(&verified, &FRAME).unwrap()[0], 0);
    }

    #[test]
    fn what_is_not_negotiated_or_makes_no_sense_is_refused() {
        for (what, header) in [
            ("a checksum behind the end", tso4(1, 0, 0, 983)),
            ("segments without checksums", tso4(0, 1, 1448, 34)),
            ("segments of no size", tso4(1, 1, 0, 34)),
            ("UDP fragments", tso4(1, 3, 1448, 34)),
            ("congestion without segments", tso4(1, 0x80, 1448, 34)),
        ] {
            assert_eq!(ALL.sent(&header, &FRAME), Err(BadHeader), "{what}");
            assert_eq!(ALL.received(&header, &FRAME), Err(BadHeader), "{what}");
        }
        assert!(ALL.sent(&tso4(1, 0, 0, 982), &FRAME).is_ok());
        for (without, header) in [
            (VIRTIO_NET_F_CSUM, tso4(1, 0, 0, 34)),
            (VIRTIO_NET_F_HOST_TSO4, tso4(1, 1, 1448, 34)),
            (VIRTIO_NET_F_HOST_TSO6, tso4(1, 4, 1448, 34)),
            (VIRTIO_NET_F_HOST_ECN, tso4(1, 0x81, 1448, 34)),
            (VIRTIO_NET_F_GUEST_CSUM, tso4(1, 0, 0, 34)),
            (VIRTIO_NET_F_GUEST_TSO4, tso4(1, 1, 1448, 34)),
            (VIRTIO_NET_F_GUEST_TSO6, tso4(1, 4, 1448, 34)),
            (VIRTIO_NET_F_GUEST_ECN, tso4(1, 0x81, 1448, 34)),
        ] {
            let less = Offload::of(FEATURES & !(1 << without));
            let sends = matches!(
                without,
                VIRTIO_NET_F_CSUM
                    | VIRTIO_NET_F_HOST_TSO4
                    | VIRTIO_NET_F_HOST_TSO6
                    | VIRTIO_NET_F_HOST_ECN
            );
            assert_eq!(less.sent(&header, &FRAME).is_ok(), !sends, "{without}");
            assert_eq!(less.received(&header, &FRAME).is_ok(), sends, "{without}");
        }
        let all = ALL.receives();
        assert!(all.checksums && all.tso4 && all.tso6 && all.ecn);
        let alone = Offload::of(1 << VIRTIO_NET_F_GUEST_TSO4);
        assert_eq!(alone.receives(), Receives::default());
        let marks = Offload::of(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_ECN);
        assert!(marks.receives().checksums && !marks.receives().ecn);
    }
}
