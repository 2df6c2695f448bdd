//! A link: frames over a pair of byte streams, in both directions.
//!
//! The reader and the writer are independent halves. `frame.rs` has the wire format, `queue.rs` the
//! buffering for several senders. Nothing here interprets a frame.

use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::decoder::FrameDecoder;
use crate::error::LinkError;
use crate::frame::{Frame, HEADER_BYTES, Limits};
use crate::metrics::LinkCounters;
use crate::source::{Polled, Source};

/// How much [`LinkReader::try_recv`] reads from the stream at once.
const TRY_READ_BYTES: usize = 64 << 10;

/// Frames handed to the operating system in one call. Each has two slices, so this is well below
/// the limit of 1024.
const WRITE_FRAMES_MAX: usize = 64;

/// A connection to the other host.
#[derive(Debug)]
pub struct Link {
    /// Receives frames.
    pub reader: LinkReader,
    /// Sends frames.
    pub writer: LinkWriter,
    /// The other end, for people.
    pub peer: String,
}

impl Link {
    /// A link over any pair of byte streams.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        peer: impl Into<String>,
        limits: Limits,
    ) -> Self {
        Self::from_source(Box::new(Polled(reader)), Box::new(writer), peer, limits)
    }

    pub(crate) fn from_source(
        source: Box<dyn Source>,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        peer: impl Into<String>,
        limits: Limits,
    ) -> Self {
        let counters = Arc::new(LinkCounters::default());
        Self {
            reader: LinkReader {
                source,
                decoder: FrameDecoder::new(limits),
                scratch: Vec::new(),
                ended: None,
                counters: counters.clone(),
            },
            writer: LinkWriter {
                writer,
                limits,
                sequence_next: 0,
                unwritten: VecDeque::new(),
                written_bytes: 0,
                failed: None,
                counters,
            },
            peer: peer.into(),
        }
    }

    /// The two halves, for use in different tasks.
    #[must_use]
    pub fn split(self) -> (LinkReader, LinkWriter) {
        (self.reader, self.writer)
    }

    /// The link's traffic so far.
    #[must_use]
    pub fn counters(&self) -> Arc<LinkCounters> {
        self.reader.counters.clone()
    }
}

/// The receiving half of a [`Link`].
pub struct LinkReader {
    source: Box<dyn Source>,
    decoder: FrameDecoder,
    scratch: Vec<u8>,
    /// Why no more bytes will come. Frames that arrived before are still handed out.
    ended: Option<LinkError>,
    counters: Arc<LinkCounters>,
}

impl LinkReader {
    /// Waits for the next frame. Cancel safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// If the link has ended or the bytes are malformed. Frames before that are received first.
    /// Every later call fails in the same way.
    pub async fn recv(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(frame);
            }
            match self.source.read_buf(self.decoder.read_target()).await {
                Ok(0) => self.ended = Some(self.decoder.end_of_stream()),
                Ok(bytes) => self.counters.count_in(bytes),
                Err(error) => self.ended = Some(LinkError::from_io("receiving", error)),
            }
        }
    }

    /// The next frame if it is already here, in this program or in the socket's buffer; otherwise
    /// `None`. Never waits.
    ///
    /// Call this until it returns `None` or an error to learn everything that is known by now,
    /// including a close by the peer behind the last frame.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            self.scratch.resize(TRY_READ_BYTES, 0);
            match self.source.read_now(&mut self.scratch) {
                Ok(None) => return Ok(None),
                Ok(Some(0)) => self.ended = Some(self.decoder.end_of_stream()),
                Ok(Some(bytes)) => {
                    self.counters.count_in(bytes);
                    self.decoder.feed(&self.scratch[..bytes]);
                }
                Err(error) => self.ended = Some(LinkError::from_io("receiving", error)),
            }
        }
    }

    /// Changes what is accepted from now on, from the next frame header on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.decoder.set_limits(limits);
    }

    /// The link's traffic so far.
    #[must_use]
    pub fn counters(&self) -> Arc<LinkCounters> {
        self.counters.clone()
    }

    /// A frame that has already been read, or else the end of the stream if that has been seen.
    fn take_frame(&mut self) -> Result<Option<Frame>, LinkError> {
        if let Some(frame) = self.decoder.next_frame()? {
            self.counters.count_frame_in();
            return Ok(Some(frame));
        }
        match &self.ended {
            Some(error) => Err(error.clone()),
            None => Ok(None),
        }
    }
}

