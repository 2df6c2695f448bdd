//! What can go wrong on a link, and the answer to the callers' one question: did the peer go away,
//! or did it send something malformed?
//!
//! Errors are `Clone`, because one broken link fails many senders. This module does not act on
//! errors.

use std::io;
use std::sync::Arc;

/// Why a frame could not be sent or received. After any error from receiving, the link is finished:
/// every later call returns the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the link between two frames, or this side closed its own queue.
    #[error("link closed")]
    Closed,
    /// The peer's host reset the link, or its other end has no reader any more.
    #[error("link reset by the peer")]
    Reset,
    /// The stream ended within a frame.
    #[error("link closed within a frame, after {got} of {expected} bytes")]
    Truncated {
        /// Bytes of the frame that arrived, header included.
        got: usize,
        /// Bytes that the frame has, or those of a header if that was incomplete.
        expected: usize,
    },
    /// The operating system reported another error.
    #[error("link failed while {doing}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The peer does not speak this protocol at all.
    #[error("not an Understudy peer: the frame starts with {got:#010x}, expected {expected:#010x}")]
    BadMagic {
        /// The first four bytes, little endian.
        got: u32,
        /// What they must be.
        expected: u32,
    },
    /// The peer speaks another version.
    #[error("the peer speaks protocol version {theirs}, this side {ours}: upgrade the older one")]
    Version {
        /// This side's version.
        ours: u16,
        /// The peer's version.
        theirs: u16,
    },
    /// A frame header was damaged.
    #[error("frame {sequence}: header checksum is {got:#010x}, expected {expected:#010x}")]
    HeaderChecksum {
        /// Sequence number of the frame that was due.
        sequence: u64,
        /// The checksum of the bytes that arrived.
        got: u32,
        /// The checksum the header carries.
        expected: u32,
    },
    /// A frame body was damaged.
    #[error("frame {sequence}: body checksum is {got:#010x}, expected {expected:#010x}")]
    BodyChecksum {
        /// Sequence number of the frame.
        sequence: u64,
        /// The checksum of the bytes that arrived.
        got: u32,
        /// The checksum the header carries.
        expected: u32,
    },
    /// The peer announced a body over the limit. Nothing was allocated for it.
    #[error("frame {sequence}: body of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// Sequence number of the frame.
        sequence: u64,
        /// Length that the header announces.
        len: u32,
        /// This side's limit.
        limit: u32,
    },
    /// The reserved field was not zero.
    #[error("frame {sequence}: reserved field is {got:#010x}, expected 0")]
    Reserved {
        /// Sequence number of the frame.
        sequence: u64,
        /// The field.
        got: u32,
    },
    /// A frame was lost, repeated or reordered.
    #[error("frame {expected} was due, frame {got} arrived")]
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number that arrived.
        got: u64,
    },
    /// The caller tried to send a body over its own limit. Nothing was sent, and the link still
    /// works.
    #[error("cannot send a body of {len} bytes, the limit is {limit}")]
    OversizeSend {
        /// Length of the body.
        len: usize,
        /// This side's limit.
        limit: u32,
    },
}

impl LinkError {
    /// Turns an error of the operating system into a link error.
    pub(crate) fn from_io(doing: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::Reset,
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io {
                doing,
                source: Arc::new(error),
            },
        }
    }

    /// The other end of the link is gone: closed, reset, or cut off within a frame. Its process has
    /// most likely ended. (A peer that was merely silent for a long time shows as [`Self::Io`].)
    #[must_use]
    pub fn is_peer_gone(&self) -> bool {
        matches!(self, Self::Closed | Self::Reset | Self::Truncated { .. })
    }

    /// The peer, or the path to it, delivered malformed bytes. The peer may well be alive.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        match self {
            Self::BadMagic { .. }
            | Self::Version { .. }
            | Self::HeaderChecksum { .. }
            | Self::BodyChecksum { .. }
            | Self::TooLarge { .. }
            | Self::Reserved { .. }
            | Self::Sequence { .. } => true,
            Self::Closed
            | Self::Reset
            | Self::Truncated { .. }
            | Self::Io { .. }
            | Self::OversizeSend { .. } => false,
        }
    }
}
