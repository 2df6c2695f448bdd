//! A Unix stream socket as network backend, framed as QEMU (`-netdev stream`) and passt do: four bytes
//! of length, big-endian, then the frame.
//!
//! The other process may be slow, may send nonsense and may go away. Then frames are lost or the link
//! goes down; there is no reconnecting, because neither side could tell which frames got lost on the
//! way and the network process has state (passt's connections) that ends with it anyhow.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, UnixAddr, recv, sendmsg};
use parking_lot::Mutex;
use understudy_replication::output::{FrameSink, SendError};

use super::{
    Backend, BackendError, FRAME_BYTES_MAX, FRAME_BYTES_MIN, FrameSource, Framing, Receives,
};

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
            return match recv(self.stream.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => Err(BackendError::Closed),
                Ok(len) => {
                    self.end += len;
                    Ok(true)
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Ok(false),
                Err(Errno::ECONNRESET) => Err(BackendError::Closed),
                Err(error) => Err(BackendError::Io {
                    what: "receive from socket".to_owned(),
                    source: error.into(),
                }),
            };
        }
    }
}

impl FrameSource for Receiver {
    /// Neither passt nor QEMU's stream takes headers.
    fn framing(&self) -> Framing {
        Framing::Bare
    }

    fn set_receives(&mut self, receives: Receives) -> Result<(), BackendError> {
        match receives == Receives::default() {
            true => Ok(()),
            false => Err(BackendError::NoOffload),
        }
    }

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

    fn probe(&mut self) -> Result<(), BackendError> {
        let mut byte = [0; 1];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        match recv(self.stream.as_raw_fd(), &mut byte, flags) {
            Ok(0) | Err(Errno::ECONNRESET) => Err(BackendError::Closed),
            // Any other error will still be there at the next `recv`.
            _ => Ok(()),
        }
    }

    /// What the network process is connected to is its own business; so is how large packets may be there.
    fn mtu_bytes(&self) -> Option<u16> {
        None
    }

    fn carries(&self) -> bool {
        true
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Sender {
    /// Sends what fits of `parts`: all of it, or less if the socket is full.
    fn push(&self, parts: [&[u8]; 2], wait: bool) -> Result<usize, SendError> {
        let mut flags = MsgFlags::MSG_NOSIGNAL;
        flags.set(MsgFlags::MSG_DONTWAIT, !wait);
        loop {
            let slices = parts.map(IoSlice::new);
            let socket = self.stream.as_raw_fd();
            return match sendmsg::<UnixAddr>(socket, &slices, &[], flags, None) {
                Ok(len) => Ok(len),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(0),
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
        let mut tail = self.tail.lock();
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (Backend, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (from_stream(ours).unwrap(), theirs)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    fn frame(len: usize, fill: u8) -> Vec<u8> {
        vec![fill; len]
    }

    fn next(backend: &mut Backend) -> Option<Vec<u8>> {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let len = backend.source.recv(&mut buffer).unwrap()?;
        Some(buffer[..len].to_vec())
    }

    fn error(backend: &mut Backend) -> BackendError {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        backend.source.recv(&mut buffer).unwrap_err()
    }

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let (mut backend, mut peer) = pair();
        let frames = [
            frame(14, 1),
            frame(1514, 2),
            frame(FRAME_BYTES_MAX, 3),
            frame(60, 4),
        ];
        let stream: Vec<_> = frames.iter().flat_map(|f| framed(f)).collect();
        for step in [1, 3, 4, 1000, 70_000, stream.len()] {
            // Byte by byte for the beginning only, or it takes long.
            let mut received = Vec::new();
            for piece in stream.chunks(step.max(if step < 5 { 97 * step } else { step })) {
                let (head, tail) = piece.split_at(piece.len().min(step));
                for part in [head, tail] {
                    // The socket's buffer may be smaller than a piece.
                    for bite in part.chunks(8192) {
                        peer.write_all(bite).unwrap();
                        received.extend(std::iter::from_fn(|| next(&mut backend)));
                    }
                }
            }
            assert!(received == frames, "in steps of {step}");
            assert!(next(&mut backend).is_none());
        }
    }

    #[test]
    fn a_split_length_waits_for_its_rest() {
        let (mut backend, mut peer) = pair();
        for byte in framed(&frame(20, 7)) {
            assert!(next(&mut backend).is_none());
            peer.write_all(&[byte]).unwrap();
        }
        assert_eq!(next(&mut backend), Some(frame(20, 7)));
    }

    #[test]
    fn impossible_lengths_and_a_closed_peer_are_errors() {
        for len in [0, 13, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            let (mut backend, mut peer) = pair();
            peer.write_all(&len.to_be_bytes()).unwrap();
            let error = error(&mut backend);
            assert!(
                matches!(error, BackendError::FrameLength { bytes } if bytes == len),
                "{error}"
            );
        }
        let (mut backend, mut peer) = pair();
        backend.source.probe().unwrap();
        peer.write_all(&framed(&frame(20, 1))).unwrap();
        peer.write_all(&[0, 0]).unwrap();
        drop(peer);
        backend.source.probe().unwrap();
        assert_eq!(next(&mut backend), Some(frame(20, 1)));
        assert!(matches!(error(&mut backend), BackendError::Closed));
        assert!(backend.source.probe().is_err());
        assert_eq!(backend.sink.send(&frame(20, 1)), Err(SendError::Closed));
    }

    #[test]
    fn frames_leave_with_their_length() {
        let (backend, mut peer) = pair();
        backend.sink.send(&frame(60, 5)).unwrap();
        let mut bytes = vec![0; 64];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, framed(&frame(60, 5)));
        let too_long = frame(FRAME_BYTES_MAX + 1, 5);
        assert_eq!(backend.sink.send(&too_long), Err(SendError::Refused));
    }

    #[test]
    fn a_peer_that_does_not_read_loses_frames_but_never_a_part_of_one() {
        let (backend, mut peer) = pair();
        let mut sent = Vec::new();
        let mut number: u32 = 0;
        let mut refused = 0;
        while refused < 20 {
            number += 1;
            let mut bytes = frame(9000 + number as usize % 1000, 0);
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            match backend.sink.send(&bytes) {
                Ok(()) => sent.push(bytes),
                Err(error) => {
                    assert_eq!(error, SendError::Busy);
                    refused += 1;
                }
            }
            assert!(number < 10_000, "the socket never gets full");
        }
        // The peer reads again: a frame that was begun is completed by the next one.
        let reader = std::thread::spawn(move || {
            let mut stream = Vec::new();
            peer.read_to_end(&mut stream).unwrap();
            stream
        });
        while backend.sink.send(&frame(100, 9)).is_err() {
            std::thread::yield_now();
        }
        sent.push(frame(100, 9));
        drop(backend);
        let expected: Vec<_> = sent.iter().flat_map(|f| framed(f)).collect();
        assert!(reader.join().unwrap() == expected);
    }

    #[test]
    fn connecting_to_nobody_says_where() {
        let error = connect(Path::new("/nonexistent/net.sock")).err().unwrap();
        assert!(
            error.to_string().contains("/nonexistent/net.sock"),
            "{error}"
        );
    }
}