impl fmt::Debug for LinkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkReader")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// A frame on its way into the stream.
struct Outgoing {
    header: [u8; HEADER_BYTES],
    body: Bytes,
}

impl Outgoing {
    fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }
}

/// The sending half of a [`Link`]. Dropping it closes this direction.
pub struct LinkWriter {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    limits: Limits,
    sequence_next: u64,
    /// Frames that are not completely written yet.
    unwritten: VecDeque<Outgoing>,
    /// How many bytes of the first one are written.
    written_bytes: usize,
    failed: Option<LinkError>,
    counters: Arc<LinkCounters>,
}

impl LinkWriter {
    /// Sends a frame. Returns when the stream has taken all of it.
    ///
    /// If the future is dropped before that, the frame has either not begun, or its rest goes out
    /// before the next one. The stream stays intact.
    ///
    /// # Errors
    /// If the link is broken (for good), or the body is over the limit (nothing was sent then).
    pub async fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.send_all(std::slice::from_ref(frame)).await
    }

    /// Sends frames in order, with as few system calls as possible.
    ///
    /// # Errors
    /// As [`Self::send`]. One body over the limit keeps the whole batch from being sent.
    pub async fn send_all(&mut self, frames: &[Frame]) -> Result<(), LinkError> {
        self.write_out().await?;
        let mut batch = VecDeque::with_capacity(frames.len());
        for (frame, sequence) in frames.iter().zip(self.sequence_next..) {
            batch.push_back(Outgoing {
                header: frame.encode_header(sequence, self.limits)?,
                body: frame.body.clone(),
            });
        }
        self.sequence_next += batch.len() as u64;
        self.unwritten = batch;
        self.write_out().await
    }

    /// Tells the peer that no more frames will come.
    ///
    /// # Errors
    /// If the link is broken.
    pub async fn shutdown(&mut self) -> Result<(), LinkError> {
        self.write_out().await?;
        let done = self.writer.shutdown().await;
        done.map_err(|error| self.fail(LinkError::from_io("closing", error)))
    }

    /// What the link accepts.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The link's traffic so far.
    #[must_use]
    pub fn counters(&self) -> Arc<LinkCounters> {
        self.counters.clone()
    }

    /// Writes `unwritten` to the stream. Changes state only after a write has returned.
    async fn write_out(&mut self) -> Result<(), LinkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        while !self.unwritten.is_empty() {
            let mut slices = Vec::with_capacity(2 * WRITE_FRAMES_MAX.min(self.unwritten.len()));
            for outgoing in self.unwritten.iter().take(WRITE_FRAMES_MAX) {
                slices.push(IoSlice::new(&outgoing.header));
                slices.push(IoSlice::new(&outgoing.body));
            }
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, self.written_bytes);
            match self.writer.write_vectored(rest).await {
                Ok(0) => return Err(self.fail(LinkError::Reset)),
                Ok(bytes) => self.advance(bytes),
                Err(error) => return Err(self.fail(LinkError::from_io("sending", error))),
            }
        }
        let flushed = self.writer.flush().await;
        flushed.map_err(|error| self.fail(LinkError::from_io("sending", error)))
    }

    /// Records that the stream took `bytes`.
    fn advance(&mut self, bytes: usize) {
        self.counters.count_out(bytes);
        self.written_bytes += bytes;
        while let Some(first) = self.unwritten.front() {
            let wire_bytes = first.wire_bytes();
            if self.written_bytes < wire_bytes {
                break;
            }
            self.written_bytes -= wire_bytes;
            self.unwritten.pop_front();
            self.counters.count_frame_out();
        }
    }

    /// Breaks the link for good and frees what it held.
    fn fail(&mut self, error: LinkError) -> LinkError {
        self.unwritten.clear();
        self.failed = Some(error.clone());
        error
    }
}

impl fmt::Debug for LinkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWriter")
            .field("frames_unwritten", &self.unwritten.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
