//! A Unix stream socket as network backend, framed as QEMU (`-netdev stream`) and passt do: four bytes
//! of length, big-endian, then the frame.
//!
//! The other process may be slow, may send nonsense and may go away. Then frames are lost or the link
//! goes down; there is no reconnecting, because neither side could tell which frames got lost on the
//! way and the network process has state (passt's connections) that ends with it anyhow.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::{Errno, IoSlice};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::{Backend, BackendError, FRAME_BYTES_MAX, FRAME_BYTES_MIN, FrameSource};
use crate::output::{FrameSink, SendError};

const LENGTH_BYTES: usize = 4;
/// How long a frame may wait for a full socket. Once one has waited in vain, the following ones do not
/// wait until the socket takes some again.
const SEND_WAIT: Duration = Duration::from_millis(5);
/// Room in the kernel for what one release sends at once.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Read at once: one frame of any size, or many small ones.
const RECEIVE_BUFFER_BYTES: usize = 2 * (LENGTH_BYTES + FRAME_BYTES_MAX);

struct Receiver {
    stream: UnixStream,
    buffer: Box<[u8]>,
    /// What is received and not taken yet: `buffer[start..end]`.
    start: usize,
    end: usize,
}

struct Sender {
    stream: UnixStream,
    tail: Mutex<Tail>,
}

/// What has to be sent before the next frame can begin.
#[derive(Default)]
struct Tail {
    /// The rest of a frame that the socket took a part of; at most one frame.
    bytes: Vec<u8>,
    /// The socket was full the last time: do not wait for it.
    stalled: bool,
}

/// Connects to the network process that listens at `path`.
///
/// # Errors
/// If it cannot be connected.
pub fn connect(path: &Path) -> Result<Backend, BackendError> {
    let stream = UnixStream::connect(path).map_err(|source| BackendError::Connect {
        path: path.to_owned(),
        source,
    })?;
    from_stream(stream)
}

/// Uses a socket that is connected already.
///
/// # Errors
/// If it cannot be prepared.
pub fn from_stream(stream: UnixStream) -> Result<Backend, BackendError> {
    let prepare = || -> io::Result<UnixStream> {
        // Sends wait this long at most; receives ask never to wait. That is why the socket stays in
        // blocking mode: the mode belongs to both halves.
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(SEND_WAIT))?;
        socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES)?;
        stream.try_clone()
    };
    let for_sender = prepare().map_err(|source| BackendError::Io {
        what: "prepare socket".to_owned(),
        source,
    })?;
    Ok(Backend {
        source: Box::new(Receiver {
            stream,
            buffer: vec![0; RECEIVE_BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        }),
        sink: Arc::new(Sender {
            stream: for_sender,
            tail: Mutex::new(Tail::default()),
        }),
    })
}

impl Receiver {
    /// The whole frame at the front of the buffer: its place.
    fn buffered(&self) -> Result<Option<(usize, usize)>, BackendError> {
        let received = &self.buffer[self.start..self.end];
        let Some((length, rest)) = received.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = u32::from_be_bytes(*length);
        let len = bytes as usize;
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len) {
            return Err(BackendError::FrameLength { bytes });
        }
        let from = self.start + LENGTH_BYTES;
        Ok((rest.len() >= len).then_some((from, from + len)))
    }

    /// Receives more. False if there is nothing now.
    fn fill(&mut self) -> Result<bool, BackendError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            // Never empty: the buffer holds two frames, and `buffered` has found less than one.
            let room = &mut self.buffer[self.end..];
            return match recv(&self.stream, room, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => Err(BackendError::Closed),
                Ok((_, len)) => {
                    self.end += len;
                    Ok(true)
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(false),
                Err(Errno::CONNRESET) => Err(BackendError::Closed),
                Err(error) => Err(BackendError::Io {
                    what: "receive from socket".to_owned(),
                    source: error.into(),
                }),
            };
        }
    }
}

impl FrameSource for Receiver {
    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, BackendError> {
        loop {
            if let Some((from, to)) = self.buffered()? {
                let frame = &self.buffer[from..to];
                buffer[..frame.len()].copy_from_slice(frame);
                self.start = to;
                return Ok(Some(to - from));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Sender {
    /// Sends what fits of `parts`: all of it, or less if the socket is full.
    fn push(&self, parts: [&[u8]; 2], wait: bool) -> Result<usize, SendError> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !wait);
        loop {
            let slices = parts.map(IoSlice::new);
            let mut nothing = SendAncillaryBuffer::default();
            return match sendmsg(&self.stream, &slices, &mut nothing, flags) {
                Ok(len) => Ok(len),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => Ok(0),
                Err(_) => Err(SendError::Closed),
            };
        }
    }
}

impl FrameSink for Sender {
    fn send(&self, frame: &[u8]) -> Result<(), SendError> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(SendError::Refused);
        }
        let mut tail = self
            .tail
            .lock()
            .expect("no thread panics while it sends a frame");
        if !tail.bytes.is_empty() {
            let sent = self.push([&tail.bytes, &[]], !tail.stalled)?;
            tail.bytes.drain(..sent);
            if !tail.bytes.is_empty() {
                tail.stalled = true;
                return Err(SendError::Busy);
            }
        }
        let length = (frame.len() as u32).to_be_bytes();
        let sent = self.push([&length, frame], !tail.stalled)?;
        tail.stalled = sent < LENGTH_BYTES + frame.len();
        if sent == 0 {
            return Err(SendError::Busy);
        }
        if tail.stalled {
            // The other side has the beginning, so it must get the rest: with the next frame.
            tail.bytes.extend_from_slice(&length);
            tail.bytes.extend_from_slice(frame);
            tail.bytes.drain(..sent);
        }
        Ok(())
    }
}
