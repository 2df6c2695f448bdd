//! Splits a byte stream into frames, without I/O.
//!
//! Bytes come in by [`FrameDecoder::feed`], or without a copy through `read_target`; whole, checked
//! frames come out of [`FrameDecoder::next_frame`]. Only header checks that pass let a body's buffer be
//! reserved. The decoder never skips ahead after an error: there is no resynchronisation.

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::LinkError;
use crate::frame::{Frame, HEADER_BYTES, Header, Limits};

/// How much is read at once while no large body is due.
const READ_BYTES: usize = 256 << 10;

/// Room below which a new read buffer is made rather than reading in crumbs.
const READ_BYTES_MIN: usize = 4 << 10;

/// Bodies up to this size are copied out, so that a small frame somebody keeps does not keep a whole
/// read buffer alive.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Turns the bytes of one direction of a link into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: Limits,
    buffer: BytesMut,
    /// The header of the frame whose body is being collected in `buffer`.
    header: Option<Header>,
    sequence_next: u64,
    failed: Option<LinkError>,
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
            failed: None,
        }
    }

    /// Adds bytes that arrived. The decoder keeps them until `next_frame` takes them out: feed it no
    /// more than one read's worth at a time.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are malformed; then for ever.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, LinkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.decode_next()
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// What it means that the stream ends here: [`LinkError::Closed`] between two frames,
    /// [`LinkError::Truncated`] within one. Ask `next_frame` first.
    #[must_use]
    pub fn end_of_stream(&self) -> LinkError {
        if let Some(error) = &self.failed {
            return error.clone();
        }
        match &self.header {
            Some(header) => LinkError::Truncated {
                got: HEADER_BYTES + self.buffer.len(),
                expected: HEADER_BYTES + header.body_len as usize,
            },
            None if self.buffer.is_empty() => LinkError::Closed,
            None => LinkError::Truncated {
                got: self.buffer.len(),
                expected: HEADER_BYTES,
            },
        }
    }

    /// Where the next bytes of the stream are to be read to.
    ///
    /// A large body gets its own buffer, and the read stops at its end: so it is never copied again.
    pub(crate) fn read_target(&mut self) -> Limit<&mut BytesMut> {
        let missing = match &self.header {
            Some(header) => header.body_len as usize - self.buffer.len(),
            None => 0,
        };
        if missing > 0 {
            self.buffer.reserve(missing);
        } else if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            self.buffer.reserve(READ_BYTES);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let limit = if missing >= READ_BYTES { missing } else { room };
        (&mut self.buffer).limit(limit)
    }

    fn decode_next(&mut self) -> Result<Option<Frame>, LinkError> {
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
        let len = header.body_len as usize;
        if self.buffer.len() < len {
            return Ok(None);
        }
        let crc = crc32fast::hash(&self.buffer[..len]);
        if crc != header.body_crc {
            return Err(LinkError::BodyChecksum {
                sequence: header.sequence,
                got: crc,
                expected: header.body_crc,
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
            kind: header.kind,
            generation: header.generation,
            epoch: header.epoch,
            body,
        }))
    }
}
