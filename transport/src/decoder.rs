//! Splits a byte stream into frames, without I/O.
//!
//! Bytes come in through [`FrameDecoder::feed`], or without a copy through `read_target`. Whole,
//! checked frames come out of [`FrameDecoder::next_frame`]. A buffer for a body is reserved only
//! after the header has passed its checks. The decoder never skips ahead after an error: there is
//! no resynchronisation.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::LinkError;
use crate::frame::{Frame, HEADER_BYTES, Header, Limits};

/// How much is read at once while no large body is expected.
const READ_BYTES: usize = 256 << 10;

/// If there is less room than this, a new read buffer is made, so that reads are not tiny.
const READ_BYTES_MIN: usize = 4 << 10;

/// Bodies up to this size are copied, so that a small frame that is kept does not keep a whole read
/// buffer alive.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Turns the bytes of one direction of a link into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: Limits,
    buffer: BytesMut,
    /// The header of the frame whose body is being collected in `buffer`.
    header: Option<Header>,
    sequence_next: u64,
}

impl FrameDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            buffer: BytesMut::new(),
            header: None,
            sequence_next: 0,
        }
    }

    /// Changes the limits for headers that are not decoded yet.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Adds bytes that arrived. The decoder keeps them until `next_frame` takes them out, so feed
    /// it no more than one read at a time.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are malformed. Every later call then fails too, because malformed bytes are
    /// never taken out.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, LinkError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                Header::check_prefix(&self.buffer)?;
                let Some(bytes) = self.buffer.first_chunk() else {
                    return Ok(None);
                };
                let header = Header::decode(bytes, self.sequence_next, self.limits)?;
                self.buffer.advance(HEADER_BYTES);
                *self.header.insert(header)
            }
        };
        let len = header.body_len.get() as usize;
        if self.buffer.len() < len {
            return Ok(None);
        }
        let crc = crc32fast::hash(&self.buffer[..len]);
        if header.body_crc != crc {
            return Err(LinkError::BodyChecksum {
                sequence: header.sequence.get(),
                got: crc,
                expected: header.body_crc.get(),
            });
        }
        let body = if len <= COPY_BYTES_MAX {
            let body = Bytes::copy_from_slice(&self.buffer[..len]);
            self.buffer.advance(len);
            body
        } else {
            self.buffer.split_to(len).freeze()
        };
        self.header = None;
        self.sequence_next += 1;
        Ok(Some(Frame {
            kind: header.kind.get(),
            generation: header.generation.get(),
            epoch: header.epoch.get(),
            body,
        }))
    }

    /// What the end of the stream means here: [`LinkError::Closed`] between two frames,
    /// [`LinkError::Truncated`] within one. Only meaningful after `next_frame` has returned `None`.
    #[must_use]
    pub fn end_of_stream(&self) -> LinkError {
        match &self.header {
            Some(header) => LinkError::Truncated {
                got: HEADER_BYTES + self.buffer.len(),
                expected: HEADER_BYTES + header.body_len.get() as usize,
            },
            None if self.buffer.is_empty() => LinkError::Closed,
            None => LinkError::Truncated {
                got: self.buffer.len(),
                expected: HEADER_BYTES,
            },
        }
    }

    /// The buffer to read the next bytes of the stream into, with room for the whole body that is
    /// expected. So only what came along with its header is ever moved, and the body is handed out
    /// where it lies.
    pub(crate) fn read_target(&mut self) -> &mut BytesMut {
        let missing = match &self.header {
            Some(header) => header.body_len.get() as usize - self.buffer.len(),
            None => 0,
        };
        if missing > 0 {
            self.buffer.reserve(missing);
        } else if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            self.buffer.reserve(READ_BYTES);
        }
        &mut self.buffer
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;

    /// Feeds through the zero-copy path what a reader would, `step` bytes at most at a time.
    fn read_in(decoder: &mut FrameDecoder, bytes: &mut &[u8], step: usize) {
        let target = decoder.read_target();
        let room = target.capacity() - target.len();
        let len = step.min(room).min(bytes.len());
        target.extend_from_slice(&bytes[..len]);
        bytes.advance(len);
    }

    #[test]
    fn large_body_is_handed_out_where_it_was_read_to() {
        let frame = Frame {
            body: vec![7; 3 * READ_BYTES].into(),
            ..Frame::default()
        };
        let header = frame.encode_header(0, Limits::default()).unwrap();
        let mut decoder = FrameDecoder::new(Limits::default());
        decoder.feed(&header);
        assert_eq!(decoder.next_frame().unwrap(), None);
        let collected = decoder.read_target().as_ptr();
        read_in(&mut decoder, &mut &frame.body[..], usize::MAX);
        let body = decoder.next_frame().unwrap().unwrap().body;
        assert_eq!(body, frame.body);
        assert_eq!(body.as_ptr(), collected, "the body was copied");
    }

    #[test]
    fn small_body_does_not_hold_the_read_buffer() {
        let frame = Frame {
            body: vec![7; COPY_BYTES_MAX].into(),
            ..Frame::default()
        };
        let header = frame.encode_header(0, Limits::default()).unwrap();
        let mut decoder = FrameDecoder::new(Limits::default());
        read_in(&mut decoder, &mut &header[..], usize::MAX);
        read_in(&mut decoder, &mut &frame.body[..], usize::MAX);
        let buffer = decoder.buffer.as_ptr_range();
        let body = decoder.next_frame().unwrap().unwrap().body;
        assert!(!buffer.contains(&body.as_ptr()));
    }

    proptest! {
        /// Whatever the peer sends, what is reserved stays within a read buffer and a body.
        #[test]
        fn buffer_stays_bounded(
            len in any::<u32>(),
            limit in 0u32..(1 << 20),
            bodies in prop::collection::vec(0usize..100_000, 0..6),
        ) {
            let limits = Limits { body_bytes_max: limit };
            let bound = 2 * (READ_BYTES + limit as usize + HEADER_BYTES);
            let mut decoder = FrameDecoder::new(limits);
            let mut stream = Vec::new();
            let kept = bodies.iter().filter(|len| **len <= limit as usize);
            for (sequence, len) in kept.enumerate() {
                let frame = Frame { body: vec![1; *len].into(), ..Frame::default() };
                stream.extend(frame.encode_header(sequence as u64, limits).unwrap());
                stream.extend(&frame.body);
            }
            let mut bytes = &stream[..];
            let mut sequence = 0;
            while !bytes.is_empty() {
                read_in(&mut decoder, &mut bytes, 60_000);
                prop_assert!(decoder.buffer.capacity() <= bound);
                while decoder.next_frame().unwrap().is_some() {
                    sequence += 1;
                }
            }
            // A well-formed header that announces any length.
            let generous = Limits { body_bytes_max: u32::MAX };
            let honest = Frame::default().encode_header(sequence, generous).unwrap();
            let mut liar: Header = zerocopy::transmute!(honest);
            liar.body_len = len.into();
            liar.header_crc = liar.checksum().into();
            decoder.feed(liar.as_bytes());
            match decoder.next_frame() {
                Err(LinkError::TooLarge { len: got, limit: told, .. }) => {
                    prop_assert!(got == len && told == limit && len > limit);
                }
                Ok(_) | Err(LinkError::BodyChecksum { .. }) => prop_assert!(len <= limit),
                Err(other) => prop_assert!(false, "{other}"),
            }
            prop_assert!(decoder.read_target().capacity() <= bound);
        }
    }
}
